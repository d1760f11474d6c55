"""Linears with our products: with weights in the formats of `cosmos3_core.quant`, and as they are.

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

from cosmos3_core.contract import Linear, PackLinear, Quantized
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack

from .products import ADDING, Paired, a16_mm, dequantize, gated_order, quantize_rows, scaled_mm
from .tables import Table


@dataclass(frozen=True)
class Unscaled:
    """No format: the weight as it is, by torch, which can add to a residual; with a gate by our own product."""

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
        return scaled_mm(*operands, x_MI.dtype, self.table, gated=True)

    def gated(self) -> Unscaled:
        order = gated_order(self.weight_OI, self.table)
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
        check_multiples_of_16(weight_OI)
        packed = pack(weight_OI, FORMATS[format], weight=True)
        self.values_OI, self.scale_O1, self.bias_O = packed.values, packed.scales, bias_O
        self.takes, self.table, self.product, self.gates = format, table, product, False
        self.adds = table.launch(ADDING) is not None

    def __call__(self, x_MI: Tensor | Quantized, residual_MO: Tensor | None = None) -> Tensor:
        x = x_MI if isinstance(x_MI, Quantized) else quantize_rows(x_MI, self.takes)
        operands = (x.values_MI, self.values_OI, x.scale_M1, self.scale_O1, self.bias_O, x.dtype, self.table)
        if residual_MO is not None:
            return scaled_mm(*operands, residual_MO=residual_MO)
        return self.product(*operands)

    def gated(self) -> RowScaled:
        order = gated_order(self.values_OI, self.table)
        if order is None:
            return self
        # Bytes, because torch cannot gather 8-bit floats.
        values_OI = self.values_OI.view(torch.uint8)[order].view(self.values_OI.dtype)
        bias_O = None if self.bias_O is None else self.bias_O[order]
        gated = copy(self)
        gated.values_OI, gated.scale_O1, gated.bias_O = values_OI, self.scale_O1[order], bias_O
        gated.product, gated.gates, gated.adds = partial(scaled_mm, gated=True), True, False
        return gated


class WeightOnly:
    """Formats "w4a16", "mxfp4a16", "nvfp4a16". Few rows are multiplied with weights that stay in 4 bits until they are
    in registers. For many the arithmetic outweighs the reading: the weight is made 16 bits once and multiplied by
    torch, which costs that much memory for the time of the call."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str, table: Table):
        self.weight, self.bias_O, self.table = Paired.of(pack(weight_OI, FORMATS[format], weight=True)), bias_O, table

    def __call__(self, x_MI: Tensor) -> Tensor:
        run = self.table.launch("a16_mm", x_MI.shape[0])
        if run is None:
            return F.linear(x_MI, dequantize(self.weight, x_MI.dtype), self.bias_O)
        return a16_mm(x_MI, self.weight, self.bias_O, run, self.table.tma)


def check_multiples_of_16(weight_OI: Tensor) -> None:
    """ValueError unless both sides of the weight are, as 8-bit products need it."""
    if weight_OI.shape[0] % 16 or weight_OI.shape[1] % 16:
        raise ValueError(f"8-bit products need features in multiples of 16, got a weight of {[*weight_OI.shape]}")


def build_unscaled(table: Table) -> PackLinear:
    """Format "none" alone."""
    return lambda weight_OI, bias_O, *, format="none": Unscaled(weight_OI, bias_O, table)


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
            return partial(F.linear, weight=weight_OI, bias=bias_O)
        return linear(weight_OI, bias_O, format, **options)

    return pack_linear
