"""Quantization formats: known codes, exactness, saturation, and what each loses on normally distributed numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos3_core.quant import ELEMENTS, FORMATS, SCALES, bytes_per_weight, error_bound, numerics
from cosmos3_core.quant.codes import from_bytes, to_bytes
from cosmos3_core.quant.formats import E2M1_VALUES, grains
from cosmos3_core.quant.joining import join
from cosmos3_core.quant.numerics import fake_quant, multiply, pack, unpack
from cosmos3_core.testing import cases

EVERY = pytest.mark.parametrize("name", FORMATS)
E2M1_POINTS = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)])


def block(values, width: int) -> torch.Tensor:
    """One row of `width` that begins with `values`, and zeros after."""
    row = torch.zeros(1, width)
    row[0, : len(values)] = torch.as_tensor(values, dtype=torch.float32)
    return row


def test_formats_are_read_without_torch():
    code = "import sys; from cosmos3_core.quant import FORMATS; print(len(FORMATS), 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.split() == [str(len(FORMATS)), "False"]


def test_names():
    """A suffix a16 means that activations stay as they are."""
    assert not any(format.activations for name, format in FORMATS.items() if name.endswith("a16"))
    assert all(format.name == name and format.element in ELEMENTS for name, format in FORMATS.items())
    assert all(format.scale in SCALES and (format.super_scale or "fp32") in SCALES for format in FORMATS.values())


@EVERY
def test_bytes_per_weight_is_what_packing_takes(name):
    """But for a scale of the whole tensor, which it leaves out."""
    packed = pack(torch.randn(256, 512), FORMATS[name], weight=True)
    whole = 4 if FORMATS[name].tensor_scale or not FORMATS[name].outputs else 0
    assert packed.bytes - whole == bytes_per_weight(FORMATS[name], 512) * 256 * 512
    assert packed.shape == (256, 512)


@EVERY
def test_a_second_trip_changes_nothing(name):
    """What a format can hold it holds exactly: values, blocks of zeros, and rows of other sizes."""
    half = "fp16" in (FORMATS[name].scale, FORMATS[name].super_scale)  # whose small numbers have few bits
    sizes = torch.logspace(-2 if half else -4, 4, 6).unsqueeze(1)
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(1)) * sizes
    x[2, :128] = 0
    x[4] = 0
    once = unpack(pack(x, FORMATS[name]))
    assert once.isfinite().all() and not once[4].any() and not once[2, :128].any()
    torch.testing.assert_close(unpack(pack(once, FORMATS[name])), once, rtol=1e-3 if half else 1e-6, atol=0)


@EVERY
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_equal_numbers(name, value):
    """A row of one number is that number, but for its rounding where the scale is a power of two: at worst 8 becomes 6
    in e2m1. Scales in fp16 hold neither 1e-30 nor 1e30, and say so of what is too large."""
    found = unpack(pack(torch.full((2, 128), value), FORMATS[name]))
    if "fp16" in (FORMATS[name].scale, FORMATS[name].super_scale) and abs(value) in (1e-30, 1e30):
        assert not found.any() if value < 1 else not found.isfinite().any()
        return
    assert found.isfinite().all() and len(found.unique()) == 1
    assert float((found - value).abs().max()) <= abs(value) * (0.25 if "mxfp4" in name else 0.07)


@EVERY
def test_weights_of_one_sign_and_outliers_keep_the_bound(name):
    """Blocks of one sign beside blocks of the other or of both, in all super blocks."""
    format = FORMATS[name]
    x = torch.randn(16, 512, generator=torch.Generator().manual_seed(5))
    signs = torch.tensor([1.0, -1.0, 0.0, 0.0]).repeat_interleave(32).repeat(4)
    x[:6] = torch.where(signs == 0, x[:6], signs * (x[:6].abs() + 1))
    x[4:6] *= -1
    x[6:8, ::97] *= 100
    x[8:10] = x[8:10].abs() * 1e-3 + 1
    rows, features = format.outputs or 16, format.super_group or format.group or 512
    tiles = (-1, 16, 1, 512) if format.tensor_scale else (-1, min(rows, 16), 512 // features, features)
    weight = x.repeat(rows // 16, 1) if rows > 16 else x
    error = (unpack(pack(weight, format, weight=True)) - weight)[:16].view(tiles).abs()
    assert (error / x.view(tiles).abs().amax((1, 3), keepdim=True)).max() <= error_bound(format) + 1e-6


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.static])
def test_a_nan_is_one_by_a_stored_scale_too(name):
    weight, x = torch.randn(8, 64), torch.randn(3, 64)
    packed = pack(weight, FORMATS[name], weight=True, input_scale=torch.tensor(0.01))
    assert multiply(x, packed).isfinite().all()
    x[1, 5] = float("nan")
    assert multiply(x, packed)[1].isnan().all()


def test_zero_points_are_codes_where_a_scale_is_too_small():
    """Its rounding can put the zero point beyond the last code."""
    packed = pack(torch.full((1, 128), -1e-44), FORMATS["w4a16_asym"])
    assert packed.zeros.tolist() == [[15]] and unpack(packed).isfinite().all()
    half = replace(FORMATS["w4a16_asym"], scale="fp16")
    for least in (-1e-6, -5e-7, -2e-7):
        assert pack(torch.full((1, 128), least), half).zeros.max() <= 15


@EVERY
def test_dtypes_and_shapes(name):
    format = FORMATS[name]
    packed = pack(torch.randn(3, 256).bfloat16(), format)
    assert packed.values.dtype == getattr(torch, ELEMENTS[format.element].dtype or "uint8")
    assert packed.values.shape == (3, 256 * format.bits // 8)
    scales = {"e8m0": torch.uint8, "e4m3": torch.float8_e4m3fn, "fp32": torch.float32, "fp16": torch.float16}
    assert packed.scales.dtype == (scales | {"uint6": torch.uint8, "int8": torch.int8})[format.scale]
    assert packed.scales.shape == (1 if format.static else 3, 256 // format.group if format.group else 1)
    assert (packed.tensor_scale is not None) == format.tensor_scale
    assert ("zeros" in packed.tensors()) == format.zeros and ("minima" in packed.tensors()) == format.minima
    if format.super_group:
        assert packed.super_scales.shape == (3, -(-256 // format.super_group))
        assert packed.super_scales.dtype == scales[format.super_scale]
    assert unpack(packed).dtype == torch.float32
    assert fake_quant(torch.randn(2, 5, 256).bfloat16(), format).dtype == torch.bfloat16


@EVERY
def test_rows_are_quantized_apart(name):
    """A large row costs the others nothing, where no scale is shared by the whole tensor."""
    if FORMATS[name].tensor_scale or FORMATS[name].static:
        pytest.skip("all rows share the tensor's scale")
    x = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    alone = unpack(pack(x[:1], FORMATS[name]))
    x[3] *= 1e4
    assert torch.equal(unpack(pack(x, FORMATS[name]))[:1], alone)


@EVERY
def test_packing_some_rows_at_a_time_is_packing_them_all(name, monkeypatch):
    x, weight = (torch.randn(rows, 256, generator=torch.Generator().manual_seed(5)) for rows in (7, 384))
    whole = pack(x, FORMATS[name]), pack(weight, FORMATS[name], weight=True)
    monkeypatch.setattr(numerics, "AT_ONCE", 600)
    parts = pack(x, FORMATS[name]), pack(weight, FORMATS[name], weight=True)
    assert all(torch.equal(unpack(some), unpack(all)) for some, all in zip(parts, whole, strict=True))


@EVERY
def test_joined_weights_are_read_some_rows_at_a_time(name, monkeypatch):
    """With what each row has of its own: scales, zero points, minima, and the scale of the weight that it came from."""
    stream = torch.Generator().manual_seed(6)
    given = torch.tensor(0.02) if FORMATS[name].static else None
    apart = [
        pack(torch.randn(128, 256, generator=stream) * size, FORMATS[name], weight=True, input_scale=given)
        for size in (1, 30, 0.1)
    ]
    expected, joined = torch.cat([unpack(one) for one in apart]), join(apart)
    x = torch.randn(4, 256, generator=stream)
    products = torch.cat([multiply(x, one) for one in apart], -1)
    for one in ("AT_ONCE", "HOST_AT_ONCE"):
        monkeypatch.setattr(numerics, one, 256 * 130)
    assert torch.equal(unpack(joined), expected)
    torch.testing.assert_close(multiply(x, joined), products, rtol=1e-5, atol=1e-4)


def test_a_product_with_features_in_an_order_of_their_own():
    """GPTQ's act-order: inputs are put into the order of the codes, as `unpack` puts the codes into theirs."""
    stream = torch.Generator().manual_seed(7)
    weight, x, order = torch.randn(16, 256, generator=stream), torch.randn(4, 256), torch.randperm(256)
    packed = replace(pack(weight[:, order], FORMATS["w4a16"], weight=True), order=order)
    assert (unpack(packed) - weight).abs().max() < weight.abs().max() / 8
    torch.testing.assert_close(multiply(x, packed), x @ unpack(packed).T, rtol=1e-4, atol=1e-4)


