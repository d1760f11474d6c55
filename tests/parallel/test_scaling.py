"""`make test-parallel`: the measurement of 1 to 8 devices, with as many processes on a CPU. No time is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def scaling(*words: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--backend", "reference", "--job", "embedded", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    return done.stdout.splitlines()


def test_the_tables_layouts_are_measured_and_gone_on_with(tmp_path):
    """What there is already is not measured again; all find the bytes that the plan counts."""
    out = tmp_path / "scaling.json"
    scaling("--cards", "1", "2", "--out", str(out))
    before = json.loads(out.read_text("utf-8"))["runs"]
    listed = scaling("--cards", "1", "2", "4", "8", "--list")
    assert len(listed) == 7 and not any("there already" in line for line in listed)
    scaling("--cards", "1", "2", "4", "8", "--out", str(out))
    runs = json.loads(out.read_text("utf-8"))["runs"]
    assert {key: runs[key]["step_s"] for key in before} == {key: run["step_s"] for key, run in before.items()}
    assert set(runs) == {line.split("  ")[0] for line in listed}
    for table in ("cfg=2,hsdp=2", "cfg=2,ulysses=2,hsdp=4", "cfg=2,ulysses=4,hsdp=8"):
        run = runs[f"embedded {table}"]
        assert run["finite"] and len(run["step_peaks"]) == run["cards"] and run["speedup"] > 0
        planned = run["estimated"]["waited_bytes"] + run["estimated"]["beside_bytes"]
        assert 0.96 < max(run["sent_bytes"]) / planned < 1.04
