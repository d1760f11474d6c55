"""Linears on AMD GPUs by the vendor's products: AITER's, which are Composable Kernel's, and torch's scaled ones, which
are hipBLASLt's. What they share with ours is in `cosmos3_triton.linears`: weights by the row and activations that a
kernel of ours packs, in e4m3 as the architecture has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from cosmos3_triton import layers
from cosmos3_triton.activations import quantize_tiles, swizzled
from cosmos3_triton.linears import RowScaled, in_format, named, packer, to_fnuz, torch_scaled_mm
from cosmos3_triton.products import ADDING
from cosmos3_triton.tables import Find, Table
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from cosmos3_core.contract import Device, PackFinish, PackLinear, PackProject
from cosmos3_core.quant.numerics import Packed, pack

from .flavours import fnuz, swizzles
from .signatures import form, load

GATED = "gated_mm_8bit"
"""What tables call our product in 8 bits that applies the gate."""


def by_row(device: Device, find: Find, product: Callable[..., Tensor]) -> PackLinear:
    """Weights and activations in 8 bits with scales of rows, multiplied by `product`."""
    return packer(RowScaled, table=find(device.arch, device.name), product=product)


def without_ours(device: Device, find: Find) -> Table:
    """Launches for a half of a layer whose products are all the vendor's: none of ours applies a gate or adds."""
    table = find(device.arch, device.name)
    kept = {name: launches for name, launches in table.launches.items() if name not in (ADDING, GATED)}
    return replace(table, launches=kept)


def aiter_a8w8() -> Callable[..., Tensor]:
    """int8 and e4m3 with scales of rows and outputs, by AITER's gemm_a8w8."""
    gemm_a8w8 = load("gemm_a8w8")

    def product(
        a_MI: Tensor,
        b_OI: Tensor,
        scale_a_M1: Tensor,
        scale_b_O1: Tensor,
        bias_O: Tensor | None,
        dtype: torch.dtype,
        table: Table,
    ) -> Tensor:
        """As cosmos3_triton.products.scaled_mm."""
        return gemm_a8w8(a_MI, b_OI, scale_a_M1, scale_b_O1, bias=bias_O, dtype=dtype)

    return product


def build_aiter_a8w8(device: Device, find: Find) -> PackLinear:
    return by_row(device, find, aiter_a8w8())


def build_aiter_project(device: Device, find: Find) -> PackProject:
    return layers.build_project(without_ours(device, find), aiter_a8w8())


def build_aiter_finish(device: Device, find: Find) -> PackFinish:
    return layers.build_finish(without_ours(device, find), aiter_a8w8())


def build_scaled_mm(device: Device, find: Find) -> PackLinear:
    return by_row(device, find, torch_scaled_mm)


def build_scaled_mm_project(device: Device, find: Find) -> PackProject:
    return layers.build_project(without_ours(device, find), torch_scaled_mm)


def build_scaled_mm_finish(device: Device, find: Find) -> PackFinish:
    return layers.build_finish(without_ours(device, find), torch_scaled_mm)


class BlockLinear:
    """Format "fp8_block": e4m3 with scales for 128 x 128 of the weight and 1 x 128 of the activations, by AITER's
    gemm_a8w8_blockscale. On gfx942 both are brought into its own e4m3, with scales twice as large."""

    def __init__(self, weight_OI: Tensor | Packed, bias_O: Tensor | None, format: str, arch: str):
        packed = in_format(weight_OI, format)
        self.gemm, self.format, self.bias_O, self.fnuz = load("gemm_a8w8_blockscale"), packed.format, bias_O, fnuz(arch)
        self.values_OI, self.scale = packed.values, packed.scales
        if self.fnuz:
            self.values_OI, self.scale = to_fnuz(packed.values), 2 * packed.scales

    def __call__(self, x_MI: Tensor) -> Tensor:
        values_MI, scale, _ = quantize_tiles(x_MI, self.format)
        values_MI, scale = values_MI[: len(x_MI)], scale[: len(x_MI)].contiguous()
        if self.fnuz:
            values_MI, scale = to_fnuz(values_MI), scale.mul_(2)
        y_MO = self.gemm(values_MI, self.values_OI, scale, self.scale, dtype=x_MI.dtype)
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale, bias=self.bias_O)