def test_blocks_of_a_weight():
    """Whatever is in the other blocks, and in whatever parts it is packed, a block's scale is its own: its largest
    magnitude over e4m3's. Activations have one for each row."""
    format, weight = FORMATS["fp8_block"], torch.randn(384, 256, generator=torch.Generator().manual_seed(4))
    weight[128:256, 128:] *= 1e3
    largest = weight.view(3, 128, 2, 128).abs().amax((1, 3))
    packed = pack(weight, format, weight=True)
    assert torch.equal(packed.scales, largest / 448) and packed.values.float().abs().amax() == 448
    assert cases.Loss.of(unpack(packed), weight).row < 0.05
    assert pack(weight, format).scales.shape == (384, 2)
    with pytest.raises(ValueError, match="fp8_block shares a scale among 128 outputs, which do not divide 200"):
        pack(weight[:200], format, weight=True)


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.group])
def test_a_width_that_is_no_multiple_of_the_group(name):
    group = FORMATS[name].group
    with pytest.raises(ValueError, match=f"{name} .* {group} .* {group + 8}"):
        pack(torch.zeros(2, group + 8), FORMATS[name])


@pytest.mark.parametrize(("name", "whole", "row"), [
    ("int8", 0.0125, 0.0155),
    ("fp8", 0.040, 0.048),
    ("fp8_block", 0.040, 0.048),
    ("mxfp8", 0.045, 0.058),
    ("nvfp4", 0.140, 0.165),
    ("mxfp4", 0.170, 0.200),
    ("nvfp4a16", 0.100, 0.115),
    ("mxfp4a16", 0.120, 0.140),
    ("w4a16", 0.108, 0.125),
])  # fmt: skip
def test_error_of_a_product(name, whole, row):
    """Weights and activations normally distributed, one output 50 times larger, as in the kit, whose bound leaves room
    above the worst row, but not twice the error."""
    stream = torch.Generator().manual_seed(3)
    weight, x = (torch.randn(shape, generator=stream) for shape in ((256, 2048), (128, 2048)))
    weight[3] *= 50
    format, norms = FORMATS[name], weight.double().norm(dim=1)
    y = (fake_quant(x, format) if format.activations else x).double() @ fake_quant(
        weight, format, weight=True
    ).double().T
    loss = cases.Loss.of(y / norms, x.double() @ weight.double().T / norms)
    assert 0.8 * whole < loss.whole < whole and loss.row < row
    assert row < cases.allowed(format) <= 2 * whole


