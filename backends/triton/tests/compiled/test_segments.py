"""Segments joined, quantized and added at Cosmos3's head width: no spilled register."""

from __future__ import annotations

import re

import pytest
from cosmos3_triton import segments
from cosmos3_triton.tables import table

ADD = table("sm_90").launch("add_segment")
STRIDES = ("i32:16", "i32:16", "i32:16")
BF16, FP32, FP8 = "*bf16:16", "*fp32:16", "*fp8e4nv:16"
Q8, K8, OUT, V = (
    f"tensordesc<{dtype}[1,{block},1,128]>" for dtype in ("fp8e4nv", "bf16") for block in (ADD.block_m, ADD.block_n)
)
PARTS = dict(x_ptr=BF16, strides=STRIDES, most_ptr=FP32, sum_ptr=FP32)
SCALED = PARTS | dict(out_ptr=FP8, scale_ptr=FP32, mean_ptr=FP32, length="i32")
PRODUCTS = SCALED | dict(against_ptr=FP32, product_ptr=FP32)
WITHOUT = dict(against_ptr=None, product_ptr=None)
SIZES = dict(D=128, N=64, CHUNKS=segments.CHUNKS, RUN=segments.RUN)
JOIN = dict.fromkeys(("k_ptr", "v_ptr", "k_out_ptr", "v_out_ptr"), BF16) | dict.fromkeys(
    ("k_strides", "v_strides"), STRIDES
)
CASES = {
    "join": (
        segments._join,
        JOIN | dict.fromkeys(("length", "first", "total"), "i32"),
        dict(D=128, N=segments.JOINED),
        dict(num_warps=4),
    ),
    "add segment": (
        segments._add_segment,
        dict(q_x=Q8, k_x=K8, v_x=V, out_x=OUT)
        | dict.fromkeys(("lse_ptr", "apart_ptr", "q_scale_ptr", "k_scale_ptr", "mean_ptr"), FP32)
        | dict.fromkeys(("queries", "length", "groups"), "i32")
        | {"scale": "fp32"},
        dict(M=ADD.block_m, N=ADD.block_n, D=128),
        dict(num_warps=ADD.warps, num_stages=ADD.stages),
    ),
    "reach": (segments._reach, PARTS | dict(length="i32", chunk="i32"), dict(D=128, N=32), dict(num_warps=4)),
    "scaled, with products": (segments._scaled, PRODUCTS, SIZES | dict(SHARE=4, CENTRE=False), dict(num_warps=4)),
    "scaled and centred": (segments._scaled, SCALED, SIZES | WITHOUT | dict(SHARE=1, CENTRE=True), dict(num_warps=4)),
}


def test_joining_moves_16_bytes_at_a_time(compiled):
    kernel, types, constants, launch = CASES["join"]
    assert not re.search(r"\b(LDG|STG)\.E\.(?!128)", compiled(kernel, "sm_90", types, constants, **launch).sass)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_spilled(case, compiled):
    kernel, types, constants, launch = CASES[case]
    assert not compiled(kernel, "sm_90", types, constants, **launch).spilled
