"""`cosmos3 recipes validate --all`: what is measured, in which order, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import cosmos3
from tiny_model import TINY

from cosmos3_core.contract import RunError
from cosmos3_core.evidence import renewal, validate

GOOD = """title = "a tiny picture"
[run]
model = "tiny"
task = "t2i"
size = "{size}"
steps = {steps}
backend = "reference"
[device]
name = "{device}"
"""
OTHERS = {"tiny-t2i-64x64-h200x1": ("64x64", 1, "H200"), "tiny-t2i-96x96-cpux1": ("96x96", 9, "CPU")}
NAMES = ["tiny-t2i-64x64-cpux1", "tiny-t2i-96x96-cpux1"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The command in a folder of three recipes, one of them for another machine. What it would measure is told."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("tiny").symlink_to(TINY)
    for name, (size, steps, device) in ({NAMES[0]: ("64x64", 2, "CPU")} | OTHERS).items():
        Path("recipes", f"{name}.toml").write_text(GOOD.format(size=size, steps=steps, device=device))
    measured: list[list[str]] = []

    def measure(found, *, random_weights, say, evaluations):
        measured.append([one.name for one in found])
        if found[0].name in failing:
            raise RunError("measuring the candidate", "its device is gone", "Try again")
        return iter(())

    failing: set[str] = set()
    monkeypatch.setattr(validate, "validate", measure)

    def run(*arguments, fails=()):
        measured.clear()
        failing.clear()
        failing.update(fails)
        code, out, err = cosmos3(capsys, monkeypatch, "recipes", "--folder", "recipes", "validate", *arguments)
        return code, out, err, measured

    return run


def test_what_can_run_here_is_measured_the_cheapest_first(call, monkeypatch):
    monkeypatch.setattr(renewal, "measured", lambda record: 30.0)
    code, out, err, measured = call("--all")
    assert code == 0 and measured == [[name] for name in NAMES]
    assert "not 1 recipe, such as tiny-t2i-64x64-h200x1: it is for 1 x H200, and this is CPU" in err
    assert out.splitlines() == [
        *(f"{name}: help wanted, about 30 s" for name in NAMES),
        "about 60 s in all, and an evaluation of the embedded model for each plan",
    ]


def test_nothing_begins_that_would_not_end_in_time(call, monkeypatch):
    monkeypatch.setattr(renewal, "measured", lambda record: 30.0)
    code, _, err, measured = call("--all", "--seconds", "20")
    assert code == 0 and not measured and f"no time is left for {NAMES[0]}" in err


def test_one_that_fails_stops_no_other(call):
    code, _, err, measured = call("--all", fails=NAMES[:1])
    assert code == 1 and measured == [[name] for name in NAMES]
    assert err.splitlines()[-1].startswith(f"error: 1 recipes of 2: {NAMES[0]}: measuring the candidate: its device")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "it takes names of recipes or --all"),
        ([NAMES[0], "--all"], "it takes names of recipes or --all"),
        ([NAMES[0], "--resume"], "--resume and --seconds are for --all"),
        ([NAMES[0], "--seconds", "9"], "--resume and --seconds are for --all"),
    ],
)
def test_names_or_all(call, arguments, said):
    code, _, err, measured = call(*arguments)
    assert code == 2 and said in err and not measured
