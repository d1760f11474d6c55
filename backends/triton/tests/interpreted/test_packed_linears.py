"""Weights as checkpoints pack them, against what eager torch makes of them, on shapes that fill no tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cosmos3_triton import linears, weight_only
from cosmos3_triton.activations import quantize_rows
from cosmos3_triton.rounding import round_trip
from cosmos3_triton.rows import EIGHT_BITS, ROUNDED, WEIGHT_ONLY
from cosmos3_triton.tables import Launch, Table
from cosmos3_triton.weight_only import Stored

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.joining import join
from cosmos3_core.quant.numerics import Packed, fake_quant_input, multiply, unpack
from cosmos3_core.testing import cases

TILE = Launch(block_m=16, block_n=64, warps=4, stages=2, rows=64)
SCALED = Launch(block_m=16, block_n=64, block_k=64, warps=4, stages=2)
OUT, WIDTH = 50, 160
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return cases.normal(*shape, seed=seed).bfloat16()


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def weight(name: str, out: int = OUT, width: int = WIDTH, seed: int = 1, **changes) -> Packed:
    """A weight in the format, or with `changes` to it. A row of it is small, and one in part zeros."""
    format = replace(FORMATS[name], **changes)
    if format.group > 32 and "group" not in changes:
        format = replace(format, group=32, outputs=10 if format.outputs > 1 else 1)
    plain = cases.normal(out, width, seed=seed) / width**0.5
    plain[3] *= 1e-3
    plain[7, :32] = 0
    return cases.packed(plain, format)


def in_halves(packed: Packed, other: Packed) -> Packed:
    """What becomes of q and k that were packed apart."""
    return join([packed, other])


def shuffled(packed: Packed) -> Packed:
    return replace(packed, order=torch.randperm(packed.shape[1], generator=torch.Generator().manual_seed(2)))


WEIGHTS = {name: weight(name) for name in dict.fromkeys((*WEIGHT_ONLY, *ROUNDED))} | {
    "w4a16, groups of 96": weight("w4a16", width=192, group=96),
    "w4a16_asym, groups of 192": weight("w4a16_asym", width=192, group=192),
    "w4a16, whole rows": weight("w4a16", group=0),
    "w4a16_asym, whole rows": weight("w4a16_asym", group=0),
    "w4a16, act-order": shuffled(weight("w4a16")),
    "w4a16, scales in bf16": replace(weight("w4a16"), scales=weight("w4a16").scales.bfloat16()),
    "nvfp4a16, joined": in_halves(weight("nvfp4a16"), weight("nvfp4a16", seed=5)),
    "fp8_static, joined": in_halves(weight("fp8_static"), weight("fp8_static", seed=5)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_copy_in_16_bits_is_the_reference_rounded_once(name):
    packed = WEIGHTS[name]
    for dtype in (torch.bfloat16, *([torch.float16] if name in ("mxfp8", "nvfp4a16", "w4a16_asym") else [])):
        assert torch.equal(weight_only.dequantize(Stored.of(packed), dtype), unpack(packed).to(dtype))


@pytest.mark.parametrize(("name", "turn"), [(name, i % 3) for i, name in enumerate(WEIGHTS)])
def test_products_are_those_of_eager_torch(name, turn):
    """In one part or in several."""
    packed = WEIGHTS[name]
    x, bias = normal(17, packed.shape[1], seed=3), normal(len(packed.values), seed=4)
    table = Table(("sm_80", "sm_90", "sm_80")[turn], {"a16_mm": (replace(TILE, split=(1, 2, 5)[turn]),)})
    linear = linears.build_a16(table)(packed, bias, format=packed.format.name)
    assert relative(linear(x), multiply(x, packed, bias)) < 5e-3


@pytest.mark.parametrize("name", ["w4a16, act-order", "fp8_static, joined"])
def test_products_with_a_copy_are_those_of_eager_torch(name):
    packed, x = WEIGHTS[name], normal(17, WIDTH, seed=3)
    table = Table("sm_90", {"a16_mm": (replace(TILE, rows=16),)})
    for build in (linears.build_a16, linears.build_dequantized):
        assert relative(build(table)(packed, None, format=packed.format.name)(x), multiply(x, packed)) < 5e-3


@pytest.mark.parametrize("name", ["mxfp8", "int8a16"])
def test_codes_that_16_bits_hold_are_not_rounded(name):
    """All that is left is the sum's own rounding."""
    packed, x = WEIGHTS[name], normal(1, WIDTH, seed=3)
    y = linears.build_a16(Table("sm_90", {"a16_mm": (TILE,)}))(packed, None, format=name)(x)
    exact = fake_quant_input(x, packed.format).double() @ unpack(packed).double().T
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)