# Known codes -------------------------------------------------------------------------------------------------------


def test_int8_codes():
    """Symmetric: the largest magnitude is 127; ties go to even."""
    packed = pack(block([127.0, -127.0, 0.5, 1.5, -2.5, 63.4], 16), FORMATS["int8"])
    assert packed.scales.item() == 1 and packed.values[0, :6].tolist() == [127, -127, 0, 2, -2, 63]
    beyond = pack(block([300.0, -300.0], 16), FORMATS["int8_static"], input_scale=torch.tensor(1.0))
    assert beyond.values[0, :2].tolist() == [127, -127]


def test_fp8_codes():
    """The bits of e4m3: 448 is 0x7e, 1 is 0x38, 2^-9 the smallest number; ties go to even mantissas."""
    packed = pack(block([448.0, -448.0, 1.0, 2.0**-9, 1.0625, 1.1875, 2.0**-10], 16), FORMATS["fp8"])
    assert packed.scales.item() == 1
    bits = packed.values.view(torch.uint8)[0, :7].tolist()
    assert bits == [0x7E, 0xFE, 0x38, 0x01, 0x38, 0x3A, 0x00]


def test_e2m1_codes():
    """All sixteen, in order, two to a byte, the even index in the low nibble."""
    packed = pack(block([*E2M1_POINTS.tolist()], 32), FORMATS["mxfp4"])
    assert packed.scales.tolist() == [[127]]
    assert packed.values[0].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, *[0] * 8]
    assert unpack(packed)[0, :16].tolist() == E2M1_POINTS.tolist()


