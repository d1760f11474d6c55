"""The quantized linears, against the formats' reference numerics, on shapes that fill no tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cosmos3_triton import linears, products
from cosmos3_triton.activations import quantize_blocks, quantize_rows, quantize_tiles, swizzled
from cosmos3_triton.tables import Launch, Table, table

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import Packed, pack, unpack
from cosmos3_core.testing import cases
from cosmos3_core.testing.suite.linear import WEIGHTS, check_linear

EIGHT = ("int8", "fp8")
A16 = ("w4a16", "nvfp4a16")
BLOCK_SCALED = ("mxfp8", "nvfp4")
BLOCK = FORMATS["fp8_block"]
TILES = Launch(block_m=32, block_n=64, block_k=64, warps=4, stages=2)
SMALL = Launch(block_m=16, block_n=64, warps=4, stages=2)
BOTH = pytest.mark.parametrize("tma", [False, True], ids=["pointers", "tma"])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return cases.normal(*shape, seed=seed).to(dtype)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def here(kernel: str, *launches: Launch, tma: bool = True) -> Table:
    """A table of one kernel."""
    return Table("sm_90" if tma else "sm_80", {kernel: launches})


def one_processor(monkeypatch, processors: int) -> None:
    """A persistent kernel asks the device how many programs run at once; this device has none to ask."""
    monkeypatch.setattr(products, "processors", lambda device: processors)


@pytest.mark.parametrize("width", [16, 128, 1200])
@pytest.mark.parametrize("format", EIGHT)
def test_quantized_rows_are_the_reference_but_for_ties(format, width):
    x = normal(9, width, seed=1)
    x[0] = 0
    x[1] *= 1e4
    x[2, 5] = 300
    found, expected = quantize_rows(x, format), pack(x, FORMATS[format])
    values, scales = found.values_MI, found.scale_M1
    assert values.dtype == expected.values.dtype and scales.dtype == torch.float32 and scales.shape == (9, 1)
    assert found.dtype == x.dtype
    torch.testing.assert_close(scales[1:], expected.scales[1:], rtol=1e-6, atol=0)
    assert not values[0].float().any() and scales[0].isfinite()
    step = (values.float() - expected.values.float()).abs() / expected.values.float().abs().clamp_min(1)
    assert float((step > 0).float().mean()) < 2e-3 and float(step.max()) <= (1 if format == "int8" else 1 / 8)


def test_quantized_rows_may_lie_apart():
    """What a gate leaves in place is the left half of each row."""
    wide = normal(7, 96, seed=2)
    for format in EIGHT:
        apart, together = quantize_rows(wide[:, :48], format), quantize_rows(wide[:, :48].contiguous(), format)
        assert torch.equal(apart.values_MI.float(), together.values_MI.float())
        assert torch.equal(apart.scale_M1, together.scale_M1)


@BOTH
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("rows", "out", "width"), [(1, 16, 16), (77, 272, 208), (130, 128, 128)])
@pytest.mark.parametrize("format", EIGHT)
def test_scaled_product(format, rows, out, width, bias, tma):
    """Of what the values stand for, in fp64: int8's sum is exact, and so is e4m3's on this interpreter."""
    table = here("scaled_mm", TILES, tma=tma)
    a, b = pack(normal(rows, width, seed=3), FORMATS[format]), pack(normal(out, width, seed=4), FORMATS[format])
    bias_O = normal(out, seed=5) if bias else None
    y = products.scaled_mm(a.values, b.values, a.scales, b.scales, bias_O, torch.bfloat16, table)
    exact = unpack(a).double() @ unpack(b).double().T + (0 if bias_O is None else bias_O.double())
    assert y.shape == exact.shape and relative(y, exact) < 3e-3


@BOTH
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("format", EIGHT)
def test_product_onto_a_residual(format, bias, tma):
    """In its place, and rounded once."""
    table = here(products.ADDING, TILES, tma=tma)
    a, b = pack(normal(77, 80, seed=3), FORMATS[format]), pack(normal(272, 80, seed=4), FORMATS[format], weight=True)
    bias_O, residual = normal(272, seed=5) if bias else None, normal(77, 272, seed=6)
    exact = residual.double() + unpack(a).double() @ unpack(b).double().T + (bias_O.double() if bias else 0)
    operands = (a.values, b.values, a.scales, b.scales, bias_O, torch.bfloat16, table)
    y = products.scaled_mm(*operands, residual_MO=residual)
    assert y is residual and relative(y, exact) < 2.5e-3


@BOTH
@pytest.mark.parametrize("format", EIGHT)
def test_product_that_applies_the_gate(format, tma):
    """silu(gate)·up of what the values stand for, in fp64, rounded once, for widths of one tile and of several."""
    table = here("gated_mm_8bit", TILES, tma=tma)
    for out in (64, 192):
        a, b = (pack(normal(*shape, seed=3), FORMATS[format]) for shape in ((77, 80), (out, 80)))
        bias, order = normal(out, seed=5), products.gated_order(b.values, table)
        gate, up = (unpack(a).double() @ unpack(b).double().T + bias.double()).chunk(2, dim=1)
        weight = b.values.view(torch.uint8)[order].view(b.values.dtype), a.scales, b.scales[order], bias[order]
        y = products.scaled_mm(a.values, *weight, torch.bfloat16, table, gated=True)
        assert y.shape == (77, out // 2) and relative(y, gate * gate.sigmoid() * up) < 2e-3


@pytest.mark.parametrize("format", (*EIGHT, "none", *A16))
def test_tensors_are_those_that_a_call_reads(monkeypatch, format):
    """Every one of them: with other storage behind them the linear is another."""
    one_processor(monkeypatch, 2)
    build = linears.build_a16 if format in A16 else linears.build_scaled_mm
    x = normal(5, 128, seed=1)
    weights = [(normal(64, 128, seed=seed), normal(64, seed=seed + 1)) for seed in (2, 4)]
    weights[1][0].mul_(3)
    first, second = (build(table("sm_90"))(*pair, format=format) for pair in weights)
    expected, others = second(x), second.tensors()
    assert not torch.equal(first(x), expected)
    for name, tensor in first.tensors().items():
        tensor.data = others[name].clone()
    assert torch.equal(first(x), expected)


@pytest.mark.parametrize("processors", [1, 3, 1000])
def test_a_persistent_kernel_makes_every_tile(monkeypatch, processors):
    one_processor(monkeypatch, processors)
    table = here("scaled_mm", Launch(block_m=16, block_n=32, block_k=32, warps=4, stages=2, persistent=True))
    a, b = pack(normal(150, 64, seed=6), FORMATS["int8"]), pack(normal(96, 64, seed=7), FORMATS["int8"])
    y = products.scaled_mm(a.values, b.values, a.scales, b.scales, None, torch.float16, table)
    assert relative(y, unpack(a) @ unpack(b).T) < 1e-3


def test_int8_sums_are_exact():
    """Beyond what fp32 can hold on the way: 2048 products of 127 by 127, as many of 127 by -127, and a one more."""
    a = torch.full((16, 4096), 127, dtype=torch.int8)
    b = torch.full((16, 4096), 127, dtype=torch.int8)
    b[:, 2048:] = -127
    a[:, 0], b[:, 0] = 1, 1
    a[:, -1], b[:, -1] = 0, 0
    ones = torch.ones(16, 1)
    y = products.scaled_mm(a, b, ones, ones, None, torch.float16, table("sm_120"))
    assert torch.equal(y, torch.ones(16, 16, dtype=torch.float16))


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case.id)
@pytest.mark.parametrize(
    ("build", "format"),
    [(linears.build_scaled_mm, "fp8"), (linears.build_scaled_mm, "int8"), (linears.build_a16, "w4a16")],
)
def test_linear_within_the_kits_bound(monkeypatch, build, format, case):
    """As the conformance kit asks it, for few rows and for more than are multiplied with 4-bit weights."""
    one_processor(monkeypatch, 2)
    launches = [replace(SMALL, rows=16), replace(SMALL, block_m=32, rows=64)]
    weight, bias = case.weights("bfloat16")
    packed = build(replace(table("sm_90"), launches={**table("sm_90").launches, "a16_mm": launches}))(
        weight.clone(), bias, format=format
    )
    for rows in (1, 33, 77):
        check_linear(packed, case.input(rows, "bfloat16"), weight, bias, "bfloat16", FORMATS.get(format))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_without_a_format_the_weight_is_kept(dtype):
    x, weight, bias = (normal(*shape, seed=14, dtype=dtype) for shape in ((3, 20), (7, 20), (7,)))
    for build in (linears.build_scaled_mm, linears.build_a16):
        assert torch.equal(build(table("sm_90"))(weight, bias)(x), F.linear(x, weight, bias))


def test_widths_that_no_kernel_takes():
    for build, format, shape in (
        (linears.build_scaled_mm, "fp8", (24, 64)),
        (linears.build_scaled_mm, "int8", (64, 24)),
    ):
        with pytest.raises(ValueError, match="multiples of"):
            build(table("sm_90"))(normal(*shape, seed=15), None, format=format)


@pytest.mark.parametrize("rows", [1, 77, 96])
def test_quantized_tiles_are_the_reference_but_for_ties(rows):
    x = normal(rows, 1024, seed=17)[:, :384]
    x[0] *= 1e-3
    x[-1, 128:256] = 0
    x[-1, :3] *= 1e3
    values, scales, _ = quantize_tiles(x, BLOCK)
    packed = pack(x, BLOCK)
    torch.testing.assert_close(scales[:rows], packed.scales, rtol=1e-6, atol=1e-30)
    found, expected = unpack(Packed(BLOCK, values[:rows], scales[:rows])), unpack(packed)
    assert float((found != expected).float().mean()) < 2e-3 and relative(found, expected) < 1e-2
    assert len(values) % 16 == 0 and not values[rows:].float().any() and scales.isfinite().all()


@pytest.mark.parametrize(("rows", "width"), [(3, 16 * 6), (77, 32 * 5), (130, 544)])
@pytest.mark.parametrize("format", BLOCK_SCALED)
def test_quantized_blocks_are_the_reference_but_for_ties(format, rows, width):
    x = normal(rows, 2 * width, seed=17)[:, :width]
    x[0] *= 1e-3
    x[1] = 0
    x[2, :40] *= 1e3
    values, scales, tensor_scale = quantize_blocks(x, FORMATS[format])
    packed = pack(x, FORMATS[format])
    assert torch.equal(scales, swizzled(packed.scales.view(torch.uint8)))
    assert (tensor_scale is None) if packed.tensor_scale is None else torch.equal(tensor_scale, packed.tensor_scale)
    found, expected = unpack(Packed(packed.format, values, packed.scales, tensor_scale)), unpack(packed)
    assert float((found != expected).float().mean()) < 2e-3
    assert relative(found, expected) < 1e-2


def test_swizzled_scales():
    """cuBLAS's documentation, "1D block scaling factors layout": where the scale of (row, block) lies."""
    scales = torch.randint(0, 256, (150, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(16))
    found = swizzled(scales)
    assert found.numel() == 256 * 8
    for row in (0, 1, 31, 32, 127, 128, 149):
        for block in range(6):
            tile = (row // 128) * 2 + block // 4
            offset = 512 * tile + 16 * (row % 32) + 4 * (row % 128 // 32) + block % 4
            assert found[offset] == scales[row, block], (row, block)
    assert int(found.long().sum()) == int(scales.long().sum())
