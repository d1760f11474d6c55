"""The programs in examples/, each in a process of its own on the embedded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from sources import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(tmp_path):
    def call(name: str, *arguments: str) -> list[str]:
        """The lines that it printed."""
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (64, 64, 3) and pixels.std() > 1
    return pixels


def clip(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_step_at_a_time(example, tmp_path):
    lines = example("step_by_step.py", "cup.png")
    assert [line.partition(":")[0] for line in lines] == [f"step {i} of 4" for i in (1, 2, 3, 4)]
    picture(tmp_path / "cup.png")


def test_a_preview_after_every_step(example, tmp_path):
    names = example("preview.py", ".")
    assert names == [f"preview-{i}.png" for i in (1, 2, 3, 4)]
    before, *later = [picture(tmp_path / name) for name in names]
    assert all((after != before).any() for after in later)


def test_half_here_and_half_in_another_process(example, tmp_path):
    assert example("resume.py", "begin", "half.safetensors") == ["step 2 of 4 is in half.safetensors"]
    assert example("resume.py", "go-on", "half.safetensors", "cup.mp4") == ["step 3 of 4", "step 4 of 4"]
    assert clip(tmp_path / "cup.mp4").shape == (9, 64, 64, 3)


def test_a_policy_in_a_closed_loop(example):
    lines = example("closed_loop.py")
    assert [line.partition(":")[0] for line in lines] == [f"chunk {i}" for i in range(5)]
    left = [float(line.split()[5]) for line in lines]
    assert left[0] > 3 * left[-1] and left[-1] < 14, "the agent ends inside the ring"


def test_every_example_is_run():
    here = Path(__file__).read_text()
    assert all(f'"{path.name}"' in here for path in EXAMPLES.glob("*.py"))
