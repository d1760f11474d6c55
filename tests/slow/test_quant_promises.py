"""What every quantization format promises: how far an element may be off, what becomes of what is not finite, the same
codes from any dtype, layout and number of rows at once, and products of what the packed parts stand for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from cosmos3_core.quant import FORMATS, Element, Format, bytes_per_weight, error_bound, numerics
from cosmos3_core.quant.codes import from_bytes
from cosmos3_core.quant.formats import Exponent
from cosmos3_core.quant.numerics import fake_quant, fake_quant_input, multiply, pack, unpack

EVERY = pytest.mark.parametrize("name", FORMATS)


def adversarial(rows: int, width: int, seed: int) -> list[torch.Tensor]:
    """fp32 weights that are hard to round: heavy tails, ties, one sign, both extremes, powers of two, sparse ones."""
    stream = torch.Generator().manual_seed(seed)
    normal, other = (torch.randn(rows, width, generator=stream) for _ in range(2))
    uniform, signs = torch.rand(rows, width, generator=stream), torch.where(other > 0, 1.0, -1.0)
    binade = uniform.clone()
    binade[:, ::16] = 1 + torch.rand(rows, 1, generator=stream)
    return [
        normal,
        normal / other.abs().clamp_min(0.01),
        normal.abs() + 1,
        -normal.abs() - 0.1,
        torch.randint(-32, 33, (rows, width), generator=stream) / 2,
        signs * (1 + 0.01 * uniform),
        signs * 2.0 ** torch.randint(-6, 1, (rows, width), generator=stream),
        torch.where(uniform > 0.9, signs, 0.0),
        binade,
    ]


def shares(x: torch.Tensor, format: Format) -> torch.Tensor:
    """For each element the largest magnitude among those that share its coarsest scale."""
    if not format.outputs:
        return x.abs().max().expand(x.shape)
    rows, width = format.outputs, format.super_group or format.group or x.shape[1]
    blocks = x.abs().unflatten(1, (-1, width)).unflatten(0, (-1, rows))
    return blocks.amax((1, 3), keepdim=True).expand_as(blocks).reshape(x.shape)


E2M3 = Element(
    bits=6,
    most=7.5,
    top=2,
    mantissa=3,
    values=tuple(
        sign * size * number / 8
        for sign in (1.0, -1.0)
        for size, least in ((1, 0), (1, 8), (2, 8), (4, 8))
        for number in range(least, least + 8)
    ),
)  # OCP MX v1.0, 5.3.2
VARIANTS = [
    *(replace(FORMATS[name], exponent=rule) for name in ("mxfp8", "mxfp4") for rule in ("ceil", "even", "rceil")),
    *(
        replace(FORMATS["mxfp8"], element=name, exponent=rule)
        for name in ("int8", "int4")
        for rule in get_args(Exponent)
    ),
    *(replace(FORMATS["mxfp8"], element="e2m3", own_element=E2M3, exponent=rule) for rule in get_args(Exponent)),
    *(replace(FORMATS[name], scale=scale) for name in ("w4a16", "w4a16_asym", "int8") for scale in ("fp16", "bf16")),
    replace(FORMATS["w4a16"], scale="e4m3", group=16, tensor_scale=True),
    replace(FORMATS["q4_0"], packer=""),
    replace(FORMATS["q5_1"], packer="", scale="bf16"),
]


@pytest.mark.parametrize(
    "format",
    [*FORMATS.values(), *VARIANTS],
    ids=lambda format: f"{format.name}-{format.element}-{format.scale}-{format.exponent}",
)
def test_error_bound(format):
    """No element is further off than the bound, and the bound is not far from the worst of them."""
    worst = 0.0
    for x in (x for seed in range(3) for x in adversarial(128, 512, seed)):
        largest = shares(x, format)
        error = (unpack(pack(x, format, weight=True)) - x).abs()
        worst = max(worst, float((error / largest.clamp_min(1e-30)).max()))
    assert worst <= error_bound(format) + 1e-6
    assert error_bound(format) < 1.6 * worst


def test_an_element_of_ones_own():
    """MXFP6 with e2m3, which no row has: its sixty-four codes are in order and stand for what they say."""
    format = replace(FORMATS["mxfp8"], name="mxfp6", element="e2m3", own_element=E2M3)
    numbers = torch.tensor(E2M3.values).view(2, 32)
    packed = pack(numbers, format)
    assert packed.scales.tolist() == [[127], [127]] and packed.shape == (2, 32)
    assert from_bytes(packed.values, 6).flatten().tolist() == list(range(64))
    assert torch.equal(unpack(packed), numbers) and bytes_per_weight(format, 64) == 6.25 / 8
    between = torch.tensor([[7.0, 7.25, 6.75, 0.0625, 0.1875, -0.0625, *[0.0] * 26]])
    assert unpack(pack(between, format))[0, :6].tolist() == [7.0, 7.0, 7.0, 0.0, 0.25, 0.0]


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(name, bad):
    """Its block is NaN, whatever else is in it, and the others are as they were."""
    format = FORMATS[name]
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(6))
    whole, x[1, 70] = unpack(pack(x, format)), bad
    found, width = unpack(pack(x, format)), format.super_group or format.group or 512
    if format.tensor_scale or format.static:
        assert found.isnan().all()
        return
    start = 70 // width * width
    assert found[1, start : start + width].isnan().all()
    found[1, start : start + width] = whole[1, start : start + width]
    assert torch.equal(found, whole)


@pytest.mark.parametrize("format", [FORMATS["fp8_static"], replace(FORMATS["int8"], static=True), FORMATS["nvfp4"]])
def test_what_is_not_finite_by_a_stored_scale(format):
    """A NaN makes all of them NaN, an infinity saturates."""
    x, scale = torch.ones(2, 32), torch.tensor(0.01)
    x[0, 1] = math.inf
    found = fake_quant(x, format, input_scale=scale)
    most = format.of_elements.most * (448 if format.tensor_scale else 1)
    assert found.isfinite().all() and found[0, 1].item() == pytest.approx(0.01 * most)
    x[1, 3] = math.nan
    assert fake_quant(x, format, input_scale=scale).isnan().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_are_packed_as_they_are_in_fp32(name, dtype):
    """But for Ascend's, which divides in between and rounds to the input's dtype."""
    x = torch.randn(128, 512, generator=torch.Generator().manual_seed(7)).to(dtype)
    for weight in (False, True):
        narrow, wide = (pack(t, FORMATS[name], weight=weight).tensors() for t in (x, x.float()))
        for part, found in narrow.items():
            if name != "mxfp4_dual" or part == "super_scales":
                assert torch.equal(*(t.view(torch.uint8) if t.dtype.itemsize == 1 else t for t in (found, wide[part])))


@EVERY
def test_layouts_and_axes(name):
    """Strided inputs and activations with more axes are packed as rows are."""
    x = torch.randn(6, 4, 512, generator=torch.Generator().manual_seed(8))
    rows, found = pack(x.view(24, 512), FORMATS[name]), pack(x, FORMATS[name])
    assert found.shape == x.shape and torch.equal(unpack(found), unpack(rows).view(x.shape))
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous() and torch.equal(unpack(pack(strided, FORMATS[name])), unpack(found))
    wide = torch.cat((x, x), -1).view(24, 1024)
    assert torch.equal(unpack(pack(wide[:, :512], FORMATS[name])), unpack(rows))


@EVERY
def test_subnormal_numbers(name):
    """What fp32 holds with fewer bits is near itself or 0, of either sign, and its block is finite."""
    sizes = 2.0 ** torch.arange(-149, -125).repeat(24)[:512]
    x = torch.stack((sizes, -sizes, sizes.flip(0)))
    found = fake_quant(x, FORMATS[name])
    assert found.isfinite().all() and bool((found.sign() * x.sign() >= 0).all() or FORMATS[name].minima)
    assert float((found - x).abs().max()) <= 2.0**-126


@EVERY
@pytest.mark.parametrize("shape", [(0, 512), (2, 0, 512)])
def test_no_rows_at_all(name, shape):
    """As a segment without tokens has."""
    format, x = FORMATS[name], torch.zeros(shape)
    assert fake_quant(x, format).shape == shape
    weight = pack(torch.ones(128, 512), format, weight=True, input_scale=torch.tensor(1.0))
    assert multiply(x, weight).shape == (*shape[:-1], 128)


@EVERY
def test_a_large_weight_is_packed_and_read_in_parts(name, monkeypatch):
    """Scales that rows share are not cut."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(9))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(10))
    whole = pack(weight, FORMATS[name], weight=True, input_scale=torch.tensor(0.01))
    product, meant = multiply(x, whole), unpack(whole)
    for name_of_size in ("AT_ONCE", "HOST_AT_ONCE"):
        monkeypatch.setattr(numerics, name_of_size, 3000)
    parts = pack(weight, FORMATS[name], weight=True, input_scale=torch.tensor(0.01))
    for part, found in parts.tensors().items():
        assert torch.equal(
            *(t.view(torch.uint8) if t.dtype.itemsize == 1 else t for t in (found, getattr(whole, part)))
        )
    assert torch.equal(unpack(parts), meant)
    torch.testing.assert_close(multiply(x, parts), product, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"q4_k", "q6_k"}))
