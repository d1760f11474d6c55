"""What a checkpoint says of itself: its own defaults, a note, and that its weights are random."""

from __future__ import annotations

import json
import shutil

import pytest
from command import cosmos3
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.model import describe, open_model
from cosmos3_core.contract import InputError
from cosmos3_core.scenarios.defaults import PROFILES, defaults
from cosmos3_core.scenarios.facts import OWN
from cosmos3_core.scenarios.own import read_own
from cosmos3_core.settle import Wish, settle

SAID = {"note": "it knows cups", "defaults": {"t2v": {"frames": 9, "fps": 12, "size": "64x64"}, "i2v": "t2v"}}


@pytest.fixture
def model(tmp_path):
    """A folder of the tests' model that says this of itself; its path."""

    def say(value) -> str:
        folder = tmp_path / "model"
        shutil.copytree(TINY, folder, dirs_exist_ok=True)
        (folder / OWN).write_text(json.dumps(value))
        return str(folder)

    return say


@pytest.mark.parametrize("profile", PROFILES)
def test_a_checkpoints_defaults_go_before_those_of_every_profile(model, profile):
    facts = open_model(model(SAID)).facts
    for task in ("t2v", "i2v"):
        values, origin = defaults(task, profile, facts)
        assert (values["frames"], values["fps"], values["size"]) == (9, 12, "64x64")
        assert origin["frames"] == "the checkpoint's own (assets/defaults.json)"
    theirs, _ = defaults("t2i", profile, facts)
    assert theirs["size"] == defaults("t2i", profile, open_model(TINY_MODEL).facts)[0]["size"]


def test_they_are_the_requests_and_give_way_to_what_is_typed(model):
    wish = Wish(model=model(SAID), backend="reference", given={"prompt": "a cup", "fps": 8})
    settled = settle(wish)
    assert (settled.request.frames, settled.request.width, settled.request.fps) == (9, 64, 8)
    assert settled.origin["fps"] == "user"


def test_its_note_is_said_once_and_kept(model, run):
    code, _, err = run("a cup", "--model", model(SAID), "--backend", "reference", "--steps", 1, "-o", "a.mp4")
    assert code == 0 and err.count("note: it knows cups") == 1
    with open("a.mp4.json") as file:
        assert json.load(file)["notes"] == ["it knows cups"]


@pytest.mark.parametrize(
    "value, found",
    [
        ({"notes": "x"}, "there is no key 'notes'. Did you mean note?"),
        ({"note": ""}, "its note is ''"),
        ({"note": "x" * 401}, "its note is 'xxx"),
        ({"note": 3}, "its note is 3"),
        ({"weights": "good"}, "its weights are 'good'. Write trained or random"),
        ({"defaults": []}, "its defaults are []. Write fields by task"),
        ({"defaults": {"t2w": {}}}, "there is no task 't2w'. Did you mean t2"),
        ({"defaults": {"i2v": "t2v"}}, "its defaults of i2v are None"),
        ({"defaults": {"t2v": {"frame": 9}}}, "there is no default of t2v 'frame'. Did you mean frames?"),
        ({"defaults": {"t2v": {"prompt": "x"}}}, "there is no default of t2v 'prompt'"),
        ({"defaults": {"t2v": {"chunk": 4}}}, "there is no default of t2v 'chunk'"),
        ({"defaults": {"t2v": {"frames": 8}}}, "its default of t2v: 8 frames"),
        ({"defaults": {"t2v": {"fps": "fast"}}}, "its default of t2v: fps = 'fast'"),
    ],
)
def test_what_it_may_not_say_is_one_line_before_a_weight(model, run, value, found):
    code, out, err = run("a cup", "--model", model(value), "--backend", "reference", "-o", "a.mp4")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"model/{OWN}: " in err and found in err


def test_a_checkpoint_without_the_file_says_nothing():
    with pytest.raises(InputError):
        read_own({"x": 1}, "m")
    own = read_own(None, "m")
    assert own.note is None and not own.random and own.defaults == {}


def test_random_weights_say_so_and_the_embedded_model_is_trained():
    assert open_model(TINY_MODEL).facts.random and not describe("nano").facts.random
    facts = open_model("embedded").facts
    assert not facts.random and facts.note and facts.own["t2v"]["frames"] == 17


def test_capabilities_have_them(model, capsys, monkeypatch):
    _, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", model(SAID))
    assert out.splitlines()[1] == "it says of itself: it knows cups" and "not in training" not in out
    _, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", model(SAID), "--json")
    assert json.loads(out)["model"]["trained"] is None
    shown = json.loads(out)["fields"]["size"]["defaults"]["t2v"]
    assert shown == {"value": "64x64", "source": "the checkpoint's own (assets/defaults.json)"}
