"""Linears with our products: with weights in the formats of `cosmos3_core.quant`, and as they are.

Each is made once per weight and keeps the packed form alone. Weights are packed on the device they came on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Linear, PackLinear
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack

from .activations import Rows, quantize_rows
from .products import scaled_mm
from .tables import Table
from .weight_only import Paired, a16_mm, dequantize


class Plain:
    """Format "none": the weight as it is, by torch."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None):
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(weight=self.weight_OI, bias=self.bias_O)


class RowScaled:
    """Formats "int8" and "fp8": 8 bits by 8 bits with a scale for each token and each output, by `product`. A tensor's
    rows are quantized here, in a pass of their own."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, format: str, table: Table, product: Callable[..., Tensor]
    ):
        check_multiples_of_16(weight_OI)
        values = pack(weight_OI, FORMATS[format], weight=True)
        self.values_OI, self.scale_O1, self.bias_O = values.values, values.scales, bias_O
        self.format, self.table, self.product = format, table, product

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self.multiply(self.rows(x_MI))

    def rows(self, x_MI: Tensor | Rows) -> Rows:
        """Quantized, unless they come so."""
        return x_MI if isinstance(x_MI, Rows) else quantize_rows(x_MI, self.format)

    def multiply(self, x: Rows) -> Tensor:
        return self.product(x.values_MI, self.values_OI, x.scale_M1, self.scale_O1, self.bias_O, x.dtype, self.table)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O1, bias=self.bias_O)


class WeightOnly:
    """Formats "w4a16", "mxfp4a16", "nvfp4a16". Few rows are multiplied with weights that stay in 4 bits until they are
    in registers. For many the arithmetic outweighs the reading: the weight is made 16 bits once and multiplied by
    torch, which costs that much memory for the time of the call."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str, table: Table):
        self.weight, self.bias_O, self.table = Paired.of(pack(weight_OI, FORMATS[format], weight=True)), bias_O, table

    def __call__(self, x_MI: Tensor) -> Tensor:
        launch = self.table.find("a16_mm", x_MI.shape[0])
        if launch is None:
            return F.linear(x_MI, dequantize(self.weight, x_MI.dtype), self.bias_O)
        return a16_mm(x_MI, self.weight, self.bias_O, launch, self.table.tma)

    def tensors(self) -> dict[str, Tensor]:
        weight = self.weight
        return named(codes=weight.codes, scales=weight.scales, tensor_scale=weight.tensor_scale, bias=self.bias_O)


def named(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are there."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_multiples_of_16(weight_OI: Tensor) -> None:
    """ValueError unless both sides of the weight are, as 8-bit products need it."""
    if weight_OI.shape[0] % 16 or weight_OI.shape[1] % 16:
        raise ValueError(f"8-bit products need features in multiples of 16, got a weight of {[*weight_OI.shape]}")


def build_scaled_mm(table: Table) -> PackLinear:
    """Formats "int8" and "fp8"."""
    return packer(RowScaled, table=table, product=scaled_mm)


def build_a16(table: Table) -> PackLinear:
    """Formats "w4a16", "mxfp4a16" and "nvfp4a16"."""
    return packer(WeightOnly, table=table)


def packer(linear: type, **options: Any) -> PackLinear:
    """The contract's op: `linear`, a class made of (weight, bias, format, **options), for a format, and for "none" the
    weight as it is."""

    def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if format == "none":
            return Plain(weight_OI, bias_O)
        return linear(weight_OI, bias_O, format, **options)

    return pack_linear