def test_rows_may_lie_apart_and_be_none():
    packed, wide = WEIGHTS["mxfp8"], normal(9, 2 * WIDTH, seed=6)
    linear = linears.build_a16(Table("sm_90", {"a16_mm": (TILE,)}))(packed, None, format="mxfp8")
    assert torch.equal(linear(wide[:, :WIDTH]), linear(wide[:, :WIDTH].clone()))
    scaled = linears.build_scaled_mm(Table("sm_90", {"scaled_mm": (SCALED,)}))
    for empty in (linear, scaled(weight("fp8", out=64), None, format="fp8")):
        assert empty(wide[:0, :WIDTH]).shape == (0, OUT if empty is linear else 64)


@pytest.mark.parametrize("name", [name for name in ROUNDED if name not in ("fp8_tensor", "w4a8", "w4afp8", "mxfp4a8")])
def test_activations_after_a_round_trip_are_the_reference_but_for_ties(name):
    """Large, small, zero and broken ones."""
    packed, x = WEIGHTS[name], normal(35, 320, seed=7)[:, :WIDTH]
    x[0] *= 1e-3
    x[1] *= 300
    x[2] = 0
    expected = fake_quant_input(x, packed.format, packed.input_scale)
    found = round_trip(x, packed.format, packed.input_scale)
    assert found.dtype == x.dtype and found.is_contiguous()
    assert float((found != expected).float().mean()) < 2e-3 and relative(found, expected) < 1e-2
    if not packed.format.static:  # a tensor's own scale is broken with it
        for bad in (float("nan"), float("inf")):
            x[5, 3] = bad
            assert round_trip(x, packed.format)[5, 3].isnan()


def test_without_a_format_activations_stay():
    x = normal(3, 32, seed=8)
    assert round_trip(x, FORMATS["w4a16"]) is x


@pytest.mark.parametrize("name", [name for name in EIGHT_BITS if FORMATS[name].static])
def test_rows_by_a_stored_scale(name):
    """What is larger saturates, as in eager torch, and NaN stays."""
    x, given = normal(9, 96, seed=9), torch.tensor(0.01)
    x[0] *= 1e4
    found = quantize_rows(x, name, given)
    expected = fake_quant_input(x, FORMATS[name], given)
    values = found.values_MI.float() * found.scale_M1
    assert torch.equal(found.scale_M1, given.expand(9, 1)) and relative(values[1:], expected[1:]) < 3e-3
    torch.testing.assert_close(values[0].bfloat16(), expected[0])
    x[4, 5] = float("nan")
    found = quantize_rows(x, name, given)
    assert (found.values_MI.float() * found.scale_M1).isnan().any(1).tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize("name", [*EIGHT_BITS, "fp8_static, joined"])
def test_products_in_8_bits_are_those_of_eager_torch(name):
    name, _, joined = name.partition(", ")
    packed = weight(name, out=48)
    packed = in_halves(packed, weight(name, out=32, seed=5)) if joined else packed
    x, bias = normal(17, WIDTH, seed=3), normal(len(packed.values), seed=4)
    linear = linears.build_scaled_mm(Table("sm_90", {"scaled_mm": (SCALED,)}))(packed, bias, format=name)
    assert relative(linear(x), multiply(x, packed, bias)) < 5e-3
    named = linear.tensors()
    assert named["values"].data_ptr() == packed.values.data_ptr() and ("input_scale" in named) == ("static" in name)
    own = linears.build_scaled_mm(Table("gfx942", {"scaled_mm": (SCALED,)}))(packed, bias, format=name)
    assert torch.equal(own(x), linear(x)), "e4m3fnuz has the same codes, for half of what e4m3's mean"


def test_a_weight_in_another_format_or_without_its_scale_is_none_of_this_row():
    for build in (linears.build_a16, linears.build_scaled_mm):
        with pytest.raises(ValueError, match="fp8_static needs the stored scale of its activations"):
            build(Table("sm_90", {}))(normal(64, 64, seed=1), None, format="fp8_static")
        with pytest.raises(ValueError, match="a weight in fp8 is asked for in int8"):
            build(Table("sm_90", {}))(weight("fp8", out=64), None, format="int8")
