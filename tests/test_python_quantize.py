"""`cosmos3.quantize`: the command's other half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import cosmos3 as command
from tiny_model import TINY_MODEL

import cosmos3

SMALL = {"backend": "reference", "size": (64, 64), "steps": 1, "frames": 1}


def test_the_same_as_the_command_line(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("waves\na cup\n")
    Path("policy.toml").write_text('keep = ["*.down_proj"]\nkeep_first_layers = 0\n')
    told: list[tuple[str, int, int]] = []
    said = cosmos3.quantize(
        TINY_MODEL,
        Path("out"),
        format="fp8_static",
        policy={"keep": ["*.down_proj"], "keep_first_layers": 0},
        calibrate=["waves", "a cup"],
        progress=lambda *one: told.append(one),
        **SMALL,
    )
    typed = ("--backend", "reference", "--set", "size=64x64", "--set", "steps=1", "--set", "frames=1", "--json", "-q")
    named = ("--model", TINY_MODEL, "--format", "fp8_static", "--policy", "policy.toml")
    code, out, _ = command(capsys, monkeypatch, "quantize", *named, "--calibrate", "prompts.txt", *typed, "-o", "typed")
    assert code == 0 and json.loads(out) | {"output": "out"} == said
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert Path("out", name).read_bytes() == Path("typed", name).read_bytes()
    first, second = (Path(f"{folder}.calibration.safetensors").read_bytes() for folder in ("out", "typed"))
    assert first == second and ("calibration", 2, 2) in told and told[-1] == ("reading it back", 0, 1)
    assert cosmos3.load("out", backend="reference").plan("waves", size="64x64", frames=1, steps=1).fits


def test_a_sweep(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    swept: dict[str, Any] = {"sweep": "made.toml", "calibrate": ["waves"], **SMALL}
    said = cosmos3.quantize(TINY_MODEL, format="int8", keep_share=0.3, **swept)
    kept = [module for group in said["groups"] if group["kept"] for module in group["modules"]]
    made = cosmos3.quantize(TINY_MODEL, "out", format="int8", policy="made.toml")
    assert kept and not set(kept) & set(made["quantized"]) and said["error"] < said["error_of_all"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "`output` and `sweep`: neither is given"),
    ({"output": "out", "sweep": "p.toml"}, "both are given"),
    ({"output": "out", "format": "fp9"}, "`format` fp9: cosmos3 quantize knows no such format"),
    ({"output": "out", "format": 8}, "format = 8: it is not text"),
    ({"output": "out", "method": "gtpq"}, "`method` gtpq: there is no such method. Did you mean gptq?"),
    ({"output": "out", "format": "w4a16", "group": "16"}, "group = '16': it is no whole number"),
    ({"output": "out", "policy": {"kep": []}}, "`policy`: unknown key kep. Did you mean keep?"),
    ({"output": "out", "format": "fp8_static"}, "Add `calibrate` with a file of prompts"),
    ({"output": "out", "format": "fp8_static", "calibrate": []}, "`calibrate`: it has no prompt"),
    ({"output": "out", "format": "fp8_static", "calibrate": ["a", 3]}, "`calibrate`: 3 is no prompt"),
    ({"output": "out", "steps": 3}, "`steps`: nothing is run"),
    ({"output": "out", "overwrite": 1}, "it is a switch"),
    ({"output": "out", "progress": print, "keep_share": 0.1}, "`keep_share` 0.1: nothing is measured"),
    ({"sweep": "p.toml", "keep_share": "0.1", "calibrate": ["a"]}, "keep_share = '0.1': it is no number"),
    ({"output": "out", "format": "fp8_static", "calibrate": ["a"], "stepz": 1}, "Did you mean steps?"),
]


@pytest.mark.parametrize(("arguments", "found"), WRONG, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_wrong_calls(arguments, found: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cosmos3.InputError) as caught:
        cosmos3.quantize(TINY_MODEL, **{"format": "fp8"} | arguments)
    assert found in str(caught.value) and not list(tmp_path.iterdir())
