"""`cosmos3 evaluate`: the measures say yes to the world itself and no to each way of being wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import cosmos3
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.cli.evaluate import table
from cosmos3_core.contract import InputError
from cosmos3_core.evidence.embedded import evaluation, judged, measures
from cosmos3_core.evidence.embedded.cases import TASKS, Case, cases_of, pictures
from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import Depth, Measure, depths
from cosmos3_core.evidence.embedded.render import SOUND_RATE, play, samples_of
from cosmos3_core.files.audio import Sound
from cosmos3_core.scenarios.facts import OWN
from cosmos3_core.settle import Wish
from tools.embedded import faults, page, ranking

RUNS = {"t2vs": 8, "t2i": 2, "v2v": 1, "policy": 2, "inverse-dynamics": 1, "forward-dynamics": 1}


class Truth:
    """A run that makes what was asked for, from the scene itself."""

    def __init__(self, case: Case):
        self.case, self.request = case, SimpleNamespace(fps=case.fps)

    def frames(self):
        return iter(pictures(self.case.clip))

    def sound(self):
        wave = play(self.case.scenes, samples_of(self.case.scenes.frames, self.case.fps))[0]
        return Sound(wave.numpy(), SOUND_RATE)

    def actions(self):
        return self.case.scenes.actions[0], {}


@pytest.fixture
def judge(monkeypatch):
    """What the evaluation says of runs that a function of their case makes."""

    def call(make=Truth) -> dict[str, Measure]:
        runner = SimpleNamespace(run=lambda case, *_, **__: make(case))
        judged = []
        for task, count in RUNS.items():
            judging = evaluation.JUDGES.get(task, evaluation.of_clips)
            judged += [{"task": task, **judging(runner, case, task)} for case in cases_of(task, count)]
        found = Depth(RUNS, depths()["full"].bounds).measures(judged)
        return {f"{one.task} {one.measure}": one for one in found}

    return call


def test_the_world_itself_meets_every_bound(judge):
    found = judge()
    assert all(one.met for one in found.values())
    assert {one.value for one in found.values() if one.measure in measures.SHARES} == {1.0}
    assert found["t2vs sound"].of == 2 and found["t2vs direction"].of == 4 and found["t2vs motion"].of == 5


def test_every_case_says_all_that_a_record_has_to_say_of_it():
    truth = SimpleNamespace(run=lambda case, *_, **__: Truth(case))
    for task, wanted in measures.MEASURED.items():
        if task not in ("velocity", "codec"):
            (case,) = cases_of(task, 1)
            found = evaluation.JUDGES.get(task, evaluation.of_clips)(truth, case, task)
            assert set(wanted) <= found.keys() and found.keys() - set(wanted) <= {"silence"}
    assert measures.MEASURED.keys() == TASKS.keys()


class Reversed(Truth):
    def frames(self):
        return iter(pictures(self.case.clip)[::-1])


class Swapped(Truth):
    def frames(self):
        return iter([frame[..., ::-1].copy() for frame in pictures(self.case.clip)])


class Late(Truth):
    def sound(self):
        return faults._late(Truth.sound, self)


class Silent(Truth):
    def sound(self):
        return Sound(np.zeros((2, SOUND_RATE), dtype=np.float32), SOUND_RATE)


class Empty(Truth):
    def frames(self):
        return iter([np.full((128, 128, 3), 40, dtype=np.uint8)] * 17)


class OneFrameLate(Truth):
    def frames(self):
        first, *rest = pictures(self.case.clip)
        return iter([first, first, *rest[:-1]] if rest else [first])


class Short(Truth):
    def frames(self):
        return iter(pictures(self.case.clip)[:-1] or pictures(self.case.clip))


class Dim(Truth):
    def frames(self):
        return iter([(frame * 0.8).astype(np.uint8) for frame in pictures(self.case.clip)])


class Frozen(Truth):
    def frames(self):
        clip = pictures(self.case.clip)
        return iter(clip[:1] * len(clip))


class Drifting(Truth):
    def frames(self):
        return iter([np.roll(frame, 2 * number, axis=1) for number, frame in enumerate(pictures(self.case.clip))])


class OfAnotherRate(Truth):
    """What was sampled 44,100 times a second is said to be of 48,000."""

    def sound(self):
        wave = Truth.sound(self).samples
        at = np.arange(wave.shape[1]) * 0.91875
        return Sound(np.stack([np.interp(at, np.arange(len(side)), side) for side in wave]), SOUND_RATE)


class Hissing(Truth):
    def sound(self):
        wave = Truth.sound(self).samples
        return Sound(wave + np.random.default_rng(0).normal(0, 0.05, wave.shape), SOUND_RATE)


class Negated(Truth):
    def actions(self):
        return -self.case.scenes.actions[0], {}


@pytest.mark.parametrize(
    "wrong, measures",
    [
        (Reversed, {"direction", "forward-dynamics error"}),
        (Swapped, {"colour"}),
        (Late, {"sound"}),
        (Silent, {"sound"}),
        (Empty, {"colour", "shape", "count", "direction", "forward-dynamics error", "sound"}),
        (OneFrameLate, {"v2v given", "forward-dynamics path"}),
        (Short, {"t2vs colour", "t2vs motion", "forward-dynamics path"}),
        (Dim, {"v2v given"}),
        (Frozen, {"motion"}),
        (Drifting, {"motion", "v2v given"}),
        (OfAnotherRate, {"pitch"}),
        (Hissing, {"silence"}),
        (Negated, {"policy reached", "inverse-dynamics error"}),
    ],
)
def test_each_way_of_being_wrong_misses_its_bound(judge, wrong, measures):
    missed = {name for name, one in judge(wrong).items() if not one.met}
    assert all(any(name.endswith(measure) for name in missed) for measure in measures), missed


def test_a_number_that_is_none_meets_no_bound():
    assert not Measure("t2v", "colour", float("nan"), 1, 0.5, None).met
    assert not Measure("t2v", "error", float("nan"), 1, None, 0.5).met


def test_cases_are_the_same_each_time_and_no_training_has_their_seeds():
    for task in TASKS:
        first, second = cases_of(task, 9), cases_of(task, 9)
        assert [one.prompt for one in first] == [one.prompt for one in second]
        assert len({one.kind for one in first}) == len(TASKS[task]) and len({one.seed for one in first}) == 9
    clips = cases_of("t2v", 40)
    assert len({one.prompt for one in clips}) > 35


@pytest.fixture
def small(monkeypatch, tmp_path) -> str:
    """Every depth has one run of each task; a model of random weights, to which a step is enough."""
    folder, once = tmp_path / "model", {"steps": 1, "guidance": 1.0}
    shutil.copytree(TINY, folder)
    tasks = ("t2v", "t2i", "i2v", "v2v", "policy", "inverse-dynamics", "forward-dynamics")
    (folder / OWN).write_text(json.dumps({"defaults": dict.fromkeys(tasks, once)}))
    monkeypatch.chdir(tmp_path)
    few = {name: Depth(dict.fromkeys(one.runs, 1), one.bounds) for name, one in depths().items()}
    monkeypatch.setattr(measures, "depths", lambda: few)
    return "model"


def test_random_weights_fail_and_the_exit_code_says_so(small, capsys, monkeypatch, tmp_path):
    arguments = ("--model", small, "--backend", "reference", "--dtype", "float32", "--json")
    code, out, err = cosmos3(capsys, monkeypatch, "evaluate", *arguments)
    found = json.loads(out)
    assert "t2vs: 1 runs" in err and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert code == 1 and (found["met"], found["dtype"], found["depth"]) == (False, "float32", "quick")
    assert {one["task"] for one in found["cases"]} == set(depths()["quick"].runs)
    assert all({"task", "kind", "prompt", "seed"} <= one.keys() for one in found["cases"])
    lines = table(found).splitlines()
    assert lines[1].split() == ["t2vs", "colour", "0", ">=", "0.9", "1", "NOT", "MET"]
    assert lines[-2].startswith("model on CPU in ") and lines[-2].endswith("bounds not met")
    assert lines[-1].startswith("Type cosmos3 evaluate --backend reference --depth quick: ")


@pytest.mark.parametrize(
    "typed, said",
    [
        (["--depth", "deep"], "deep"),
        (["--model", "nothing"], "there is no such folder"),
        (["--backend", "referense"], "Did you mean reference?"),
        (["--backend", "reference", "--format", "fp9"], "fp9"),
        (["--profile", "comfy"], "Profiles are"),
        (["a prompt"], "unexpected extra argument"),
    ],
)
def test_a_wrong_call_is_one_line(capsys, monkeypatch, tmp_path, typed, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = cosmos3(capsys, monkeypatch, "evaluate", *typed)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_what_a_model_cannot_do_is_said_before_a_weight_is_read(small, monkeypatch):
    """The last task of a depth, too."""
    file = Path(small) / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_gen": False}))
    monkeypatch.setattr(judged.Engine, "open_weights", None)
    with pytest.raises(InputError, match="action"):
        evaluate(Wish(model=small, backend="reference"), Depth({"t2i": 1, "policy": 1}, {}))


def test_a_bound_of_nothing_is_a_bound():
    one = Measure("t2v", "error", 1.0, 1, None, 0.0).to_json()
    assert "<= 0" in table({"measures": [one], "met": True, "model": "m", "device": "d", "seconds": 1})
    assert page.bound(one) == "at most 0, **not met**"


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({}, "Few cases can miss by chance. Type cosmos3 evaluate --depth full"),
        ({"depth": "full"}, "Eager torch misses it too"),
        ({"backend": "cuda", "depth": "full"}, "Type cosmos3 evaluate --backend reference --depth full: "),
        ({"formats": {"pack_linear": "w4a16"}}, "Type cosmos3 evaluate --backend reference --depth quick: "),
        ({"model": "embedded-fp8"}, "Type cosmos3 evaluate --backend reference --depth quick: "),
    ],
)
def test_a_no_says_what_to_type_next(change, step):
    plain = {"model": "embedded", "backend": "reference", "device": "CPU", "formats": {}, "depth": "quick"}
    said = table({"measures": [], "met": False, "seconds": 1} | plain | change).splitlines()
    assert said[-1].startswith(step) and "bound" in said[-2]


def test_an_evaluation_asks_for_what_a_user_gets(monkeypatch):
    """The model's own defaults, but for the world's size and rate."""
    asked = []

    def run(self, case, *_, **fields):
        asked.append((case, fields))
        return Truth(case)

    monkeypatch.setattr(judged.Runner, "run", run)
    evaluate(Wish(model=TINY_MODEL, backend="reference"), Depth({"t2vs": 1, "t2i": 1}, {}))
    (clip, of_clip), (_, of_picture) = asked
    assert of_clip == {"task": "t2v", "size": "128x128", "frames": 17, "fps": clip.fps, "sound": True}
    assert of_picture == {"task": "t2i", "size": "128x128"}


def test_a_task_that_takes_long_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(judged.Runner, "run", lambda self, case, *_, **__: Truth(case))
    monkeypatch.setattr(evaluation, "SILENT", 0.0)
    said = []
    evaluate(Wish(model=TINY_MODEL, backend="reference"), Depth({"t2i": 2}, {}), say=said.append)
    assert said == ["t2i: 2 runs", "t2i: 0 of 2 runs", "t2i: 1 of 2 runs"]


def test_every_fault_can_be_planted_and_is_gone_afterwards():
    def parts() -> list[object]:
        owners = (faults.Weights, faults.inputs, faults.engine, faults.passes, faults.passes.Forward, faults.packing)
        owners += (faults.prompts.Prompts, faults.State, faults.VideoVAE, faults.Generation)
        return [value for owner in owners for value in vars(owner).values()]

    right = parts()
    for name in (*faults.FAULTS, *faults.GIVEN):
        with faults.planted(name) as given:
            assert given or sum(a is not b for a, b in zip(right, parts(), strict=True)) == 1, name
    assert all(a is b for a, b in zip(right, parts(), strict=True))
    assert len(faults.FAULTS) + len(faults.GIVEN) >= 11


def test_fewer_bits_lose_more():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    lost = {name: float((trip(weight) - weight).norm() / weight.norm()) for name, trip in ranking.TRIPS.items()}
    assert 0 == lost["as they are"] < lost["int8"] < lost["fp8"] < lost["int4"] < lost["int2"] < 1
    codes = ranking.integers(weight, 2) / weight.abs().amax(1, keepdim=True)
    assert set(codes.unique().tolist()) == {-1, 0, 1}
