"""Linears by torch's products, as far as they run without a GPU, and what the rows of linears say."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from cosmos3_cuda import linear, plugin
from cosmos3_triton import layers
from cosmos3_triton.activations import quantize_rows, quantize_tiles, swizzled
from cosmos3_triton.products import scaled_mm
from cosmos3_triton.tables import Launch, Table, table

from cosmos3_core.contract import Ask, Device, Residual
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack
from cosmos3_core.testing import cases
from cosmos3_core.testing.suite.linear import WEIGHTS, check_linear

BLOCK_SCALED = ("mxfp8", "nvfp4")
TABLE = table("sm_90")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return cases.normal(*shape, seed=seed).bfloat16()


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case.id)
def test_scaled_mm_within_the_kits_bound(case):
    weight, bias = case.weights("bfloat16")
    packed = linear.build_scaled_mm(TABLE)(weight.clone(), bias, format="fp8")
    for rows in (1, 33, 77):
        check_linear(packed, case.input(rows, "bfloat16"), weight, bias, "bfloat16", FORMATS["fp8"])


def test_a_layer_s_products_with_a_gate_and_onto_a_residual_are_our_own():
    """The others are torch's, of rows that come quantized, too."""
    small = Launch(block_m=32, block_n=64, block_k=64, warps=4, stages=2)
    of = Table("sm_90", {"adding_mm_8bit": (small,), "gated_mm_8bit": (small,)})
    x, weight, residual = (normal(*shape, seed=seed) for seed, shape in enumerate(((9, 64), (128, 64), (9, 128))))
    theirs, ours = (
        layers.QuantizedMatrix(weight, "fp8", of, product) for product in (linear.torch_scaled_mm, scaled_mm)
    )
    sums = [Residual(residual.clone()) for _ in range(2)]
    for matrix, stream in zip((theirs, ours), sums, strict=True):
        assert matrix.add(stream, x) is None
    assert torch.equal(*(found.x_MI for found in sums))
    assert torch.equal(*(layers.with_gate(matrix, "silu", of)(x) for matrix in (theirs, ours)))
    plain = layers.QuantizedMatrix(weight, "fp8", Table("sm_90", {}), linear.torch_scaled_mm)
    packed = linear.build_scaled_mm(TABLE)(weight, None, format="fp8")
    for rows in (x, quantize_rows(x, "fp8")):
        assert torch.equal(plain.add(Residual(residual), rows), packed(x))


@pytest.mark.parametrize(
    ("format", "build"),
    [
        ("none", linear.build_scaled_mm(TABLE)),
        ("fp8", linear.build_scaled_mm(TABLE)),
        ("fp8_block", linear.build_scaled_mm(TABLE)),
        ("mxfp8", linear.build_block_scaled_mm()),
        ("nvfp4", linear.build_block_scaled_mm()),
    ],
)
def test_tensors_are_all_that_a_linear_holds(format, build):
    """And the very ones: whoever moves a weight puts other storage behind them."""
    packed = build(normal(128, 256, seed=1), normal(128, seed=2), format=format)
    held = [value for value in vars(packed).values() if isinstance(value, torch.Tensor)]
    named = packed.tensors()
    assert "bias" in named and {id(tensor) for tensor in named.values()} == {id(tensor) for tensor in held}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_without_a_format_the_weight_is_kept(dtype):
    x, weight, bias = (normal(*shape, seed=14).to(dtype) for shape in ((3, 20), (7, 20), (7,)))
    assert torch.equal(linear.build_scaled_mm(TABLE)(weight, bias)(x), F.linear(x, weight, bias))


def test_rows_of_the_backend():
    """Each builds, for formats that there are; what a row refuses it refuses with a reason: 8-bit floats on a device
    without them, and of a plain weight the formats whose activations have a stored scale."""
    rows = [row for row in plugin.ROWS if row.op == "pack_linear"]
    assert all(format in FORMATS for row in rows for format in row.formats)
    device = Device(arch="sm_80", name="a GPU", count=1, memory=2**34, unified=False)
    for row in rows:
        assert set(inspect.signature(row.build(device)).parameters) == {"weight_OI", "bias_O", "format"}
        reasons = {
            format: row.refuse(Ask(op=row.op, device=device, dtype="float16", format=format)) for format in row.formats
        }
        refused = {"triton-scaled-mm": {"fp8", "fp8_tensor"}, "scaled-mm": {"fp8_block"}}.get(row.name, set())
        static = {format for format in row.formats if FORMATS[format].static}
        assert {format for format, reason in reasons.items() if reason} == refused | static


@pytest.mark.parametrize(("format", "shape"), [("fp8", (24, 64)), ("fp8_block", (24, 128))])
def test_widths_that_no_kernel_takes(format, shape):
    with pytest.raises(ValueError, match="multiples of|which do not divide"):
        linear.build_scaled_mm(TABLE)(normal(*shape, seed=15), None, format=format)


@pytest.mark.parametrize("rows", [1, 77, 130])
@pytest.mark.parametrize("format", BLOCK_SCALED)
def test_block_scaled_operands_are_what_torch_asks_for(format, rows):
    """Dtypes, recipes and numbers of scales pass torch's own checks, on the meta device: nothing is computed."""
    shapes = ((96, 192), (96,), (rows, 192))
    weight, bias, x = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in shapes)
    packed = pack(x, FORMATS[format])
    operand = (packed.values, swizzled(packed.scales.view(torch.uint8)), packed.tensor_scale)
    y = linear.build_block_scaled_mm()(weight, bias, format=format).multiply(*operand, torch.bfloat16)
    assert y.shape == (rows, 96) and y.dtype == torch.bfloat16


@pytest.mark.parametrize("width", [128, 384, 512, 640])
@pytest.mark.parametrize("rows", [1, 77, 130])
def test_operands_in_blocks_are_what_torch_asks_for(rows, width):
    """As above: the scales of a row's runs, and those of the weight's blocks in fours."""
    weight, bias, x = (torch.ones(*shape, dtype=torch.bfloat16) for shape in ((256, width), (256,), (rows, width)))
    packed = linear.build_scaled_mm(TABLE)(weight.to("meta"), bias.to("meta"), format="fp8_block")
    operand = (part.to("meta") for part in quantize_tiles(x, FORMATS["fp8_block"])[:2])
    y = packed.multiply(*operand, None, torch.bfloat16)
    assert y.shape == (-(-rows // 16) * 16, 256) and y.dtype == torch.bfloat16
