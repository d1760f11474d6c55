"""FlashAttention-3's helpers at Cosmos3's head width: no spilled register."""

from __future__ import annotations

import pytest
from cosmos3_cuda import fa3

STRIDES = ("i32:16", "i32:16", "i32:16")
BF16, FP32 = "*bf16:16", "*fp32:16"
MERGED = dict(a_ptr=BF16, a_lse_ptr=FP32, b_ptr=BF16, b_lse_ptr=FP32, lse_ptr=FP32, queries="i32", heads="i32")
CASES = {
    "merge": (fa3._merge, MERGED | dict(groups="i32"), dict(mean_ptr=None, D=128, M=32)),
    "merge with a mean": (fa3._merge, MERGED | dict(mean_ptr=FP32, groups="i32"), dict(D=128, M=32)),
    "reach": (
        fa3._reach,
        dict(x_ptr=BF16, strides=STRIDES, most_ptr=FP32, sum_ptr=FP32, length="i32", chunk="i32"),
        dict(D=128, N=32),
    ),
    "scaled": (
        fa3._scaled,
        dict(x_ptr=BF16, strides=STRIDES, mean_ptr=FP32, scale_ptr=FP32, out_ptr="*fp8e4nv:16", length="i32"),
        dict(D=128, N=64),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_spilled(case, compiled):
    kernel, types, constants = CASES[case]
    assert not compiled(kernel, "sm_90", types, constants, num_warps=4).spilled
