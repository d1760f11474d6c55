"""Each leg of the embedded model's training at toy size, and what comes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import Depth, depths
from cosmos3_core.settle import Wish
from tools.embedded import train, train_sound, train_towers, train_vae
from tools.embedded.assemble import assemble
from tools.embedded.bank import MIX


def test_every_leg_runs_and_what_it_leaves_is_a_checkpoint(tmp_path, monkeypatch):
    """At toy size: a step or two each, then the engine. What has learned nothing fails the evaluation."""
    few = [replace(group, scenes=128) for group in MIX if group.name in ("pictures", "clips", "actions")]
    monkeypatch.setattr(train_towers, "MIX", tuple(few))
    legs, folder, toy = tmp_path / "legs", tmp_path / "model", ("--seconds", "0.1", "--shrink", "64")
    train_vae.main([*toy, "--out", str(legs)])
    train_sound.main([*toy, "--out", str(legs)])
    towers = ("--prompts", "1", "--codecs", str(legs), "--out", str(legs))
    train_towers.main([*toy, *towers])
    first = (legs / "towers.safetensors").read_bytes()
    train_towers.main([*toy, *towers, "--from", str(legs)])
    assert (legs / "towers.safetensors").read_bytes() != first
    for name in ("vae", "sound", "towers"):
        said = json.loads((legs / f"{name}.json").read_text())
        assert said["curve"] and all(np.isfinite(list(row.values())).all() for row in said["curve"])
    assemble(legs, folder)
    Weights(open_model(str(folder)))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 24_000_000
    assert max(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 15_000_000
    depth = Depth(dict.fromkeys(depths()["quick"].runs, 2), depths()["quick"].bounds)
    found = evaluate(Wish(model=str(folder), backend="reference"), depth, given={"steps": 2})
    assert not found["met"] and not any(one["met"] for one in found["measures"] if one["measure"] == "colour")


def test_one_command_trains_all_of_it(tmp_path):
    """A step of each leg, on a few scenes."""
    train.main([str(tmp_path), "--scale", "0.0001", "--shrink", "4096"])
    Weights(open_model(str(tmp_path / "embedded")))
    assert {file.name for file in tmp_path.glob("*-*.json")} == {"vae-1.json", "sound-1.json", "towers-1.json"}
