"""A device package that brings one composite and nothing else: what it fuses has no row of its own in the plan."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from command import cosmos3
from installed import install
from PIL import Image

SOLO = Path(__file__).parent / "one_half"
SMALL = ("a cup", "--model", "tiny", "--size", "64x64", "--steps", 2, "--seed", 1)
INSIDE = "no row of gate runs: it is done inside finish=gating. Type --kernel gate=eager to have it apart"


@pytest.fixture(autouse=True)
def solo(tmp_path, monkeypatch):
    """The package is installed, here and for the processes that the kit starts."""
    site = tmp_path / "site"
    install(SOLO, site)
    monkeypatch.setattr(sys, "path", [str(site), str(SOLO), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(site), str(SOLO))))


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """The picture and the plan of a small run."""

    def made(backend: str, *options: str) -> tuple[np.ndarray, dict]:
        file = tmp_path / f"{backend}.png"
        code, _, err = cosmos3(capsys, monkeypatch, "run", *SMALL, "--backend", backend, *options, "-o", file)
        assert code == 0, err
        return np.asarray(Image.open(file)).astype(int), json.loads(Path(f"{file}.json").read_text())["plan"]

    return made


def test_the_whole_model_runs_on_it(run):
    """To nearly the reference's picture. In the plan it does the gate, and by name the gate is had apart."""
    expected, _ = run("reference")
    found, plan = run("solo")
    assert plan["kernels"]["finish"] == "gating" and plan["fused"] == {"gate": "finish=gating"}
    assert "gate" not in plan["kernels"] and plan["kernels"]["project"] == "composed"
    assert 0 < np.abs(found - expected).mean() < 2, "levels of 256"
    apart, plan = run("solo", "--kernel", "gate=eager")
    assert plan["kernels"]["finish"] == "composed" and plan["kernels"]["gate"] == "eager" and plan["fused"] == {}
    assert plan["refused"] == [
        {"op": "finish", "name": "gating", "reason": "does gate itself, and gate=eager was named"}
    ]
    assert np.array_equal(apart, expected)


def test_a_gate_that_is_fused_cannot_be_required(capsys, monkeypatch):
    dry = ("run", *SMALL, "--backend", "solo", "--dry-run", "--require")
    code, _, err = cosmos3(capsys, monkeypatch, *dry, "gate=eager")
    assert code == 2 and f"--require gate=eager: {INSIDE}" in err
    assert cosmos3(capsys, monkeypatch, *dry, "finish=gating")[0] == 0


def test_the_kit_judges_it(capsys, monkeypatch, tmp_path):
    record = tmp_path / "solo.json"
    code, _, _ = cosmos3(
        capsys, monkeypatch, "check", "--backend", "solo", "--record", record, "-k", "finish or composites or nano"
    )
    tests = json.loads(record.read_text())["tests"]
    passed = {name for name, test in tests.items() if test["outcome"] == "passed"}
    assert code == 0 and "test_composites_fuse_what_they_say[finish-gating-bfloat16]" in passed
    assert "test_finish_parity[gating-float16-relu2]" in passed
    assert "test_transformer_step_parity[bfloat16-nano]" in passed
