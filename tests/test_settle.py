"""From a wish to model, request and plan: one way for every client."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from command import cosmos3
from sources import ROOT
from tiny_model import TINY, TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.checkpoint import model as models
from cosmos3_core.checkpoint import repository
from cosmos3_core.contract import InputError
from cosmos3_core.plan.cost.units import GIB
from cosmos3_core.scenarios.request import STANDS_IN
from cosmos3_core.settle import Settled, Wish, settle

DOCSTRING = re.compile('""".*?"""', re.DOTALL)


def settled(given: dict | None = None, **wish) -> Settled:
    common = {"model": TINY_MODEL, "backend": "reference", "given": {"prompt": "a cup"} | (given or {})}
    return settle(Wish(**common | wish))


def test_what_is_left_open_is_filled_in():
    found = settled()
    assert (found.request.task, found.request.frames, found.request.seed) == ("t2v", 189, 0)
    assert found.plan.backend is reference.BACKEND and found.why == "" and found.plan.dtype == found.model.dtype
    assert found.origin["task"] == "the inputs" and found.origin["prompt"] == "user"


@pytest.mark.parametrize(
    ("wish", "then"),
    [
        ({"model": None}, "Pass model as a string"),
        ({"backend": 3}, "Pass backend as a string"),
        ({"given": ["a cup"]}, "Pass given as a dict"),
        ({"given": {1: "a cup"}}, "Pass given as a dict"),
        ({"kernels": "gate=eager"}, "Pass kernels as a dict"),
        ({"disabled": "cuda"}, r"Pass \['cuda'\]"),
        ({"memory": float("nan")}, "Give it in bytes"),
        ({"memory": -1}, "Give it in bytes"),
    ],
)
def test_a_wish_of_the_wrong_kind_is_refused(wish, then):
    with pytest.raises(InputError, match=then):
        Wish(**{"model": TINY_MODEL} | wish)


@pytest.mark.parametrize(
    ("given", "suffix", "task"),
    [({}, ".PNG", "t2i"), ({}, ".mp4", "t2v"), ({"frames": 1}, None, "t2i"), ({"image": "x.png"}, None, "i2v")],
)
def test_the_task_follows_from_the_inputs(given, suffix, task):
    found = settled(given, suffix=suffix)
    assert found.request.task == task and found.origin["task"] == "the inputs"
    assert settled(given | {"task": task}).origin["task"] != "the inputs"


def test_a_seed_is_picked_where_it_is_left_to_chance():
    assert settled(pick_seed=lambda: 5).request.seed == 5
    assert settled({"seed": 7}, pick_seed=lambda: 5).request.seed == 7


def test_a_described_model_downloads_nothing(monkeypatch):
    opened = models.open_model
    monkeypatch.setattr(models, "open_model", lambda name, *rest: opened(name, *rest) if name == "embedded" else 1 / 0)
    found = settled(model="nano", described=True, memory=20 * GIB)
    assert found.model.name == "nvidia/Cosmos3-Nano" and found.plan.device.memory == 20 * GIB


def test_it_says_what_fits_and_what_would():
    small, large = (settled({"size": "720p"}, model="nano", described=True, memory=n * GIB) for n in (18, 40))
    assert large.fits and large.nearest() == [] and large.worst.peak <= 40 * GIB
    assert not small.fits and small.worst.name == "steps"
    for change in small.nearest():
        assert change.estimate.peak <= 18 * GIB
        given = {key: value for key, value in change.values.items() if key in ("frames", "tile")}
        if "width" in change.values:
            given["size"] = f"{change.values['width']}x{change.values['height']}"
        formats = {"pack_linear": change.values["format"]} if "format" in change.values else {}
        assert settled({"size": "720p"} | given, model="nano", described=True, memory=18 * GIB, formats=formats).fits


def test_the_steps_with_guidance_are_counted_on_the_schedule():
    def guided_steps(**given):
        return settled({"frames": 1, "steps": 50, "shift": 3.0} | given).estimate.job.guided_steps

    assert guided_steps(guidance=1) == 0 and guided_steps() == 50
    assert guided_steps(guidance_interval=[400, 1000]) == 41


def test_a_scheduler_that_describes_no_schedule_is_refused_here(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    with pytest.raises(InputError) as raised:
        settled(model=str(folder))
    assert "prediction_type is 'epsilon', and Cosmos3's is 'flow_prediction'" in raised.value.found


def test_required_kernels_are_asserted():
    settled(required={"gate": "eager"})
    with pytest.raises(InputError, match="`require` gate=fast"):
        settled(required={"gate": "fast"})


def test_nobody_else_puts_model_request_and_plan_together():
    """A backend is chosen and a request resolved here. A recipe asks for its device before its model is opened, and
    whoever brings a kernel of his own for a backend to add it to."""
    here, recipes = "cosmos3_core/settle/settle.py", "cosmos3_core/evidence/settle.py"
    quantize = {"cosmos3_core/evidence/quantizing/quantize.py", "cosmos3_core/checkpoint/writing.py"}  # no request
    assemble = {
        "choose_backend": {here, recipes},
        "place_of": {here, "cosmos3/pipeline.py"},
        "requests.resolve": {here},
        "open_model": {here, "cosmos3_core/checkpoint/model.py", *quantize},
        "Want.of": {here, recipes, "cosmos3_core/testing/suite/whole.py"},
    }
    paths = [path for package in ("cosmos3_core", "cosmos3") for path in (ROOT / package).rglob("*.py")]
    code = {str(path.relative_to(ROOT)): DOCSTRING.sub("", path.read_text()) for path in paths}
    for function, allowed in assemble.items():
        calls = re.compile(rf"(?<!def )\b{re.escape(function)}\(")
        assert {path for path, text in code.items() if calls.search(text)} == allowed, function


def test_a_request_is_checked_before_its_model_is_opened(monkeypatch):
    monkeypatch.setattr(models, "open_repository", lambda *_: pytest.fail("a model was opened"))
    for given, wish, then in (
        ({"frames": 8}, {}, "nearest are 5 and 9"),
        ({"stesp": 8}, {"described": True}, "Did you mean steps"),
        ({"task": "i2v"}, {}, "Add `image` FILE"),
        ({}, {"profile": "comfyui"}, "Profiles are reference"),
    ):
        with pytest.raises(InputError, match=then):
            settled(given, model="nvidia/Cosmos3-Nano", **wish)
    with pytest.raises(InputError, match="without a prompt"):
        settle(Wish(model="nvidia/Cosmos3-Nano"))


def test_a_partial_request_may_lack_its_prompt_and_its_input():
    for task, lacking in (("t2v", {"prompt"}), ("i2v", {"prompt", "image"}), ("v2v", {"prompt", "video"})):
        found = settle(Wish(model=TINY_MODEL, backend="reference", given={"task": task}, partial=True))
        assert {name for name, source in found.origin.items() if source == STANDS_IN} == lacking
        assert found.request.task == task and found.execution == settled(dict.fromkeys(lacking, "x")).execution
    with pytest.raises(InputError, match="without a prompt"):
        settle(Wish(model=TINY_MODEL, backend="reference", given={"task": "t2v"}))


@pytest.mark.parametrize(("short", "name"), repository.SHORT.items())
def test_a_short_name_is_a_hub_id_everywhere(short, name, tmp_path, monkeypatch, capsys):
    """A folder of that name goes before."""
    asked = []

    def hub(model, revision):
        asked.append(model)
        raise InputError(f"`model` {model}", "this test has no hub", "None")

    monkeypatch.setattr(repository, "_open_hub", hub)
    monkeypatch.chdir(tmp_path)
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", "--model", short, "-o", "x.mp4")
    assert code == 2 and err == f"error: --model {name}: this test has no hub. None\n"
    assert cosmos3(capsys, monkeypatch, "plan", "a cup", "--model", short)[0] == 2
    assert cosmos3(capsys, monkeypatch, "plan", "--model", short, "--revision", "main")[0] == 2
    assert asked == [name] * 3
    assert models.describe(short).name == name and asked == [name] * 3
    shutil.copytree(TINY, short)
    assert models.open_model(short).name == models.describe(short).name == short


@pytest.mark.parametrize(("given", "name"), [({"chunk": 200}, "chunk"), ({"frames": 201}, "frames")], ids=str)
def test_a_shorter_policy_is_proposed_in_what_was_asked_for(given, name):
    """Frames and actions asked for at once would contradict each other."""
    task = {"task": "policy", "domain": "droid_lerobot", "size": "480p"}
    asked = {"model": "nano", "described": True, "partial": True}
    memory = settled(task | given, **asked, memory=200 * GIB).worst.peak - 1
    small = settled(task | given, **asked, memory=memory)
    shorter = [change.values for change in small.nearest() if {"chunk", "frames"} & change.values.keys()]
    assert not small.fits and shorter and all(name in values for values in shorter)
    assert settled(task | {name: shorter[0][name]}, **asked, memory=memory).fits
