"""Rows of torch's scaled products on a CPU: which floats of 8 bits and which order of scales hipBLASLt gets. torch
is a stand-in with the rules of PyTorch's sources for ROCm, where its own for processors takes anything."""

from __future__ import annotations

from dataclasses import replace

import emulated
import pytest
import torch
from cosmos3_triton.linears import to_fnuz
from emulated import E4M3
from torch.nn.functional import SwizzleType
from vendor_cases import DEVICE, ask, bound, distance, made, row


@pytest.fixture
def hipblaslt(monkeypatch):
    """torch's scaled products as PyTorch's sources have them for ROCm, of the GPU that is played."""
    calls = []

    def scaled_mm(a, b, scale_a, scale_b, bias=None, out_dtype=None, use_fast_accum=False):
        calls.append((a.dtype, out_dtype))
        flavour = E4M3[emulated.DEVICE.arch]
        assert a.dtype == b.dtype == flavour, f"{emulated.DEVICE.arch} multiplies {flavour}, and this is {b.dtype}"
        assert out_dtype == torch.bfloat16, "by rows and outputs, results are in bf16"
        assert b.stride(0) == 1 and scale_a.shape == (len(a), 1) and scale_b.shape == (1, b.shape[1])
        assert scale_a.is_contiguous() and scale_b.is_contiguous() and a.shape[1] % 16 == b.shape[1] % 16 == 0
        y = (a.float() * scale_a) @ (b.float() * scale_b)
        return (y if bias is None else y + bias.float()).to(out_dtype)

    def blocks(a, b, *, scale_a, scale_b, scale_recipe_a, scale_recipe_b, swizzle_a, swizzle_b, output_dtype):
        assert emulated.DEVICE.arch == "gfx950" and a.dtype == b.dtype and swizzle_a == swizzle_b
        calls.append((a.dtype, swizzle_a))
        sides = []
        for side, scale in ((a, scale_a), (b.t(), scale_b)):
            element = "e2m1" if side.dtype == torch.float4_e2m1fn_x2 else "e4m3"
            bits = side if element == "e4m3" else side.view(torch.uint8)
            values = emulated.decode(bits, emulated.ELEMENTS[element])
            assert len(values) % 32 == 0 and values.shape[1] % 128 == 0
            exponents = scale.view(torch.uint8)
            if swizzle_a == SwizzleType.SWIZZLE_32_4_4:
                exponents = unswizzled(exponents, values.shape[1] // 32)[: len(values)]
            assert exponents.shape == (len(values), values.shape[1] // 32)
            sides.append(values * (exponents.float() - 127).exp2().repeat_interleave(32, 1))
        return (sides[0] @ sides[1].T).to(output_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", blocks)
    return calls


def unswizzled(flat: torch.Tensor, blocks: int) -> torch.Tensor:
    """Scales [rows, blocks] from tiles of 128 x 4, of which row r lies at 16 (r % 32) + 4 (r // 32)."""
    columns = -(-blocks // 4)
    tiles = flat.view(-1, columns, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1, 4 * columns)[:, :blocks]


@pytest.mark.parametrize("format", ["fp8", "fp8_tensor", "fp8_static"])
@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "gfx1201"])
def test_a_scaled_product_is_that_of_the_packed_weight(arch, format, hipblaslt, monkeypatch):
    monkeypatch.setattr(emulated.DEVICE, "arch", arch)
    linear, x, exact = made("scaled-mm", format, arch)
    assert distance(linear(x), exact) < bound(format)
    assert hipblaslt == [(E4M3[arch], torch.bfloat16)]


def test_ocp_s_floats_are_gfx942_s_with_twice_the_scale():
    """Of all 256 of them, with -0 and NaN."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    own = to_fnuz(every)
    torch.testing.assert_close(2 * own.float(), every.float(), rtol=0, atol=0, equal_nan=True)
    assert own.view(torch.uint8)[0x80] == 0 and own.isnan().sum() == 2


FAULTS = {
    "unconverted": lambda linear: setattr(linear, "values_OI", linear.values_OI.view(torch.float8_e4m3fn)),
    "without twice the scale": lambda linear: setattr(linear, "scale_O1", linear.scale_O1 / 2),
    "with NaN for -0": lambda linear: linear.values_OI.view(torch.uint8)[5].fill_(0x80),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_ocp_s_bytes_on_gfx942_are_caught(fault, hipblaslt, monkeypatch):
    """By the device's own rule, or by what comes out."""
    monkeypatch.setattr(emulated.DEVICE, "arch", "gfx942")
    linear, x, exact = made("scaled-mm", "fp8", "gfx942")
    FAULTS[fault](linear)
    with pytest.raises(AssertionError):
        assert distance(linear(x), exact) < bound("fp8")


@pytest.mark.parametrize("format", ["mxfp8", "mxfp4"])
@pytest.mark.parametrize(("hip", "how"), [("7.0.1", SwizzleType.NO_SWIZZLE), ("7.13.2", SwizzleType.SWIZZLE_32_4_4)])
def test_scales_of_blocks_lie_as_the_rocm_reads_them(format, hip, how, hipblaslt):
    linear, x, exact = made("block-scaled-mm", format, versions={"torch": "2.11.0", "hip": hip})
    assert distance(linear(x), exact) < bound(format)
    assert [call[1] for call in hipblaslt] == [how]
    linear.swizzled = not linear.swizzled
    with pytest.raises((AssertionError, RuntimeError)):
        assert distance(linear(x), exact) < bound(format), "scales in the other order"


def test_blocks_are_refused_before_rocm_7():
    found, device = row("pack_linear", "block-scaled-mm"), DEVICE["gfx950"]
    old = replace(device, versions={"torch": "2.8.0", "hip": "6.4.4"})
    mx = {"op": "pack_linear", "format": "mxfp8"}
    assert found.refuse(replace(ask(**mx), device=old)) == (
        "hipBLASLt multiplies blocks with scales from ROCm 7.0 on, not in 6.4.4"
    )
    assert found.refuse(ask(**mx)) is None