def test_e2m1_ties_go_to_even():
    between = (E2M1_POINTS[:7] + E2M1_POINTS[1:8]) / 2
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    for sign in (1.0, -1.0):
        found = unpack(pack(block([*(sign * between).tolist(), 6.0], 32), FORMATS["mxfp4"]))
        assert found[0, :7].tolist() == (sign * even).tolist()


def test_e2m1_goes_to_the_nearest():
    x = torch.linspace(-6, 6, 4001)
    x[0] = 6  # so that every block of 32 below has a scale of 1
    rows = torch.nn.functional.pad(x.unfold(0, 31, 31), (0, 1), value=6.0)
    found = unpack(pack(rows, FORMATS["mxfp4"]))
    nearest = (rows.unsqueeze(-1) - E2M1_POINTS).abs().amin(-1)
    assert torch.equal((rows - found).abs(), nearest)


def test_mx_scales_follow_the_ocp_rule():
    """2^floor(log2 largest) over the element's largest power of two; what lies beyond the largest element saturates."""
    for name, top in (("mxfp4", 2), ("mxfp8", 8)):
        for largest in (1.0, 1.999, 2.0, 3.0, 448.0, 1e-20, 3e38, 2.0**-126):
            packed = pack(block([largest, -largest / 2], 32), FORMATS[name])
            exponent = torch.tensor(largest).log2().floor().clamp(min=-126).item() if largest != 1.999 else 0
            assert packed.scales.item() == max(int(exponent) - top + 127, 0), (name, largest)
    saturated = unpack(pack(block([7.9, 1.0], 32), FORMATS["mxfp4"]))
    assert saturated[0, :2].tolist() == [6.0, 1.0]
    assert unpack(pack(block([500.0, 1.0], 32), FORMATS["mxfp8"]))[0, :2].tolist() == [448.0, 1.0]


def test_a_last_super_block_that_is_short_counts_as_one():
    for name in ("q4_k", "q6_k", "mxfp4_dual"):
        packed = pack(torch.randn(4, 640), FORMATS[name], weight=True)
        assert bytes_per_weight(FORMATS[name], 640) * 4 * 640 == packed.bytes


def test_a_cut_spares_the_groups_of_the_inputs():
    inputs = replace(FORMATS["int8"], name="int8_128", group=128)
    assert grains(replace(FORMATS["w4a8"], group=32, inputs=inputs)) == (128, 1)


def test_an_exponent_that_is_none_is_nan():
    packed = pack(torch.ones(1, 32), FORMATS["mxfp8"])
    assert unpack(replace(packed, scales=torch.full_like(packed.scales, 255))).isnan().all()


def test_mx_scale_of_zeros_and_of_infinitesimals():
    assert pack(torch.zeros(1, 32), FORMATS["mxfp8"]).scales.item() == 0
    tiny = unpack(pack(block([2.0**-140], 32), FORMATS["mxfp8"]))
    assert tiny.isfinite().all()


def test_nvfp4_scales():
    """The tensor's largest number is 6 at a block scale of 448; a block scale is rounded to e4m3."""
    x = torch.cat((block([6.0 * 448], 16), block([6.0 * 13, 39.0], 16), block([1e-4], 16)), dim=1)
    packed = pack(x, FORMATS["nvfp4"])
    assert packed.tensor_scale.item() == 1 and packed.scales.float().tolist() == [[448.0, 13.0, 0.0]]
    found = unpack(packed)
    assert found[0, 0] == 6 * 448 and found[0, 16:18].tolist() == [78.0, 39.0]
    assert not found[0, 32:].any()  # too small for any scale


