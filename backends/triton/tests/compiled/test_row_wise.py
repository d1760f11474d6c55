"""The row-wise kernels at Cosmos3's sizes: accesses of 16 bytes and no spilled register on any architecture."""

from __future__ import annotations

import re

import pytest
import triton
from cosmos3_triton import row_wise
from cosmos3_triton.tables import table

LAUNCHES = table("sm_90")
PROJECTION = ("*bf16:16", "*bf16:16", "*bf16:16", "i32:16")
CASES = {
    "rms_norm": (
        row_wise._rms_norm,
        dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "z_ptr"), "*bf16:16")
        | dict(x_stride="i32:16", residual_stride="i32:16", eps="fp32"),
        dict(WIDTH=4096, BLOCK=4096, WEIGHT_FP32=False, scales_ptr=None),
        "rms_norm",
    ),
    "norm_rope": (
        row_wise._norm_rope,
        dict(projections=(PROJECTION,), cos_ptr="*bf16:16", sin_ptr="*bf16:16", table_rows="i32", eps="fp32"),
        dict(HEADS=(32,), HALF=64, WEIGHT_FP32=False),
        "norm_rope",
    ),
    "gate": (
        row_wise._gate,
        dict(x_ptr="*bf16:16", y_ptr="*bf16:16", x_stride="i32:16", y_stride="i32:16"),
        dict(WIDTH=12288, BLOCK=LAUNCHES.launch("gate").elements, SILU=True, scales_ptr=None),
        "gate",
    ),
    "norm_silu": (
        row_wise._norm_silu,
        dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "residual_ptr", "y_ptr"), "*bf16:16")
        | dict.fromkeys(("x_stride", "residual_stride", "y_stride"), "i32:16")
        | dict(rows="i32", scale="fp32"),
        dict(WIDTH=256, BLOCK=256, ROWS=LAUNCHES.launch("norm_silu").elements // 256),
        "norm_silu",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_activations_move_in_16_bytes(case, arch, compiled):
    kernel, types, constants, name = CASES[case]
    found = compiled(kernel, arch, types, constants, num_warps=table(arch).launch(name).warps)
    assert not found.spilled
    stores = re.findall(r"\bst\.global\S*", found.ptx)
    assert stores and set(stores) == {"st.global.v4.b32"}
    assert found.ptx.count("ld.global.v4.b32") >= len(stores)


@pytest.mark.parametrize("element", ["i8", "fp8e4nv"])
@pytest.mark.parametrize(("case", "width"), [("rms_norm", 4096), ("rms_norm", 5120), ("gate", 12288), ("gate", 25600)])
def test_a_row_is_quantized_in_registers(case, width, element, arch, compiled):
    """A whole one of Nano's or Super's, in accesses of 16 bytes but for the scale."""
    if element == "fp8e4nv" and arch == "sm_80":
        pytest.skip("has no fp8")
    kernel, types, constants, name = CASES[case]
    types = types | {"y_ptr": f"*{element}:16", "scales_ptr": "*fp32:16"}
    whole = dict(WIDTH=width, BLOCK=triton.next_power_of_2(width))
    constants = {name: value for name, value in constants.items() if name != "scales_ptr"} | whole
    warps = table(arch).launch("gate_rows" if case == "gate" else name).warps
    found = compiled(kernel, arch, types, constants, num_warps=warps)
    assert not found.spilled
    assert set(re.findall(r"\bld\.global\S*", found.ptx)) == {"ld.global.v4.b32"}
    stores = re.findall(r"\bst\.global\S*", found.ptx)
    assert stores.count("st.global.b32") == 1 and set(stores) == {"st.global.b32", "st.global.v4.b32"}
