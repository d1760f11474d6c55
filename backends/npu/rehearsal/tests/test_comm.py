"""Two processes with an NPU each, whose collectives are gloo's: every op of contract.Comm, by the kit's own checks, and
a run that deals out its branches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cosmos3_core.testing.peers import CHECKS
from cosmos3_core.testing.subject import TOLD

TWO = os.environ | {"REHEARSED_COUNT": "2"}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict[str, str]]:
    """What each process says of each check."""
    folder = tmp_path_factory.mktemp("peers")
    command = [sys.executable, "-m", "cosmos3_core.testing.peers", "npu", "torch", str(folder), "2"]
    done = subprocess.run(command, env=TWO, capture_output=True, text=True, timeout=600)
    texts = [(folder / f"{rank}.out").read_text() for rank in range(2)]
    said = [done.stderr, *((folder / f"{rank}.err").read_text() for rank in range(2))]
    assert all(TOLD in text for text in texts), said
    return [dict(line.split(TOLD, 1) for line in text.splitlines() if TOLD in line) for text in texts]


@pytest.mark.parametrize("what", CHECKS)
def test_collectives(told, what):
    """Floats of 8 bits among them, which travel as bytes."""
    assert [one.get(what) for one in told] == ["right", "right"]


def test_two_devices_share_a_run(tmp_path):
    """Collectives are tried out before its first step; what one device computes is what comes out."""
    command = [sys.executable, "-m", "cosmos3", "run", "two green squares", "--model", "embedded", "--backend", "npu"]
    command += ["--task", "t2i", "--steps", "2", "--seed", "1", "--guidance", "3"]
    for name, rest in (("one", []), ("two", ["--parallel", "cfg=2"])):
        out = tmp_path / f"{name}.png"
        done = subprocess.run([*command, *rest, "-o", str(out)], env=TWO, capture_output=True, text=True, timeout=900)
        assert not done.returncode, done.stderr[-2000:]
    manifests = [json.loads((tmp_path / f"{name}.png.json").read_text()) for name in ("one", "two")]
    assert (tmp_path / "one.png").stat().st_size and manifests[1]["plan"]["kernels"]["comm"] == "torch"