def test_nvfp4_uses_the_rounded_scale():
    """Elements are made with the block scale as stored, so that its rounding costs no more than theirs."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    packed = pack(x, FORMATS["nvfp4"])
    factors = (packed.scales.float() * packed.tensor_scale).unsqueeze(-1)
    error = (unpack(packed) - x).unflatten(-1, (-1, 16)).abs() / factors
    magnitude = (x.unflatten(-1, (-1, 16)) / factors).abs()
    half_step = torch.where(magnitude < 2, 0.25, torch.where(magnitude < 4, 0.5, 1.0))
    assert bool((error <= half_step + 1e-5)[magnitude <= 6].all())


def test_int4_codes():
    """The largest magnitude is -8, so its scale is negative where it is positive; a code is the integer + 8."""
    packed = pack(block([8.0, -7.0, 0.0, 3.5, -2.5], 128), FORMATS["w4a16"])
    assert packed.scales.tolist() == [[-1.0]]
    assert packed.values[0, :3].tolist() == [0 | (15 << 4), 8 | (4 << 4), 10 | (8 << 4)]
    assert unpack(packed)[0, :5].tolist() == [8.0, -7.0, 0.0, 4.0, -2.0]
    assert pack(block([-4.0], 128), FORMATS["w4a16"]).scales.tolist() == [[0.5]]


def test_int4_groups_are_of_128():
    x = torch.cat((block([1.0], 128), block([-100.0], 128)), dim=1)
    assert unpack(pack(x, FORMATS["w4a16"]))[0, [0, 128]].tolist() == [1.0, -100.0]


# Known codes of the others -------------------------------------------------------------------------------------------


def test_a_scale_for_the_whole_weight():
    weight = torch.tensor([[448.0, 1.0], [-2.0, 896.0]])
    packed = pack(weight, FORMATS["fp8_tensor"], weight=True)
    assert packed.scales.tolist() == [[2.0]] and packed.values.float().tolist() == [[224.0, 0.5], [-1.0, 448.0]]
    assert pack(weight, FORMATS["fp8_tensor"]).scales.tolist() == [[1.0], [2.0]]  # tokens have their own
    assert pack(torch.zeros(2, 2), FORMATS["fp8_tensor"], weight=True).scales.tolist() == [[1.0]]


def test_fnuz_codes():
    """One bias more: a byte means half of what e4m3 means, the largest is 240, and 0x80 is NaN, not -0."""
    packed = pack(block([240.0, 1.0, -0.0, 2.0**-10, 17.0, 19.0], 16), FORMATS["fp8_fnuz"])
    assert packed.scales.item() == 1
    assert packed.values.view(torch.uint8)[0, :6].tolist() == [0x7F, 0x40, 0x00, 0x01, 0x60, 0x62]
    every = torch.arange(256, dtype=torch.uint8)
    ocp, fnuz = every.view(torch.float8_e4m3fn).float(), every.view(torch.float8_e4m3fnuz).float()
    shared = (ocp.isfinite()) & (every != 0x80)
    assert torch.equal(ocp[shared], 2 * fnuz[shared])


def test_e5m2_codes():
    packed = pack(block([57344.0, 1.0, 1.125, 1.375, 2.0**-16], 16), FORMATS["fp8_e5m2"])
    assert packed.values.view(torch.uint8)[0, :5].tolist() == [0x7B, 0x3C, 0x3C, 0x3E, 0x01]


def test_zero_points():
    """The least number has code 0 and the largest 15; 0 has a code, also where all are of one sign."""
    packed = pack(block([-3.0, 4.5, 0.2, 0.25], 128), FORMATS["w4a16_asym"])
    assert packed.scales.tolist() == [[0.5]] and packed.zeros.tolist() == [[6]]
    assert from_bytes(packed.values, 4)[0, :5].tolist() == [0, 15, 6, 6, 6]
    assert unpack(packed)[0, :4].tolist() == [-3.0, 4.5, 0.0, 0.0]
    odd = pack(block([-3.5, 4.0, 0.25, 0.75], 128), FORMATS["w4a16_asym"])  # ties go to even before the zero is added
    assert odd.zeros.tolist() == [[7]] and from_bytes(odd.values, 4)[0, 2:4].tolist() == [7, 9]
    for sign, zero in ((1, 0), (-1, 15)):
        one = pack(torch.full((1, 128), 7.5 * sign), FORMATS["w4a16_asym"])
        assert one.zeros.tolist() == [[zero]] and unpack(one).unique().tolist() == [7.5 * sign]


def test_ties_of_llama_cpp():
    """Up for 4 bits, away from zero for 8."""
    four, eight = (pack(block([most, 0.5, 1.5, -1.5, -2.5], 32), FORMATS[name]) for name, most in
                   (("q4_0", -8.0), ("q8_0", 127.0)))  # fmt: skip
    assert four.scales.item() == eight.scales.item() == 1
    assert unpack(four)[0, 1:5].tolist() == [1.0, 2.0, -1.0, -2.0]
    assert unpack(eight)[0, 1:5].tolist() == [1.0, 2.0, -2.0, -3.0]


def test_the_largest_of_int4_is_negative():
    """Of two extremes the positive one: the other one has no code of its own, and errs by a step."""
    for values, scale in (([-8.0, 8.0], -1.0), ([8.0, -8.0], -1.0), ([-8.0, 7.9], 1.0)):
        packed = pack(block(values, 128), FORMATS["w4a16"])
        assert packed.scales.item() == scale
        found = dict(zip(values, unpack(packed)[0, :2].tolist(), strict=True))
        assert found == ({-8.0: -7.0, 8.0: 8.0} if 8.0 in values else {-8.0: -8.0, 7.9: 7.0})


def test_mxfp4_with_two_scales():
    """Ascend's: a super block of 512 is divided by its largest over 6, then it is MXFP4. A row of eights is its own
    tests' example; a last super block may be short."""
    packed = pack(torch.full((1, 512), 8.0), FORMATS["mxfp4_dual"])
    assert packed.super_scales.tolist() == [[torch.tensor(8.0 / 6).item()]] and packed.scales.unique().tolist() == [127]
    assert packed.values.unique().tolist() == [0x77]
    x = torch.randn(4, 640, generator=torch.Generator().manual_seed(16)).bfloat16()
    x[:, 512:] *= 1e3
    packed = pack(x, FORMATS["mxfp4_dual"])
    largest = torch.stack([part.float().abs().amax(1) / 6 for part in x.split(512, 1)], 1)
    assert torch.equal(packed.super_scales, largest)
    units = (x.float() / largest.repeat_interleave(512, 1)[:, :640]).bfloat16()
    inner = pack(units, FORMATS["mxfp4"])
    assert torch.equal(inner.scales, packed.scales) and torch.equal(inner.values, packed.values)
    expected = unpack(inner) * largest.repeat_interleave(512, 1)[:, :640]
    torch.testing.assert_close(unpack(packed), expected, rtol=1e-6, atol=0)
    assert not unpack(pack(torch.zeros(1, 512), FORMATS["mxfp4_dual"])).any()


