"""The embedded model, trained, on the host in every built-in format: its picture stays, as far as the bits go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from command import cosmos3
from PIL import Image

from cosmos3_core.quant import FORMATS

RUNNING = [name for name, format in FORMATS.items() if not format.static]


def least(name: str) -> float:
    """Decibels. Activations in 4 bits lose most; 8 bits of everything, or 5 and more of the weights, lose little."""
    format = FORMATS[name]
    inputs = format.of_inputs
    if inputs is not None and inputs.bits < 8:
        return 14
    return 28 if format.bits > 4 else 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embedded")


@pytest.mark.parametrize("name", RUNNING)
def test_the_embedded_model_in(name, folder, capsys, monkeypatch):
    pictures = []
    for format in (None, name):
        file = folder / f"{format}.png"
        if not file.exists():
            job = ("a red ball", "--model", "embedded", "--backend", "reference", "--size", "128x128", "--frames", 1)
            options = ("--steps", 4, "--seed", 1, "-o", file, *(("--format", format) if format else ()))
            code, _, err = cosmos3(capsys, monkeypatch, "run", *job, *options)
            assert code == 0, err
        pictures.append(np.asarray(Image.open(file)).astype(float))
    mse = np.square(pictures[1] - pictures[0]).mean()
    assert mse > 0 and 10 * math.log10(255**2 / mse) > least(name)
