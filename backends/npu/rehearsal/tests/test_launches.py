"""How often a layer of the media tower asks the device for an operator, products and copies included."""

from __future__ import annotations

import pytest
import torch
from conftest import CHIP
from cosmos3_npu.plugin import cosmos3_backend, probe

from cosmos3_core.contract import FinishWeights, Layer, ProjectWeights, Residual, Segment
from cosmos3_core.plan import Want, resolve

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, TOKENS = 4, 2, 128, 512, 48
NARROW, WIDE = 768, 12288
"""Numbers in a row of the gate; wide as Nano's."""
LAYER = Layer(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, eps=1e-6, weight_fp32=False, activation="silu")
MX = ("mxfp8", "mxfp4", "mxfp4a8")
LIMIT = {"none": 13, "quantized": 14}
"""What a layer may launch."""
LAUNCHES = {"none": (12, 13), "int8": (13, 14), "w4a16": (12, 13), "w4a16_asym": (12, 13), "int8a16": (12, 13)}
"""For one branch, and for two in one pass, whose keys are joined with the text's."""
if CHIP == "Ascend950":
    LAUNCHES = {"none": (13, 13), "int8": (14, 14), "mxfp4_dual": (17, 17)} | dict.fromkeys(MX, (14, 14))
WITH_WIDE_GATE = {"int8": (14, 15)} if CHIP != "Ascend950" else {}
"""Those that differ: no operator of the 910s makes a gate as wide as Nano's and its rows in int8 at once."""
CASES = [(format, NARROW, counts) for format, counts in LAUNCHES.items()]
CASES += [(format, WIDE, WITH_WIDE_GATE.get(format, LAUNCHES[format])) for format in ("none", "int8")]
if CHIP == "Ascend950":
    CASES += [("none+mxfp8", NARROW, (16, 21))]
"""Behind a plus the attention's format, which quantizes queries, keys and values of each branch by themselves."""
BEYOND = {(arch, "int8", WIDE, 2) for arch in ("Ascend910B", "Ascend910C")}
BEYOND |= {("Ascend950", format, NARROW, branches) for format in ("mxfp4_dual", "none+mxfp8") for branches in (1, 2)}
"""What is over the limit. On the 910s two branches' keys and values are joined by two copies. MXFP4 with two levels has
no operator that makes the rows of a norm or a gate."""


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bfloat16, device="npu") / shape[-1]


def layer(format: str, inner: int, branches: int):
    """A call of a layer of Qwen's kind: its second, whose stream has a delta."""
    format, _, attention = format.partition("+")
    formats = {op: name for op, name in (("pack_linear", format), ("attention", attention)) if name not in ("", "none")}
    want = Want(
        dtype="bfloat16",
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        hidden=HIDDEN,
        inner=inner,
        activation="silu",
        formats=formats,
    )
    ops = resolve(want, cosmos3_backend(), probe()).build_ops()
    norms = ones(HEAD_DIM), ones(HEAD_DIM), None
    qkv = ones((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
    project = ops.project(ProjectWeights(ones(HIDDEN), qkv, *norms), LAYER, ops, format=format)
    matrices = FinishWeights(ones(HIDDEN, HEADS * HEAD_DIM), ones(HIDDEN), ones(2 * inner, HIDDEN), ones(HIDDEN, inner))
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
@pytest.mark.parametrize(("format", "inner", "counts"), CASES)
def test_launches_of_a_layer(launches, format, inner, counts, branches):
    call = layer(format, inner, branches)
    call()  # weights of ones are made once
    launches.clear()
    call()
    made = 4  # the residual stream's: two tensors of ones, divided
    asked = launches.counts.total() - made
    assert not launches.waits
    assert asked == counts[branches - 1], f"{asked}: {dict(launches.counts)}"
    within = asked <= LIMIT["none" if format == "none" else "quantized"]
    assert within is ((CHIP, format, inner, branches) not in BEYOND)
