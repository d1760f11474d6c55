"""Files of earlier runs: those of version 0.1.0 are read, and what is damaged is refused in one line.

`goldens/0.1.0` holds what that version wrote for a picture of the tiny model in float32, with seed 4 and 3 steps: the
state of a run that was stopped after 2 of them, and the manifest of a whole run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command import cosmos3
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cosmos3_core.runs.saved import KEY, Earlier

OLD = Path(__file__).parent / "goldens" / "0.1.0"
REQUEST = "--model tiny --size 64x64 --steps 3 --seed 4 --dtype float32 --backend reference".split()


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "run", *arguments)

    return call


@pytest.fixture
def straight(run) -> torch.Tensor:
    """The final latents of the same request today."""
    code, _, err = run("a cup", *REQUEST, "-o", "new.png", "--save-latents", "new.st")
    assert code == 0, err
    return load_file("new.st")["final.vision"]


def settled_in(file: Path) -> dict:
    with safe_open(file, framework="pt") as tensors:
        return json.loads(tensors.metadata()[KEY])


def test_a_run_that_0_1_0_stopped_goes_on(run, straight):
    shutil.copy(OLD / "stopped.safetensors", "old.st")
    code, _, err = run("--resume", "old.st", "-o", "old.png", "--save-latents", "final.st")
    assert code == 0, err
    # Its first steps were taken on another machine.
    torch.testing.assert_close(load_file("final.st")["final.vision"], straight, rtol=0, atol=1e-4)
    manifest = json.loads(Path("old.png.json").read_text())
    assert manifest["resumed_at_step"] == 2 and manifest["plan"]["backend_why"] == "the stopped run had it"


def test_a_manifest_of_0_1_0_is_repeated(run, straight):
    code, _, err = run("--request", OLD / "manifest.json", "-o", "old.png", "--save-latents", "final.st")
    assert code == 0, err
    assert torch.equal(load_file("final.st")["final.vision"], straight)
    assert json.loads(Path("old.png.json").read_text())["plan"]["dtype"] == "float32"


def test_what_is_kept_is_read_back():
    value = settled_in(OLD / "stopped.safetensors")
    numbers = value.pop("numbers")
    assert Earlier.from_json(value).to_json() == value and numbers["index"] == 2
    assert Earlier.from_json(value).model == "tiny" and Earlier.from_json(value).dtype == "float32"


DAMAGED = {
    "no options": lambda value: value.pop("options"),
    "no numbers": lambda value: value.pop("numbers"),
    "a model without revision": lambda value: value.update(model=["tiny"]),
    "a model that is no text": lambda value: value.update(model=[7, None]),
    "a list of fields": lambda value: value.update(given=[]),
    "kernels that are no table": lambda value: value["options"].update(kernels="gate=eager"),
    "a kernel that is a number": lambda value: value["options"].update(kernels={"gate": 1}),
    "formats that are null": lambda value: value["options"].update(formats=None),
    "a backend that is null": lambda value: value["options"].update(backend=None),
    "a file name that is a list": lambda value: value["options"].update(save_latents=["x"]),
    "latents without a digest": lambda value: value.update(latents={"file": "x"}),
    "a step that is text": lambda value: value["numbers"].update(index="2"),
    "a step before the first": lambda value: value["numbers"].update(index=-1),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_state_is_refused_in_one_line(run, damage):
    value = settled_in(OLD / "stopped.safetensors")
    damage(value)
    save_file(load_file(OLD / "stopped.safetensors"), "bad.st", {KEY: json.dumps(value)})
    code, out, err = run("--resume", "bad.st", "-o", "x.png")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "--resume bad.st: it is not a stopped run. Give the file a stopped run named" in err


UNFIT = {
    "a step after the last": lambda value, tensors: value["numbers"].update(index=4),
    "another size": lambda value, tensors: value["given"].update(size="96x64"),
    "half a state": lambda value, tensors: tensors.pop("x"),
    "another dtype": lambda value, tensors: tensors.update(x=tensors["x"].half()),
    "no random stream": lambda value, tensors: tensors["stream"].zero_(),
    "latents that are NaN": lambda value, tensors: tensors["x"].fill_(torch.nan),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_a_state_that_does_not_fit_its_request_is_refused_before_weights_are_read(run, change):
    value, tensors = settled_in(OLD / "stopped.safetensors"), load_file(OLD / "stopped.safetensors")
    change(value, tensors)
    save_file(tensors, "bad.st", {KEY: json.dumps(value)})
    code, out, err = run("--resume", "bad.st", "-o", "x.png")
    assert (code, out) == (2, "")
    assert err == "error: resuming: the saved latents do not fit the saved request. Start the run again\n"


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"name": "tiny"}},
        {"model": {"name": ["tiny"], "revision": None}},
        {"plan": {"kernels": {}, "named": ["gate"], "backend": "reference", "dtype": "float32", "formats": {}}},
        {"plan": {"kernels": {}, "named": 3, "backend": "reference", "dtype": "float32", "formats": {}}},
        {"profile": "reference"},
        {"latents": {"file": "x.st"}},
        {"latents": "x.st"},
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(run, change):
    Path("bad.json").write_text(json.dumps(json.loads((OLD / "manifest.json").read_text()) | change))
    code, out, err = run("--request", "bad.json", "-o", "x.png")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "--request bad.json: its model, profile or plan is missing or damaged" in err