def build_aiter_block(device: Device, find: Find) -> PackLinear:
    return packer(BlockLinear, arch=device.arch)


class FourBits:
    """Format "mxfp4" by AITER's gemm_a4w4. Weights lie in tiles of 16 x 16 bytes, scales in AITER's own order, filled
    up to 256 outputs and 8 blocks; input features are filled up to whole runs of 8 blocks. Activations are packed by
    AITER, which rounds the exponent of a block's scale to the nearest and not down."""

    FEATURES, ROWS = 256, 32

    def __init__(self, weight_OI: Tensor | Packed, bias_O: Tensor | None, format: str):
        packed = in_format(weight_OI, format)
        self.gemm, self.form = load("gemm_a4w4"), form("gemm_a4w4")
        self.quantize, self.bias_O, self.outputs = load("per_1x32_f4_quant_hip"), bias_O, packed.shape[0]
        self.missing = -packed.shape[1] % self.FEATURES
        values, scales = F.pad(packed.values, (0, self.missing // 2)), F.pad(packed.scales, (0, self.missing // 32))
        # Held as bytes: these two types know no copies and no sums, and who moves a weight needs neither.
        self.values_OI = load("shuffle_weight")(values, layout=(16, 16))
        self.scale = load("e8m0_shuffle")(scales).view(torch.uint8)

    def __call__(self, x_MI: Tensor) -> Tensor:
        values_MI, scale = self.quantize(F.pad(x_MI, (0, self.missing)).contiguous(), shuffle=True)
        given = values_MI, self.values_OI.view(values_MI.dtype), scale, self.scale.view(scale.dtype)
        if "out" in self.form.placed:
            rows = len(x_MI) + -len(x_MI) % self.ROWS
            out_MO = torch.empty(rows, self.outputs, dtype=x_MI.dtype, device=x_MI.device)
            out_MO = self.gemm(*given, out_MO, bpreshuffle=True)[: len(x_MI)]
        else:
            out_MO = self.gemm(*given, dtype=x_MI.dtype, bpreshuffle=True)
        return out_MO if self.bias_O is None else out_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale, bias=self.bias_O)


def build_aiter_a4w4(device: Device, find: Find) -> PackLinear:
    return packer(FourBits)


class MxLinear:
    """Formats "mxfp8" and "mxfp4" by torch's scaled_mm. Activations are packed by torch, in many launches, and their
    rows filled up to a multiple of 32."""

    ROWS = 32
    ELEMENTS = {"e4m3": torch.float8_e4m3fn, "e2m1": torch.float4_e2m1fn_x2}

    def __init__(self, weight_OI: Tensor | Packed, bias_O: Tensor | None, format: str, swizzled: bool):
        packed = in_format(weight_OI, format)
        self.format, self.bias_O, self.swizzled = packed.format, bias_O, swizzled
        self.values_OI, self.scale = packed.values, self.laid_out(packed.scales)

    def laid_out(self, scales: Tensor) -> Tensor:
        """Scales of blocks, bytes, as this ROCm reads them."""
        return swizzled(scales) if self.swizzled else scales.contiguous()

    def __call__(self, x_MI: Tensor) -> Tensor:
        x, element = pack(F.pad(x_MI, (0, 0, 0, -len(x_MI) % self.ROWS)), self.format), self.format.element
        how = SwizzleType.SWIZZLE_32_4_4 if self.swizzled else SwizzleType.NO_SWIZZLE
        y_MO = F.scaled_mm(
            x.values.view(self.ELEMENTS[element]),
            self.values_OI.view(self.ELEMENTS[element]).t(),
            scale_a=self.laid_out(x.scales).view(torch.float8_e8m0fnu),
            scale_recipe_a=ScalingType.BlockWise1x32,
            scale_b=self.scale.view(torch.float8_e8m0fnu),
            scale_recipe_b=ScalingType.BlockWise1x32,
            swizzle_a=how,
            swizzle_b=how,
            output_dtype=x_MI.dtype,
        )[: len(x_MI)]
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale, bias=self.bias_O)


def build_mx(device: Device, find: Find) -> PackLinear:
    return packer(MxLinear, swizzled=swizzles(device))
