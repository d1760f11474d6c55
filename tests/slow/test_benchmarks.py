"""Every benchmark runs, at sizes that mean nothing: a GPU is lent for minutes, and none goes to a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "step": "--peer diffusers --model width-1024 --work 64x64x1 --repeats 1 --format pack_linear=int8",
    "quantized": "--model embedded --work 64x64x1 --format int8 --text 16",
    "accuracy": "--model embedded --work 64x64x1 --format pack_linear=int8 --steps 2 --text 16 --sweep --outliers",
    "e2e": "--model embedded --work 64x64x5 --steps 2 --cold-steps 1 --text 16",
    "memory": "--model embedded --job 64x64x5",
    "residency": "--job embedded",
    "formats": "--model embedded --layers 1 --work 64x64x1 --text 16 --format int8",
    "gemm": "--model embedded --rows 16 --formats none int8 --repeats 1",
    "attention": "--queries 64 --text 16 --heads 4 --kv-heads 2 --dtype float32 --repeats 1",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_ends_with_a_result(name, tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name].split(), "--backend", "reference"]
    done = subprocess.run([*command, "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["benchmark"] == name and (found.get("results") or found["jobs"])
