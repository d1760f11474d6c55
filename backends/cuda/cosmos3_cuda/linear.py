"""Linears on NVIDIA GPUs by torch's scaled products. What they share with ours is in `cosmos3_triton.linears`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from cosmos3_triton import linears
from cosmos3_triton.activations import quantize_blocks, quantize_tiles, swizzled
from cosmos3_triton.linears import RowScaled, check_multiples_of_16, in_format, named, packer
from cosmos3_triton.tables import Table
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from cosmos3_core.contract import Linear, PackLinear
from cosmos3_core.quant.numerics import Packed

# On an H100, fast accumulation errs by 1.5e-3 and the other by 2e-4, where rounding to e4m3 costs 3.7e-2; it is faster
# by a tenth to a fifth. By cuBLASLt on Hopper, CUTLASS elsewhere.
torch_scaled_mm = partial(linears.torch_scaled_mm, fast=True)


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

    def __init__(self, weight_OI: Tensor | Packed, bias_O: Tensor | None, format: str):
        packed = in_format(weight_OI, format)
        check_multiples_of_16(packed.shape)
        self.format, self.scaling, self.bias_O = packed.format, self.SCALINGS[format], bias_O
        self.values_OI, self.tensor_scale, self.given = packed.values, packed.tensor_scale, packed.input_scale
        self.by_row_O: Tensor | None = None
        if packed.tensor_scale is not None and packed.tensor_scale.ndim:  # of weights that were packed apart
            self.by_row_O, self.tensor_scale = packed.tensor_scale.flatten(), torch.ones_like(packed.tensor_scale[0, 0])
        if self.format.outputs == 1:
            self.scale = swizzled(packed.scales.view(torch.uint8))
        else:  # the runs of a column of blocks, each filled up to a multiple of 4
            self.scale = F.pad(packed.scales, (0, -packed.scales.shape[1] % 4)).t()

    def __call__(self, x_MI: Tensor) -> Tensor:
        if self.format.outputs == 1:
            return self.multiply(*quantize_blocks(x_MI, self.format, self.given), x_MI.dtype)
        return self.multiply(*quantize_tiles(x_MI, self.format), x_MI.dtype)[: len(x_MI)]

    def multiply(self, values_MI: Tensor, scale: Tensor, tensor_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Of activations as they are returned, quantized, by `quantize_blocks` or `quantize_tiles`."""
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
        if self.by_row_O is not None:
            y_MO.mul_(self.by_row_O)
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        held = {"values": self.values_OI, "scale": self.scale}
        beside = named(tensor_scale=self.tensor_scale, by_row=self.by_row_O, input_scale=self.given, bias=self.bias_O)
        return held | beside


def build_scaled_mm(table: Table) -> PackLinear:
    by_row, by_block = packer(RowScaled, table=table, product=torch_scaled_mm), packer(BlockScaled)

    def pack_linear(weight_OI: Tensor | Packed, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        return (by_block if format == "fp8_block" else by_row)(weight_OI, bias_O, format=format)

    return pack_linear


def build_block_scaled_mm() -> PackLinear:
    return packer(BlockScaled)
