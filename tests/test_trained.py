"""Notes on what a checkpoint's training covered: a request outside of it runs, and says so."""

from __future__ import annotations

import json

import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

import cosmos3 as package
from cosmos3_core.scenarios.sizes import TIERS
from cosmos3_core.scenarios.trained import tier_of
from cosmos3_core.settle import Wish, settle

DROID = "nvidia/Cosmos3-Nano-Policy-DROID"
ACTING = {"task": "policy", "domain": "droid_lerobot"}
FEW, MANY = "training covered 24 to 200 frames at 720p, and this run has", "training covered 50 to 150 frames at 480p"
CASES = {
    "the default": ("nano", {"task": "t2v"}, []),
    "a picture": ("nano", {"task": "t2i"}, []),
    "few frames": ("nano", {"task": "t2v", "frames": 9}, [f"{FEW} 9"]),
    "many frames": ("nano", {"task": "i2v", "frames": 201}, [f"{FEW} 201"]),
    "as many as were trained": ("nano", {"task": "t2v", "frames": 197, "fps": 30}, []),
    "many at a lower tier": ("nano", {"task": "t2v", "frames": 289, "size": "480p:1:1"}, []),
    "a size between": ("nano", {"task": "t2v", "frames": 393, "size": "320x176"}, []),
    "fast": ("nano", {"task": "t2v", "fps": 60}, ["training covered 10 to 30 frames a second, and this run has 60"]),
    "slow": ("super", {"task": "v2v", "fps": 5}, ["training covered 10 to 30 frames a second, and this run has 5"]),
    "edge": ("edge", {"task": "t2v"}, []),
    "edge, large": (
        "edge",
        {"task": "t2v", "size": "720p"},
        ["1280x720 is of 720p, and nvidia/Cosmos3-Edge was"],
    ),
    "edge, short": ("edge", {"task": "t2v", "frames": 29}, [f"{MANY}, and this run has 29"]),
    "4 steps": ("nvidia/Cosmos3-Super-Text2Image-4Step", {"task": "t2i", "size": "256p"}, ["256x256 is of 256p, and"]),
    "chunks of a long clip": ("nano", {"task": "transfer", "frames": 1000, "size": "720p:16:9"}, []),
    "a chunk of actions": ("nano", {"task": "policy", "domain": "pusht", "fps": 5}, []),
    "bridge": (
        "nano",
        ACTING | {"domain": "bridge_orig_lerobot"},
        ["bridge_orig_lerobot is asked for 5 actions"],
    ),
    "droid": (DROID, ACTING, []),
    "droid, short": (
        DROID,
        ACTING | {"chunk": 16},
        [f"{DROID} is asked for chunks of 32 actions, and this run"],
    ),
    "droid, fast": (
        DROID,
        ACTING | {"fps": 30},
        ["droid_lerobot is asked for 15 actions a second, and this"],
    ),
}


@pytest.mark.parametrize("model, given, said", CASES.values(), ids=CASES)
def test_a_request_outside_of_training_says_so(model, given, said):
    notes = settle(Wish(model=model, described=True, partial=True, given=given, backend="reference")).notes
    assert len(notes) == len(said) and all(note.startswith(one) for note, one in zip(notes, said, strict=True)), notes


@pytest.mark.parametrize("tier", TIERS)
def test_a_size_of_a_tier_is_of_it(tier):
    others = {size for name, sizes in TIERS.items() if name > tier for size in sizes.values()}
    assert all(tier_of(size) == tier for size in TIERS[tier].values() if size not in others)


def test_nothing_is_known_of_a_model_of_ones_own():
    assert package.plan(TINY_MODEL, backend="reference", frames=5, size="64x64", fps=100).notes == ()


def test_the_command_line_and_python_say_the_same(capsys, monkeypatch):
    words = ("--model", "edge", "--task", "t2v", "--size", "720p", "--backend", "reference", "--memory", "80")
    code, out, _ = cosmos3(capsys, monkeypatch, "plan", *words, "--json")
    plan = package.plan("edge", backend="reference", task="t2v", size="720p")
    assert json.loads(out)["notes"] == list(plan.notes) and len(plan.notes) == 1
    assert f"note: {plan.notes[0]}" in str(plan)
    assert "note       1280x720 is of 720p" in cosmos3(capsys, monkeypatch, "plan", *words)[1]
