"""Weights made on the device: a tensor's values follow from its name."""

from __future__ import annotations

import torch
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.model.weights import Target, check_names
from cosmos3_core.reference import build_ops


def test_values_do_not_depend_on_what_was_read_before():
    model = describe(TINY_MODEL)
    whole = dict(RandomWeights(model, "cpu").transformer.read(RandomWeights(model, "cpu").raw_names))
    weights = RandomWeights(model, "cpu")
    for name in reversed(whole):
        ((_, again),) = weights.transformer.read([name])
        assert torch.equal(again, whole[name]), name
    norms = [tensor.float() for name, tensor in whole.items() if "norm" in name]
    assert norms and all(abs(tensor.mean() - 1) < 0.1 for tensor in norms)
    assert all(abs(tensor.float().mean()) < 0.1 for name, tensor in whole.items() if "norm" not in name)
    matrices = [tensor for tensor in whole.values() if tensor.ndim > 1]
    assert len({tensor.flatten()[0].item() for tensor in matrices}) > len(matrices) // 2  # not all the same draw


def test_they_are_the_same_in_float32():
    """What bf16 loses can be measured: both dtypes compute with the same weights."""
    ops = build_ops()
    half, full = (
        RandomWeights(describe(TINY_MODEL), "cpu").generation(Target.plain(ops, "cpu", dtype))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert full.dtype == torch.float32
    for a, b in zip(half.layers, full.layers, strict=True):
        assert all(torch.equal(a.tensors()[name].float(), tensor) for name, tensor in b.tensors().items())


def test_they_are_all_that_a_checkpoint_holds():
    model = describe("nano")
    weights = RandomWeights(model, "cpu")
    check_names(
        model.config, {name: (shape, torch.bfloat16) for name, shape in weights.transformer.tensors.items()}, ""
    )
    assert "encoder.conv_in.weight" in weights.vae_files.tensors