def test_super_blocks_of_ours():
    """What a scale of 6 bits loses is small beside its super block, not beside every block in it; a block of zeros is
    zeros, and a last super block may be short."""
    x = torch.randn(8, 640, generator=torch.Generator().manual_seed(17))
    x[:, 32:64] = 0
    for name, sizes in (("q4_k", (torch.uint8, 20)), ("q6_k", (torch.int8, 40))):
        packed = pack(x, FORMATS[name], weight=True)
        assert (packed.scales.dtype, packed.scales.shape) == (sizes[0], (8, sizes[1]))
        assert packed.super_scales.shape == (8, 3) and packed.super_scales.dtype == torch.float16
        found = unpack(packed)
        assert not found[:, 32:64].any()
        assert cases.Loss.of(found, x).whole < (0.08 if name == "q4_k" else 0.02)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_codes_in_bytes(bits):
    """A stream that begins with the lowest bits of a byte, as numpy packs bits in little order."""
    codes = torch.randint(0, 2**bits, (3, 40), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = to_bytes(codes, bits)
    single = (codes.unsqueeze(-1) >> torch.arange(bits)).numpy().astype("uint8") & 1
    assert torch.equal(packed, torch.from_numpy(np.packbits(single.reshape(3, -1), axis=-1, bitorder="little")))
    assert torch.equal(from_bytes(packed, bits), codes)
    with pytest.raises(ValueError, match="fill no whole bytes"):
        to_bytes(codes[:, :7], bits)
