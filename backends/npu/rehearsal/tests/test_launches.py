"""How often a layer of the media tower asks the device for an operator, products and copies included."""

from __future__ import annotations

import pytest
import torch
from conftest import CHIP
from cosmos3_npu.plugin import cosmos3_backend, probe

from cosmos3_core.contract import FinishWeights, Layer, ProjectWeights, Residual, Segment
from cosmos3_core.plan import Want, resolve

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, TOKENS = 4, 2, 128, 512, 768, 5
LAYER = Layer(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, eps=1e-6, weight_fp32=False, activation="silu")
MX = ("mxfp8", "mxfp4", "mxfp4a8")
MOST = {"none": (13, 14), "int8": (15, 16)} if CHIP != "Ascend950" else {"none": (16, 16), "int8": (16, 16)}
"""For one branch, and for two in one pass, whose keys are joined with the text's."""
if CHIP == "Ascend950":
    MOST |= dict.fromkeys(MX, (15, 15))


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bfloat16, device="npu") / shape[-1]


def layer(format: str, branches: int):
    """A call of a layer of Qwen's kind: its second, whose stream has a delta."""
    formats = {} if format == "none" else {"pack_linear": format}
    want = Want(
        dtype="bfloat16",
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        hidden=HIDDEN,
        inner=INNER,
        activation="silu",
        formats=formats,
    )
    ops = resolve(want, cosmos3_backend(), probe()).build_ops()
    norms = ones(HEAD_DIM), ones(HEAD_DIM), None
    qkv = ones((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
    project = ops.project(ProjectWeights(ones(HIDDEN), qkv, *norms), LAYER, ops, format=format)
    matrices = FinishWeights(ones(HIDDEN, HEADS * HEAD_DIM), ones(HIDDEN), ones(2 * INNER, HIDDEN), ones(HIDDEN, INNER))
    finish = ops.finish(matrices, LAYER, ops, format=format)
    rows, text = branches * TOKENS, ones(branches, 3, KV_HEADS, HEAD_DIM)
    table = ones(branches, TOKENS, HEAD_DIM)

    def call() -> torch.Tensor:
        residual = Residual(ones(rows, HIDDEN), ones(rows, HIDDEN))
        q, k, v, _ = project(residual, table, table)
        attended, _ = ops.attention(q, [Segment(text, text, static=True), Segment(k, v)])
        finish(residual, attended)
        return residual.x_MI

    return call


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("format", MOST)
def test_launches_of_a_layer(launches, format, branches):
    call = layer(format, branches)
    call()  # weights of ones are made once
    launches.clear()
    call()
    made = 4  # the residual stream's: two tensors of ones, divided
    asked = launches.counts.total() - made
    assert not launches.waits
    most = MOST[format][branches - 1]
    assert asked == most, f"{asked}: {dict(launches.counts)}"
