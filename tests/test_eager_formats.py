"""Every built-in format on a device without a kernel for it: planned, counted and run by eager torch, which is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import cosmos3
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.quant import FORMATS, bytes_per_weight

RUNNING = [name for name, format in FORMATS.items() if not format.static]
NARROW = [name for name in RUNNING if FORMATS[name].group <= 32 and FORMATS[name].outputs < 2]
"""Those that fit the tiny model, whose widths are 64 and 96."""
SAID = "eager torch makes the layers' weights numbers again in every call: right, and many times slower"


@pytest.fixture
def image(capsys, monkeypatch, tmp_path):
    """A picture of a model on the host: (pixels, manifest)."""

    def run(model: str | Path, size: str, *options) -> tuple[np.ndarray, dict]:
        job = ("--backend", "reference", "--size", size, "--frames", 1, "--steps", 2, "--seed", 3)
        file = tmp_path / "a.png"
        code, _, err = cosmos3(
            capsys, monkeypatch, "run", "a cup", "--model", model, *job, *options, "-o", file, "--overwrite"
        )
        assert code == 0, err
        manifest = json.loads((tmp_path / "a.png.json").read_text())
        assert (SAID in err) == (SAID in str(manifest["notes"])) == ("--format" in options)
        return np.asarray(Image.open(file)).astype(float), manifest

    return run


@pytest.mark.parametrize("name", RUNNING)
def test_a_plan_counts_every_format(name, capsys, monkeypatch):
    def told(*options: str) -> dict:
        code, out, err = cosmos3(capsys, monkeypatch, "plan", "--model", "nano", "--memory", "80", "--json", *options)
        assert code == 0, err
        return json.loads(out)

    plain, quantized = (told("--backend", "reference", *options) for options in ((), ("--format", name)))
    assert quantized["plan"]["kernels"]["pack_linear"] == "eager" and SAID in str(quantized["notes"])
    before, after = (plan["estimate"]["memory"]["weights"]["understanding"] for plan in (plain, quantized))
    assert after / before == pytest.approx(bytes_per_weight(FORMATS[name], 4096) / 2, rel=0.01)


@pytest.mark.parametrize("name", NARROW)
def test_the_tiny_model_runs_in(name, image):
    """And its layers are in the format: the picture is another one."""
    plain, _ = image(TINY_MODEL, "64x64")
    found, manifest = image(TINY_MODEL, "64x64", "--format", name)
    assert manifest["plan"]["formats"] == {"pack_linear": name}
    assert manifest["plan"]["kernels"]["pack_linear"] == "eager"
    assert found.any() and not np.array_equal(found, plain)


def test_the_embedded_model_keeps_its_picture_in_4_bits(image):
    """tests/slow has every format."""
    plain, _ = image("embedded", "128x128")
    found, _ = image("embedded", "128x128", "--format", "w4a16")
    assert 0 < np.sqrt(np.square(found - plain).mean()) < 16
