"""Linears on NVIDIA GPUs: with weights in the formats of `cosmos3_core.quant`, and as they are.

Each is made once per weight and keeps the packed form alone. Weights are packed on the device they came on.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from cosmos3_core.contract import Linear, PackLinear, Quantized
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack

from . import triton_linear
from .tables import Table
from .triton_linear import Paired, quantize_blocks, quantize_rows, quantize_tiles


@dataclass(frozen=True)
class Unscaled:
    """No format: the weight as it is, by cuBLAS, which can add to a residual; with a gate by our own product."""

    weight_OI: Tensor
    bias_O: Tensor | None
    table: Table
    gates: bool = False

    @property
    def adds(self) -> bool:
        return not self.gates

    def __call__(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        if residual_MO is not None:
            y_MO = residual_MO.addmm_(x_MI, self.weight_OI.t())
            return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)
        if not self.gates:
            return F.linear(x_MI, self.weight_OI, self.bias_O)
        operands = (x_MI.contiguous(), self.weight_OI, None, None, self.bias_O)
        return triton_linear.scaled_mm(*operands, x_MI.dtype, self.table, gated=True)

    def gated(self) -> Unscaled:
        order = triton_linear.gated_order(self.weight_OI, self.table)
        if order is None:
            return self
        bias_O = None if self.bias_O is None else self.bias_O[order]
        return Unscaled(self.weight_OI[order], bias_O, self.table, gates=True)


class RowScaled:
    """Formats "int8" and "fp8": 8 bits by 8 bits with a scale for each token and each output, by `product`. A tensor's
    rows are quantized here, in a pass of their own. What is added to a residual is a product of our own."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, format: str, table: Table, product: Callable[..., Tensor]
    ):
        _check_multiples_of_16(weight_OI)
        packed = pack(weight_OI, FORMATS[format], weight=True)
        self.values_OI, self.scale_O1, self.bias_O = packed.values, packed.scales, bias_O
        self.takes, self.table, self.product, self.gates = format, table, product, False
        self.adds = table.launch(triton_linear.ADDING) is not None

    def __call__(self, x_MI: Tensor | Quantized, residual_MO: Tensor | None = None) -> Tensor:
        x = x_MI if isinstance(x_MI, Quantized) else quantize_rows(x_MI, self.takes)
        operands = (x.values_MI, self.values_OI, x.scale_M1, self.scale_O1, self.bias_O, x.dtype, self.table)
        if residual_MO is not None:
            return triton_linear.scaled_mm(*operands, residual_MO=residual_MO)
        return self.product(*operands)

    def gated(self) -> RowScaled:
        order = triton_linear.gated_order(self.values_OI, self.table)
        if order is None:
            return self
        # Bytes, because torch cannot gather 8-bit floats.
        values_OI = self.values_OI.view(torch.uint8)[order].view(self.values_OI.dtype)
        bias_O = None if self.bias_O is None else self.bias_O[order]
        gated = copy(self)
        gated.values_OI, gated.scale_O1, gated.bias_O = values_OI, self.scale_O1[order], bias_O
        gated.product, gated.gates, gated.adds = partial(triton_linear.scaled_mm, gated=True), True, False
        return gated


def torch_scaled_mm(
    a_MI: Tensor,
    b_OI: Tensor,
    scale_a_M1: Tensor,
    scale_b_O1: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    table: Table,
) -> Tensor:
    """As triton_linear.scaled_mm, for e4m3: by cuBLASLt on Hopper, CUTLASS elsewhere."""
    # On an H100, fast accumulation errs by 1.5e-3 and the other by 2e-4, where rounding to e4m3 costs 3.7e-2; it is
    # faster by a tenth to a fifth.
    scale_b_1O = scale_b_O1.t()
    return torch._scaled_mm(a_MI, b_OI.t(), scale_a_M1, scale_b_1O, bias=bias_O, out_dtype=dtype, use_fast_accum=True)