def test_packing_again_gives_the_same_codes(name):
    """pack(unpack(p)) is p, but for the last bit of an fp32 scale. Not so of super blocks, whose largest element need
    not have the largest code."""
    weight = torch.randn(128, 512, generator=torch.Generator().manual_seed(11)) + 0.1
    first = pack(weight, FORMATS[name], weight=True)
    again = pack(unpack(first), FORMATS[name], weight=True)
    assert again.tensors().keys() == first.tensors().keys()
    for part, expected in first.tensors().items():
        torch.testing.assert_close(
            getattr(again, part).float(), expected.float(), rtol=3e-7 * (part != "values"), atol=0
        )


# Products ------------------------------------------------------------------------------------------------------------


@EVERY
def test_a_product_is_of_what_the_packed_parts_stand_for(name):
    """Of activations in the format that the weights' asks for, with any number of axes; the bias stays as it is."""
    format, stream = FORMATS[name], torch.Generator().manual_seed(12)
    weight, x, bias = (torch.randn(shape, generator=stream) for shape in ((256, 512), (2, 3, 512), (256,)))
    packed = pack(weight, format, weight=True, input_scale=x.abs().max() / 448 if format.static else None)
    rows = x if format.of_inputs is None else unpack(pack(x, format.of_inputs, input_scale=packed.input_scale))
    exact = rows.double() @ unpack(packed).double().T + bias
    found = multiply(x, packed, bias)
    assert found.shape == (2, 3, 256)
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)
    assert multiply(x.bfloat16(), packed).dtype == torch.bfloat16
    assert torch.equal(fake_quant_input(x, format, packed.input_scale), rows)


