"""`make test-parallel`: a recipe for two devices is run, validated against one of them, and told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import cosmos3
from tiny_model import TINY

NAME = "tiny-t2v-80x48-cpux2"
RECIPE = """
title = "tiny, by two processes"
[run]
model = "tiny"
task = "t2v"
size = "80x48"
frames = 5
steps = 2
seed = 3
backend = "reference"
dtype = "float32"
parallel = "cfg=2"
[run.request]
guidance = 3
[device]
name = "CPU"
count = 2
[plan]
attention = "eager"
[expect]
seconds = 300
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "tiny").symlink_to(TINY)
    (tmp_path / "recipes" / f"{NAME}.toml").write_text(RECIPE)
    return tmp_path / "recipes"


def test_a_recipe_for_two_devices_runs():
    words = [sys.executable, "-m", "cosmos3", "recipes", "--folder", "recipes", "run", NAME]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, f"{NAME}.mp4\n"), done.stderr
    parallel = json.loads(Path(f"{NAME}.mp4.json").read_text())["plan"]["parallel"]
    assert parallel["layout"]["cfg"] == 2


@pytest.mark.usefixtures("one_picture")
def test_a_recipe_for_two_devices_is_held_against_one(capsys, monkeypatch, folder):
    """Its numbers are not the baseline's own: that is of one process, and what two exchange is part of the error."""

    def recipes(*arguments):
        return cosmos3(capsys, monkeypatch, "recipes", "--folder", "recipes", *arguments)

    code, out, err = recipes("validate", NAME, "--random-weights")
    assert code == 0, err
    assert f"validated on random weights: recipes/evidence/{NAME}.json" in out
    record = json.loads((folder / "evidence" / f"{NAME}.json").read_text())
    plans = {name: found["raw"]["plan"].get("parallel") for name, found in record["measurements"].items()}
    assert plans == {"baseline": None, "restart": None, "exact": None, "candidate": "cfg=2"}
    assert record["same"] is False
    code, out, _ = recipes("list", "--json")
    assert [one["state"] for one in json.loads(out)] == ["validated on random weights"]
    code, out, _ = recipes("show", NAME)
    assert code == 0 and "--parallel cfg=2" in out
    file = folder / f"{NAME}.toml"
    file.write_text(file.read_text().replace('"cfg=2"', '"ulysses=2"'))
    assert "the recipe was changed after it was measured" in recipes("list", "--json")[1]


def test_a_recipe_for_several_devices_is_not_warmed_on_one(capsys, monkeypatch):
    code, _, err = cosmos3(capsys, monkeypatch, "recipes", "--folder", "recipes", "warmup", NAME)
    assert code == 2 and f"Type cosmos3 recipes run {NAME}: its first run does" in err
