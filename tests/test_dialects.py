"""Quantized checkpoints that the packages wrote (scripts/dialect_fixtures.py): read bit for bit, fused exactly, run as
they are, and described in plan and manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dialect_files import LISTING, checkpoint

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.tensors import tensor_digest
from cosmos3_core.quant.numerics import unpack


@pytest.mark.parametrize("name", LISTING)
def test_weights_are_read_as_their_package_reads_them(name: str, tmp_path: Path) -> None:
    weights = Weights(open_model(str(checkpoint(name, tmp_path / "model"))))
    found = dict(weights.quantized.weights(weights.quantized.layouts))
    assert found.keys() == LISTING[name]["modules"].keys()
    for module, (dtype, digest) in LISTING[name]["modules"].items():
        mine = unpack(found[module]).to(getattr(torch, dtype))
        assert tensor_digest(mine + 0) == digest, module


def test_parts_of_one_matrix_become_one_exactly(tmp_path: Path) -> None:
    """q, k and v with a scale each."""
    weights = Weights(open_model(str(checkpoint("modelopt-fp8", tmp_path / "model"))))
    modules = [f"layers.1.self_attn.add_{x}_proj" for x in "qkv"]
    apart = dict(weights.quantized.weights(modules))
    assert len({apart[m].scales.item() for m in modules}) == 3
    (fused,) = weights.quantized.matrices([modules], "cpu", torch.bfloat16)
    assert fused.shape == (128, 64) and fused.scales.shape == (128, 1)
    assert torch.equal(unpack(fused), torch.cat([unpack(apart[m]) for m in modules]))


def test_plan_and_run_say_that_no_device_runs_it(tmp_path: Path, run: Callable) -> None:
    folder = checkpoint("modelopt-fp8", tmp_path / "model")
    code, _, err = run("waves", "--model", folder, "--dry-run")
    assert code == 2 and "its weights are in fp8_static (modelopt), and no device has kernels for weights" in err