def test_activations_in_another_format():
    """4-bit weights by 8-bit activations."""
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(13))
    for name, inputs in (("w4a8", "int8"), ("w4afp8", "fp8"), ("mxfp4a8", "mxfp8")):
        assert FORMATS[name].of_inputs == FORMATS[inputs]
        assert torch.equal(fake_quant_input(x, FORMATS[name]), fake_quant(x, FORMATS[inputs]))
    assert FORMATS["w4a16"].of_inputs is None and FORMATS["mxfp8"].of_inputs == FORMATS["mxfp8"]
    assert FORMATS["w4a8"].weight_only() == replace(FORMATS["w4a16"], name="w4a8", source=FORMATS["w4a8"].source)


def test_activations_with_a_stored_scale():
    """One number for all of them; what is beyond 448 times it saturates. It is asked for by name."""
    weight, x = torch.eye(32), torch.tensor([[448.0, 1000.0, -1000.0, 1.0625, *[0.0] * 28]])
    packed = pack(weight, FORMATS["fp8_static"], weight=True, input_scale=torch.tensor(1.0))
    assert packed.scales.shape == (1, 1) and packed.input_scale == 1 and packed.bytes == 32 * 32 + 8
    assert multiply(x, packed)[0, :4].tolist() == [448.0, 448.0, -448.0, 1.0]
    assert multiply(x, replace(packed, input_scale=torch.tensor(4.0)))[0, :4].tolist() == [448.0, 1024.0, -1024.0, 1.0]
    with pytest.raises(ValueError, match="fp8_static needs the stored scale of its activations"):
        multiply(x, pack(weight, FORMATS["fp8_static"], weight=True))


def test_a_stored_scale_of_nvfp4_is_that_of_the_tensor():
    """Blocks keep scales of their own below it."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(14))
    packed = pack(x, FORMATS["nvfp4"], input_scale=torch.tensor(0.5))
    assert packed.tensor_scale == 0.5 and packed.input_scale is None
    largest = x.unflatten(1, (-1, 16)).abs().amax(-1) / 6
    assert torch.equal(packed.scales.float(), (largest / 0.5).to(torch.float8_e4m3fn).float())


def test_a_product_by_features_in_another_order():
    """As GPTQ's act-order stores them."""
    stream = torch.Generator().manual_seed(15)
    weight, x = (torch.randn(shape, generator=stream) for shape in ((128, 256), (3, 256)))
    order = torch.randperm(256, generator=stream)
    packed = replace(pack(weight[:, order], FORMATS["w4a16"], weight=True), order=order)
    assert float((unpack(packed) - weight).abs().max()) < 0.5
    torch.testing.assert_close(multiply(x, packed), x @ unpack(packed).T)