class WeightOnly:
    """Formats "w4a16", "mxfp4a16", "nvfp4a16". Few rows are multiplied with weights that stay in 4 bits until they are
    in registers. For many the arithmetic outweighs the reading: the weight is made 16 bits once and goes to cuBLAS,
    which costs that much memory for the time of the call."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str, table: Table):
        self.weight, self.bias_O, self.table = Paired.of(pack(weight_OI, FORMATS[format], weight=True)), bias_O, table

    def __call__(self, x_MI: Tensor) -> Tensor:
        run = self.table.launch("a16_mm", x_MI.shape[0])
        if run is None:
            return F.linear(x_MI, triton_linear.dequantize(self.weight, x_MI.dtype), self.bias_O)
        return triton_linear.a16_mm(x_MI, self.weight, self.bias_O, run, self.table.tma)


@dataclass(frozen=True)
class Scaling:
    """What torch's scaled_mm calls a format: the elements, the blocks' scales, and which of the activations and of the
    weight share one, each with the layout of the scales."""

    element: torch.dtype
    scale: torch.dtype
    recipes: tuple[list[ScalingType], list[ScalingType]]
    swizzles: list[SwizzleType]


class BlockScaled:
    """Formats "mxfp8" and "nvfp4" on Blackwell and "fp8_block" on Hopper, by torch's scaled_mm (cuBLASLt)."""

    SCALINGS = {
        "mxfp8": Scaling(
            torch.float8_e4m3fn,
            torch.float8_e8m0fnu,
            ([ScalingType.BlockWise1x32],) * 2,
            [SwizzleType.SWIZZLE_32_4_4],
        ),
        "nvfp4": Scaling(
            torch.float4_e2m1fn_x2,
            torch.float8_e4m3fn,
            ([ScalingType.BlockWise1x16, ScalingType.TensorWise],) * 2,
            [SwizzleType.SWIZZLE_32_4_4, SwizzleType.NO_SWIZZLE],
        ),
        "fp8_block": Scaling(
            torch.float8_e4m3fn,
            torch.float32,
            ([ScalingType.BlockWise1x128], [ScalingType.BlockWise128x128]),
            [SwizzleType.NO_SWIZZLE],
        ),
    }

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str):
        _check_multiples_of_16(weight_OI)
        self.format, self.scaling, self.bias_O = FORMATS[format], self.SCALINGS[format], bias_O
        packed = pack(weight_OI, self.format, weight=True)
        self.values_OI, self.tensor_scale = packed.values, packed.tensor_scale
        if self.format.outputs == 1:
            self.scale = swizzled(packed.scales.view(torch.uint8))
        else:  # the runs of a column of blocks, each filled up to a multiple of 4
            self.scale = F.pad(packed.scales, (0, -packed.scales.shape[1] % 4)).t()

    def __call__(self, x_MI: Tensor) -> Tensor:
        quantize = quantize_blocks if self.format.outputs == 1 else quantize_tiles
        return self.multiply(*quantize(x_MI, self.format), x_MI.dtype)[: len(x_MI)]

    def multiply(self, values_MI: Tensor, scale: Tensor, tensor_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Of activations as they are returned, quantized, by triton_linear."""
        kind = self.scaling
        scales = [
            [part for part in (block.view(kind.scale), tensor) if part is not None]
            for block, tensor in ((scale, tensor_scale), (self.scale, self.tensor_scale))
        ]
        y_MO = F.scaled_mm(
            values_MI.view(kind.element),
            self.values_OI.view(kind.element).t(),
            scale_a=scales[0],
            scale_recipe_a=kind.recipes[0],
            scale_b=scales[1],
            scale_recipe_b=kind.recipes[1],
            swizzle_a=kind.swizzles,
            swizzle_b=kind.swizzles,
            output_dtype=dtype,
        )
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)


def swizzled(scales: Tensor) -> Tensor:
    """Block scales [rows, blocks], bytes, in cuBLAS's "1D block scaling factors layout": tiles of 128 rows by 4 blocks,
    row by row of tiles; in a tile, scale (r, b) lies at 16 (r % 32) + 4 (r // 32) + b. Filled up with zeros."""
    rows, blocks = scales.shape
    padded = F.pad(scales, (0, -blocks % 4, 0, -rows % 128))
    tiles = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().flatten()


def _check_multiples_of_16(weight_OI: Tensor) -> None:
    if weight_OI.shape[0] % 16 or weight_OI.shape[1] % 16:
        raise ValueError(f"8-bit products need features in multiples of 16, got a weight of {[*weight_OI.shape]}")


def build_cublas(table: Table) -> PackLinear:
    return lambda weight_OI, bias_O, *, format="none": Unscaled(weight_OI, bias_O, table)


def build_scaled_mm(table: Table) -> PackLinear:
    by_row, by_block = packer(RowScaled, table=table, product=torch_scaled_mm), packer(BlockScaled)

    def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        return (by_block if format == "fp8_block" else by_row)(weight_OI, bias_O, format=format)

    return pack_linear


def build_triton_scaled_mm(table: Table) -> PackLinear:
    return packer(RowScaled, table=table, product=triton_linear.scaled_mm)


def build_triton_a16(table: Table) -> PackLinear:
    return packer(WeightOnly, table=table)


def build_block_scaled_mm(table: Table) -> PackLinear:
    return packer(BlockScaled)


def packer(linear: type, **options: Any) -> PackLinear:
    """The contract's op: `linear`, one of the classes above, for a format, and for "none" the weight as it is."""

    def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if format == "none":
            return partial(F.linear, weight=weight_OI, bias=bias_O)
        return linear(weight_OI, bias_O, format, **options)

    return pack_linear
