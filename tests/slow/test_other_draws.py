"""Right kernels pass whatever inputs the kit draws: the fake device's and the guide's, over 20 draws."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import guide
import pytest
from installed import install

from cosmos3_core.testing import ALONE, suite

ROOT = Path(__file__).parents[2]
WITHOUT = ("vae", "transformer", "comm", "memory", "process", "import", "probe", "global", "tensors", "weights_take")
"""Words in the names of tests that draw nothing, or take long to draw it."""


@pytest.mark.parametrize("draw", range(1, 21))
@pytest.mark.parametrize("package", ["fake_device", "guide"])
def test_no_draw_fails_a_right_kernel(tmp_path, package, draw):
    folder = ROOT / "tests" / package
    if package == "guide":
        folder = tmp_path / "acme"
        guide.write(folder)
    install(folder, tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "site", folder, ROOT)))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        suite.__file__,
        "-c",
        ALONE,
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    command += ["-p", "cosmos3_core.testing.plugin", "--backend", "acme", "--draw", draw]
    command += ["-k", f"not ({' or '.join(WITHOUT)})"]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"\d+ passed", done.stdout), done.stdout[-3000:] + done.stderr[-1000:]
