"""Linears with our products: with weights in the formats of `cosmos3_core.quant`, and as they are.

Each is made once per weight and keeps the packed form alone. Weights are packed on the device they came on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Linear, PackLinear
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import Packed, pack

from .activations import E4M3_FNUZ, Rows, element, quantize_rows
from .products import scaled_mm
from .rounding import round_trip
from .tables import Table
from .weight_only import Stored, a16_mm, dequantize


class Plain:
    """Format "none": the weight as it is, by torch."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None):
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(weight=self.weight_OI, bias=self.bias_O)


class RowScaled:
    """Formats with int8 or e4m3 for weights and inputs and scales of whole rows or tensors, by `product`. A tensor's
    rows are quantized here, in a pass of their own: by a stored scale, or each by its own."""

    def __init__(
        self,
        weight_OI: Tensor | Packed,
        bias_O: Tensor | None,
        format: str,
        table: Table,
        product: Callable[..., Tensor],
    ):
        packed = in_format(weight_OI, format)
        check_multiples_of_16(packed.shape)
        self.values_OI, self.bias_O, self.given = packed.values, bias_O, packed.input_scale
        self.scale_O1 = packed.scales.expand(len(packed.values), 1).contiguous()
        self.format, self.table, self.product, self.fp8 = format, table, product, element(table).torch
        if self.fp8 == E4M3_FNUZ.torch and packed.format.element == "e4m3":
            self.values_OI, self.scale_O1 = to_fnuz(self.values_OI), 2 * self.scale_O1
            self.given = None if self.given is None else 2 * self.given

    def __call__(self, x_MI: Tensor | Rows) -> Tensor:
        return self.multiply(self.rows(x_MI))

    def rows(self, x_MI: Tensor | Rows) -> Rows:
        """Quantized, unless they come so."""
        return x_MI if isinstance(x_MI, Rows) else quantize_rows(x_MI, self.format, self.given, self.fp8)

    def multiply(self, x: Rows) -> Tensor:
        if not len(x.values_MI):
            return x.scale_M1.new_empty(0, len(self.values_OI), dtype=x.dtype)
        return self.product(x.values_MI, self.values_OI, x.scale_M1, self.scale_O1, self.bias_O, x.dtype, self.table)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O1, input_scale=self.given, bias=self.bias_O)


class WeightOnly:
    """Products in 16 bits with weights of few, whose activations come through a round trip where the format has one for
    them. Few rows are multiplied with weights that stay packed until they are in registers. For many the arithmetic
    outweighs the reading: the weight is made 16 bits once and multiplied by torch, which costs that much memory for the
    time of the call. The table says up to how many rows are few; without `fused` none are."""

    def __init__(
        self, weight_OI: Tensor | Packed, bias_O: Tensor | None, format: str, table: Table, *, fused: bool = True
    ):
        packed = in_format(weight_OI, format)
        self.weight, self.bias_O, self.table, self.fused = Stored.of(packed), bias_O, table, fused
        self.given = packed.input_scale

    def __call__(self, x_MI: Tensor) -> Tensor:
        x_MI, weight = round_trip(x_MI, self.weight.format, self.given), self.weight
        launch = self.table.find("a16_mm", len(x_MI)) if self.fused and len(x_MI) else None
        if launch is None:
            return F.linear(x_MI, dequantize(weight, x_MI.dtype), self.bias_O)
        x_MI = x_MI if weight.order is None else x_MI[:, weight.order]
        return a16_mm(x_MI, weight, self.bias_O, launch, self.table.tma)

    def tensors(self) -> dict[str, Tensor]:
        return self.weight.tensors() | named(input_scale=self.given, bias=self.bias_O)


def in_format(weight_OI: Tensor | Packed, format: str) -> Packed:
    """The weight as a checkpoint packed it, or packed here. Raises ValueError for one in another format, and where the
    format's activations have a stored scale and there is none."""
    packed = weight_OI if isinstance(weight_OI, Packed) else pack(weight_OI, FORMATS[format], weight=True)
    if packed.format.name != format:
        raise ValueError(f"a weight in {packed.format.name} is asked for in {format}")
    if packed.format.static and packed.input_scale is None:
        raise ValueError(f"{format} needs the stored scale of its activations")
    return packed


def to_fnuz(values: Tensor) -> Tensor:
    """float8_e4m3fn as float8_e4m3fnuz, where the same bits mean half. But for -0, which is its NaN, and for NaN."""
    bits = values.view(torch.uint8)
    bits = torch.where(bits == 0x80, 0, torch.where(bits & 0x7F == 0x7F, 0x80, bits))
    return bits.view(torch.float8_e4m3fnuz)


def named(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are there."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_multiples_of_16(shape: Sequence[int]) -> None:
    """ValueError unless both sides of a weight are, as 8-bit products need it."""
    if shape[0] % 16 or shape[1] % 16:
        raise ValueError(f"8-bit products need features in multiples of 16, got a weight of {[*shape]}")


def torch_scaled_mm(
    a_MI: Tensor,
    b_OI: Tensor,
    scale_a_M1: Tensor,
    scale_b_O1: Tensor,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    table: Table,
    *,
    fast: bool = False,
) -> Tensor:
    """As products.scaled_mm, for e4m3, by the vendor's library inside torch. `fast`: it may sum in fewer bits."""
    scale_b_1O = scale_b_O1.t()
    y_MO = torch._scaled_mm(a_MI, b_OI.t(), scale_a_M1, scale_b_1O, out_dtype=dtype, use_fast_accum=fast)
    # cuBLASLt of CUDA 13.0 has no product with a bias for few rows of 8,192 features or more.
    return y_MO if bias_O is None else y_MO.add_(bias_O)


def build_scaled_mm(table: Table) -> PackLinear:
    """The formats of `RowScaled`."""
    return packer(RowScaled, table=table, product=scaled_mm)


def build_a16(table: Table) -> PackLinear:
    """The formats whose elements `weight_only` knows."""
    return packer(WeightOnly, table=table)


def build_dequantized(table: Table) -> PackLinear:
    """The same, with a 16-bit copy of the weight for any number of rows."""
    return packer(WeightOnly, table=table, fused=False)


def packer(linear: type, **options: Any) -> PackLinear:
    """The contract's op: `linear`, a class made of (weight, bias, format, **options), for a format, and for "none" the
    weight as it is."""

    def pack_linear(weight_OI: Tensor | Packed, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if format == "none" and isinstance(weight_OI, Tensor):
            return Plain(weight_OI, bias_O)
        return linear(weight_OI, bias_O, format, **options)

    return pack_linear
