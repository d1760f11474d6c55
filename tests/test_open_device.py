"""A device registered with torch as PrivateUse1, of which torch.accelerator knows no more than the name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from installed import install
from PIL import Image
from tiny_model import TINY_MODEL

OPEN = Path(__file__).parent / "open_device"
SILENT = """
import pytest, torch
from cosmos3_core.plan import discovery

discovery.probe(discovery.load("open"))
assert torch.accelerator.current_accelerator().type == "opendev"
for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "empty_cache", "synchronize"):
    with pytest.raises(RuntimeError):
        getattr(torch.accelerator, name)()
for call in (lambda: torch.empty(3, pin_memory=True), lambda: torch.Generator("opendev")):
    with pytest.raises(NotImplementedError):
        call()
x = torch.arange(6.0, device="opendev").view(2, 3)
assert x.device.type == "opendev" and (x @ x.T).cpu().tolist() == [[5, 14], [14, 50]]
with pytest.raises(RuntimeError, match="one is on cpu"):
    x + torch.ones(2, 3)
"""


@pytest.fixture
def process(tmp_path):
    """Runs Python in a process of its own, where the device is installed. There it is registered for good."""
    install(OPEN, tmp_path / "site")
    path = os.pathsep.join(map(str, (tmp_path / "site", OPEN)))

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def cosmos3(process):
    return lambda *arguments: process("-m", "cosmos3", *arguments)


def test_torch_answers_nothing_about_the_device(process):
    done = process("-c", SILENT)
    assert done.returncode == 0, done.stderr


def test_both_towers_run_on_it(cosmos3):
    done = cosmos3("check", "--backend", "open", "-k", "transformer_step_parity")
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout + done.stderr


def test_its_own_memory_and_a_second_device_are_judged(cosmos3, monkeypatch):
    """With two devices there is a row whose results are always on the first."""
    monkeypatch.setenv("OPEN_DEVICES", "2")
    done = cosmos3(
        "check", "--backend", "open", "-k", "test_memory and counted or test_memory_is_returned or second_dev"
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert done.returncode == 1 and len(failed) == 1, done.stdout + done.stderr
    assert "[gate-on_the_first]: gate=on_the_first: inputs are on opendev:1, and a result is on opendev:0" in failed[0]


def test_random_weights_are_drawn_on_the_host_for_it(cosmos3):
    """It has no generator of its own."""
    done = cosmos3("warmup", "--backend", "open", "--model", TINY_MODEL, "--size", "64x64", "--frames", 1)
    assert done.returncode == 0 and "steps" in done.stdout, done.stderr


def test_an_image_is_the_reference_s_bit_for_bit(cosmos3, tmp_path):
    """With weights that lie on the host, and come to the device layer by layer."""
    job = ("a cup", "--model", TINY_MODEL, "--size", "64x64", "--steps", 4, "--seed", 1)
    for name in ("reference", "open"):
        # The reference computes a part in float32 where the processor takes long for 16 bits.
        place = ("--enable-layerwise-offload",) if name == "open" else ()
        done = cosmos3("run", *job, *place, "--dtype", "float32", "--backend", name, "-o", f"{name}.png")
        assert done.returncode == 0, done.stderr
    reference, found = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("reference", "open"))
    assert found.shape == (64, 64, 3) and found.std() > 1 and np.array_equal(found, reference)
    manifest = json.loads((tmp_path / "open.png.json").read_text())
    assert manifest["plan"]["kernels"]["memory"] == "counted"
    peak = manifest["peak_device_memory_bytes"]["allocated"]
    assert 10**6 < peak < 10**8, "a stage's weights and its activations"
