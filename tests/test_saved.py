"""Files of earlier runs: those of version 0.1.0 are read, and what is damaged is refused in one line.

`goldens/0.1.0` holds what that version wrote for a picture of the tiny model in float32, with seed 4 and 3 steps: the
state of a run that was stopped after 2 of them, and the manifest of a whole run.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import inputs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import TINY

from cosmos3_core.checkpoint import identity
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.contract import InputError
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.runs.saved import KEY, Earlier, read_stopped
from cosmos3_core.runs.sealed import write_tensors

OLD = Path(__file__).parent / "goldens" / "0.1.0"
REQUEST = "--model tiny --size 64x64 --steps 3 --seed 4 --dtype float32 --backend reference".split()
REQUEST += ["--set", "system_prompt=true"]  # as the profile had it then


@pytest.fixture(autouse=True)
def tiny(run) -> None:
    """The model by the name that it has in what 0.1.0 wrote: a folder here."""
    Path("tiny").symlink_to(TINY)


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
    earlier = Earlier.from_json(value)
    assert Earlier.from_json(earlier.to_json()) == earlier and numbers["index"] == 2
    assert earlier.model == "tiny" and earlier.dtype == "float32"
    options = earlier.to_json()["options"] | {"save_latents": None, "manifest": None}
    assert options.pop("high_precision_steps") is None, "0.1.0 knew none"
    kept = earlier.to_json() | {"options": options}
    assert {key: kept[key] for key in value} == value


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


REMEMBERED = {
    "nothing before the third step": (2, lambda memory: memory.zero_()),
    "one prediction before the third step": (2, lambda memory: memory[1].zero_()),
    "two predictions before the second step": (1, lambda memory: None),
    "something before the first step": (0, lambda memory: None),
    "one prediction before the first step": (0, lambda memory: memory[:2].zero_()),
}


@pytest.mark.parametrize(("index", "change"), REMEMBERED.values(), ids=REMEMBERED)
def test_a_memory_that_no_solver_has_at_that_step_is_refused(run, index, change):
    value, tensors = settled_in(OLD / "stopped.safetensors"), load_file(OLD / "stopped.safetensors")
    value["numbers"]["index"] = index
    change(tensors["solver.memory"])
    save_file(tensors, "bad.st", {KEY: json.dumps(value)})
    code, out, err = run("--resume", "bad.st", "-o", "x.png")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert f"its step is {index}, and what its solver remembers is of another" in err


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


# What one command knows, another does --------------------------------------------------------------------------------

CLIP = ["a cup", "--model", "model", "--image", "desk.png", "--size", "64x64", "--frames", 5, "--steps", 2]
CLIP += ["--backend", "reference"]


def stopped(run, *arguments) -> str:
    """A run that is stopped after its last step: what it said."""

    def interrupted(self, latents, tiling):
        raise KeyboardInterrupt
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoVAE, "decode", interrupted)
        code, _, err = run(*arguments)
    assert code == 130, err
    return err


@pytest.fixture
def model(run) -> Path:
    """A model in a folder, and a picture."""
    shutil.copytree(TINY, "model")
    inputs.photograph(80, 70).save("desk.png")
    return Path("model")


def scale_a_weight(folder: Path) -> None:
    """One tensor of the media tower times 2, under the same names and shapes."""
    file = next(folder.glob("transformer/*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "proj_out" in name and tensors[name].ndim > 1)
    save_file(tensors | {name: tensors[name] * 2}, file)


def edit_the_template(folder: Path) -> None:
    """Another chat template: the prompt becomes other tokens."""
    file = folder / "text_tokenizer" / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


CHANGES = {
    "desk.png": lambda: inputs.photograph(70, 80).save("desk.png"),
    "noise.st": lambda: shutil.copy("other.st", "noise.st"),
    "the weights of model": lambda: scale_a_weight(Path("model")),
}


def test_a_repeated_run_finds_what_has_changed(run, model):
    for name, seed in (("noise", 1), ("other", 2)):
        assert run(*CLIP, "--seed", seed, "-o", f"{name}.mp4", "--save-latents", f"{name}.st")[0] == 0
    assert run(*CLIP, "-o", "x.mp4", "--latents", "noise.st")[0] == 0
    kept = {name: Path(name).read_bytes() for name in ("desk.png", "noise.st")}
    for what, change in CHANGES.items():
        change()
        code, out, err = run("--request", "x.mp4.json", "-o", "again.mp4", "--overwrite")
        assert (code, out) == (2, ""), err
        error = err.splitlines()[-1]
        assert what in error and "changed since" in error and "--changed" in error and not Path("again.mp4").exists()
        code, _, err = run("--request", "x.mp4.json", "-o", "again.mp4", "--changed", "--overwrite")
        assert code == 0 and what in err and "changed since" in err
        assert any("changed since" in note for note in json.loads(Path("again.mp4.json").read_text())["notes"])
        Path("again.mp4").unlink()
        for name, data in kept.items():
            Path(name).write_bytes(data)


def test_a_run_is_repeated_from_another_folder(run, model, monkeypatch):
    assert run(*CLIP, "-o", "x.mp4", "--seed", 1, "--save-latents", "x.st")[0] == 0
    Path("elsewhere").mkdir()
    inputs.photograph(70, 80).save("elsewhere/desk.png")
    monkeypatch.chdir("elsewhere")
    code, _, err = run("--request", "../x.mp4.json", "--model", "../model", "-o", "y.mp4", "--save-latents", "y.st")
    assert code == 0, err
    assert torch.equal(load_file("y.st")["final.vision"], load_file("../x.st")["final.vision"])


@pytest.mark.parametrize("change", [scale_a_weight, edit_the_template])
def test_a_run_does_not_go_on_with_other_weights(run, model, change):
    stopped(run, *CLIP, "--seed", 1, "-o", "x.mp4")
    change(model)
    code, out, err = run("--resume", "x.mp4.state.safetensors", "-o", "x.mp4")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --resume x.mp4.state.safetensors: the weights of model have changed")
    assert Path("x.mp4.state.safetensors").exists() and not Path("x.mp4").exists()


def test_a_state_without_its_weights_digest_is_of_other_weights(run, model):
    stopped(run, *CLIP, "-o", "x.mp4")
    state = Path("x.mp4.state.safetensors")
    value = settled_in(state) | {"weights": None}
    write_tensors(state, load_file(state), {KEY: json.dumps(value)})
    code, _, err = run("--resume", state, "-o", "y.mp4")
    assert code == 2 and "the weights of model have changed" in err.splitlines()[-1]
    assert not Path("y.mp4").exists()


def test_weights_of_a_large_file_are_told_apart_by_a_tensor(model, monkeypatch):
    """Above the size up to which every byte counts."""
    monkeypatch.setattr(identity, "WHOLE", 0)
    before = Weights(open_model("model")).identity
    assert before == Weights(open_model("model")).identity
    scale_a_weight(model)
    assert Weights(open_model("model")).identity != before


def test_changed_without_a_manifest_is_refused(run):
    code, _, err = run("a cup", *REQUEST, "--changed", "-o", "x.png")
    assert code == 2 and "--changed without --request or --resume" in err


# Files that the program wrote ----------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_state_is_found(run):
    stopped(run, "a cup", *REQUEST, "-o", "x.png")
    data = Path("x.png.state.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    chance = random.Random(0)
    places = [*range(8), *chance.sample(range(8, header), 40), *chance.sample(range(header, len(data)), 20)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        Path("bad.st").write_bytes(flipped)
        with pytest.raises(InputError, match="bad.st"):
            read_stopped("bad.st", "bad.st")
    assert read_stopped("x.png.state.safetensors", "the state").numbers["index"] == 3


def test_a_changed_value_of_a_manifest_is_found(run):
    assert run("a cup", *REQUEST, "-o", "x.png")[0] == 0
    manifest = json.loads(Path("x.png.json").read_text())
    Path("spaced.json").write_text(json.dumps(manifest, indent=7, sort_keys=True))
    assert run("--request", "spaced.json", "--dry-run")[0] == 0, "spaces and order are no values"
    manifest["request"]["prompt"] = "a bowl"
    Path("edited.json").write_text(json.dumps(manifest))
    code, out, err = run("--request", "edited.json", "-o", "y.png")
    assert (code, out) == (2, "") and "was changed or damaged since it was written" in err and "--changed" in err
    assert run("--request", "edited.json", "--dry-run", "--changed")[0] == 0


def test_a_state_of_a_stranger_names_no_file_that_is_written(run):
    """0.1.0 kept where a run wrote its manifest and its latents, and went on to write there."""
    value = settled_in(OLD / "stopped.safetensors")
    for name in ("precious.txt", "precious.st"):
        Path(name).write_text("mine")
    value["options"] |= {"manifest": str(Path("precious.txt").absolute()), "save_latents": "precious.st"}
    save_file(load_file(OLD / "stopped.safetensors"), "theirs.st", {KEY: json.dumps(value)})
    code, _, err = run("--resume", "theirs.st", "-o", "x.png")
    assert code == 0, err
    assert Path("precious.txt").read_text() == Path("precious.st").read_text() == "mine"
    assert Path("x.png.json").exists()


def test_a_later_versions_files_are_refused_with_its_number(run):
    stopped(run, "a cup", *REQUEST, "-o", "x.png")
    value = settled_in(Path("x.png.state.safetensors")) | {"schema": 9}
    save_file(load_file("x.png.state.safetensors"), "later.st", {KEY: json.dumps(value)})
    code, _, err = run("--resume", "later.st", "-o", "y.png")
    assert code == 2 and "its schema is 9, of a later version of cosmos3" in err


def test_a_file_that_would_be_too_deep_or_too_large_is_not_parsed(run):
    Path("deep.json").write_text('{"request": ' + "[" * 100_000 + "]" * 100_000 + "}")
    code, _, err = run("--request", "deep.json", "-o", "x.png")
    assert code == 2 and "nested deeper than the 64 levels" in err and len(err.splitlines()) == 1
    Path("wide.st").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    code, _, err = run("--resume", "wide.st", "-o", "x.png")
    assert code == 2 and "its header would have 1,099,511,627,776 bytes" in err and len(err.splitlines()) == 1
