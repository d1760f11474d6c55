"""Triton's attention against the reference, on the kit's cases with fewer heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cosmos3_triton.attention import Flash
from cosmos3_triton.attention_8bit import build_fp8, build_int8, rotation
from cosmos3_triton.tables import table

from cosmos3_core.quant import FORMATS
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases
from cosmos3_core.testing.suite.attention import CALLS

CASES = [replace(case, heads=case.heads // 8, kv_heads=2, queries=min(case.queries, 70)) for case in CALLS]
CASES = [replace(case, lengths=(case.queries,) if case.causal else case.lengths) for case in CASES]
BY_ID = {case.id.partition("-")[2]: case for case in reversed(CASES)}
RAGGED = BY_ID["ragged"]


def each(values):
    return pytest.mark.parametrize("case", values, ids=lambda case: case.id)


def check(op, case, dtype, allowed=0.0):
    exact, lse, eager = case.expected(dtype)
    out, found = op(*case.inputs(dtype), causal=case.causal, want_lse=True)
    cases.check(out, exact, eager, dtype, allowed)
    torch.testing.assert_close(found, lse.float(), rtol=0, atol=cases.LSE_ABSOLUTE + allowed)


@each(CASES)
def test_flash(case):
    check(Flash(table("sm_90")), case, "float32")


@each([RAGGED, BY_ID["causal"]])
def test_flash_through_pointers(case):
    """As before sm_90, where there is no copy engine that takes descriptors."""
    check(Flash(table("sm_80")), case, "bfloat16")


@each([BY_ID[name] for name in ("ragged", "one_key", "batch2", "values50x", "causal")])
def test_int8(case):
    check(build_int8(table("sm_90")), case, "bfloat16", 4 * cases.allowed(FORMATS["int8"]))


@pytest.mark.parametrize("op", [Flash(table("sm_90")), build_int8(table("sm_90"))], ids=["flash", "int8"])
def test_the_log_sum_exp_is_given_when_asked_for(op):
    inputs = BY_ID["one_key"].inputs("bfloat16")
    (out, lse), (plain, none) = op(*inputs, want_lse=True), op(*inputs)
    assert torch.equal(plain, out) and lse is not None and none is None


def test_int8_through_pointers():
    check(build_int8(table("sm_80")), RAGGED, "bfloat16", 4 * cases.allowed(FORMATS["int8"]))


FNUZ = replace(table("sm_80"), arch="gfx942")
"""Of an architecture with an e4m3 of its own."""


@pytest.mark.parametrize(("of", "int8"), [(table("sm_90"), True), (table("sm_100"), False), (FNUZ, False)])
def test_fp8(of, int8):
    """With keys in int8, and in FP8."""
    check(build_fp8(of, int8=int8), RAGGED, "bfloat16", 4 * cases.allowed(FORMATS["fp8"]))


def skewed(kind: str):
    """q and segments, text before media, with what makes 8 bits hard."""
    q, [text, media] = replace(RAGGED, lengths=(40, 300)).inputs("float32")
    (k0, v0), (k1, v1) = ([x.clone() for x in segment] for segment in (text, media))
    if kind == "an offset in the media's keys":
        k1 = k1 + 8 * cases.normal(1, 1, 2, 128, seed=5)
    elif kind == "large channels of queries and keys":
        large = torch.ones(128)
        large[[3, 77]] = torch.tensor([6.0, 5.0])
        q, k0, k1 = q * large / 2, k0 * large, k1 * large
    else:
        v0, v1 = v0 * 30, v1 * torch.linspace(0.1, 10, 128)
    return q, [(k0, v0), (k1, v1)]


@pytest.mark.parametrize(
    "kind",
    ["an offset in the media's keys", "large channels of queries and keys", "ranges that differ"],
)
def test_int8_holds_on_skewed_inputs(kind):
    """As accurate as on normally distributed ones."""
    q, segments = skewed(kind)
    exact, lse = reference.attention(q.double(), cases.wider(segments, torch.float64), want_lse=True)
    out, found = build_int8(table("sm_90"))(q, segments, want_lse=True)
    assert cases.Loss.of(out, exact).whole < 0.03
    assert float((found - lse).abs().max()) < 0.15


def test_int8_survives_blocks_of_very_different_scores():
    """The largest weight of a block is up to 2**±400 of the next block's: nothing overflows, and the right one wins."""
    q, k, v = torch.ones(1, 1, 2, 128), torch.ones(1, 384, 1, 128), cases.normal(1, 384, 1, 128, seed=1)
    for order in ([-24.0, 0.0, 24.0], [24.0, 0.0, -24.0], [0.0, 24.0, -24.0]):
        keys = k * torch.tensor(order).repeat_interleave(128).view(1, 384, 1, 1)
        exact, lse = reference.attention(q, [(keys, v)], want_lse=True)
        out, found = build_int8(table("sm_90"))(q, [(keys, v)], want_lse=True)
        assert cases.Loss.of(out, exact).whole < 0.05
        torch.testing.assert_close(found, lse, rtol=0.02, atol=0)


def test_rotation_is_orthogonal():
    matrix = rotation(128, torch.float32, torch.device("cpu"))
    assert torch.equal(matrix @ matrix.T, 128 * torch.eye(128))


def test_what_rounding_values_loses_averages_out():
    """In each channel the mean error over many keys is that of independent errors, though the inputs are bf16."""
    count = 4096
    v = (1.5 + 0.25 * cases.normal(1, count, 1, 128, seed=1)).bfloat16()
    _, v8_BKDT, channel_BK4D = build_int8(table("sm_90")).quantize(v, v)
    _, _, mean_D, scale_D = channel_BK4D[0, 0]
    in_order = v8_BKDT[0, 0].float().view(128, -1, 4, 2, 2).transpose(-3, -2).reshape(128, -1)
    error = in_order[:, :count].T * scale_D + mean_D - v[0, :, 0].float()
    assert float(error.norm() / (v.float() - 1.5).norm()) < 0.02
    independent = error.std(dim=0) / count**0.5
    assert float((error.mean(dim=0) / independent).square().mean().sqrt()) < 1.3
