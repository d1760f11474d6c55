"""The two halves of a decoder layer, fused over ops: norm and gate hand rows in 8 bits to the product behind them, the
MLP's first product applies its gate, and a product adds its result to the residual stream.

In 16 bits the products are torch's, but for the one with the gate. Which of these an architecture has is in its table:
where there is no launch of a product that gates or adds, the gate is a kernel of its own, and the next norm adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import (
    Finish,
    FinishWeights,
    Layer,
    Ops,
    PackFinish,
    PackProject,
    Project,
    ProjectWeights,
    Residual,
)

from .activations import Rows
from .linears import RowScaled, packer
from .products import ADDING, gated_order, scaled_mm
from .row_wise import gate_rows, norm_rows
from .tables import Table

Product = Callable[..., Tensor]
"""As products.scaled_mm."""
Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, torch.dtype]
"""The first arguments of one."""


class PlainMatrix:
    """A weight in format "none", by torch. `takes` is the format of the rows that a matrix multiplies. `add` adds a
    product to the stream's x, in place, or returns it for whoever reads the stream next."""

    takes = "none"

    def __init__(self, weight_OI: Tensor):
        self.weight_OI = weight_OI

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.weight_OI)

    def add(self, residual: Residual, x_MI: Tensor) -> None:
        residual.x_MI.addmm_(x_MI, self.weight_OI.t())

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight_OI}


class QuantizedMatrix:
    """Formats "int8" and "fp8", by `product`; what is added to the stream is a product of our own."""

    def __init__(self, weight_OI: Tensor, format: str, table: Table, product: Product):
        self.linear, self.takes, self.table = RowScaled(weight_OI, None, format, table, product), format, table
        self.adds = table.find(ADDING) is not None

    def __call__(self, x_MI: Tensor | Rows) -> Tensor:
        return self.linear.multiply(self.linear.rows(x_MI))

    def add(self, residual: Residual, x_MI: Tensor | Rows) -> Tensor | None:
        rows = self.linear.rows(x_MI)
        if not self.adds:
            return self.linear.multiply(rows)
        residual.x_MI = residual.x_MI.contiguous()
        operands = (rows.values_MI, self.linear.values_OI, rows.scale_M1, self.linear.scale_O1, None, rows.dtype)
        scaled_mm(*operands, self.table, residual_MO=residual.x_MI)
        return None

    def tensors(self) -> dict[str, Tensor]:
        return self.linear.tensors()


class GatedMatrix:
    """The weight of [gate | up], whose product with tensors or rows is silu(gate)·up, I wide and rounded once. Its rows
    lie in an order of their own."""

    def __init__(self, matrix: PlainMatrix | QuantizedMatrix, order: Tensor, table: Table):
        self.matrix, self.takes, self.table = matrix, matrix.takes, table
        if isinstance(matrix, PlainMatrix):
            matrix.weight_OI = matrix.weight_OI[order]
        else:  # bytes, because torch cannot gather 8-bit floats
            values_OI = matrix.linear.values_OI
            matrix.linear.values_OI = values_OI.view(torch.uint8)[order].view(values_OI.dtype)
            matrix.linear.scale_O1 = matrix.linear.scale_O1[order]

    def __call__(self, x_MI: Tensor | Rows) -> Tensor:
        if isinstance(self.matrix, QuantizedMatrix):
            linear, rows = self.matrix.linear, self.matrix.linear.rows(x_MI)
            operands: Operands = (rows.values_MI, linear.values_OI, rows.scale_M1, linear.scale_O1, None, rows.dtype)
        else:
            assert isinstance(x_MI, Tensor)
            operands = x_MI.contiguous(), self.matrix.weight_OI, None, None, None, x_MI.dtype
        return scaled_mm(*operands, self.table, gated=True)

    def tensors(self) -> dict[str, Tensor]:
        return self.matrix.tensors()


def packed(weight_OI: Tensor, format: str, table: Table, product: Product) -> PlainMatrix | QuantizedMatrix:
    return PlainMatrix(weight_OI) if format == "none" else QuantizedMatrix(weight_OI, format, table, product)


def with_gate(
    matrix: PlainMatrix | QuantizedMatrix, activation: str, table: Table
) -> PlainMatrix | QuantizedMatrix | GatedMatrix:
    """The matrix of [gate | up] so that it applies the gate, where a kernel does that for it."""
    values = matrix.weight_OI if isinstance(matrix, PlainMatrix) else matrix.linear.values_OI
    order = gated_order(values, table) if activation == "silu" else None
    return matrix if order is None else GatedMatrix(matrix, order, table)


class FusedFinish:
    """contract.Finish. In 16 bits the norm is the plan's."""

    def __init__(self, weights: FinishWeights, layer: Layer, ops: Ops, format: str, table: Table, product: Product):
        pack = partial(packed, format=format, table=table, product=product)
        self.layer, self.norm_I, self.gate = layer, weights.norm_I, gate_rows(table)
        self.out, self.down = pack(weights.out_OI), pack(weights.down_OI)
        self.up = with_gate(pack(weights.up_OI), layer.activation, table)
        self.norm = ops.rms_norm if format == "none" else partial(norm_rows(table), format=format)

    def __call__(self, residual: Residual, attended_BSHD: Tensor) -> None:
        c, stream = self.layer, residual
        stream.delta_MI = self.out.add(stream, attended_BSHD.reshape(len(stream.x_MI), -1))
        h, stream.x_MI = self.norm(
            stream.x_MI, self.norm_I, eps=c.eps, residual_MI=stream.delta_MI, weight_fp32=c.weight_fp32
        )
        stream.delta_MI = None
        h = self.up(h)
        if not isinstance(self.up, GatedMatrix):
            h = self.gate(h, activation=c.activation, format=self.down.takes)
        stream.delta_MI = self.down.add(stream, h)

    def tensors(self) -> dict[str, Tensor]:
        matrices = {"out": self.out, "up": self.up, "down": self.down}
        parts = {f"{name}.{part}": held for name, matrix in matrices.items() for part, held in matrix.tensors().items()}
        return parts | {"norm": self.norm_I}


def build_project(table: Table, product: Product = scaled_mm) -> PackProject:
    """Formats "int8" and "fp8": the default half, whose norm hands its rows quantized to the product."""
    pack_linear = packer(RowScaled, table=table, product=product)

    def project(weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
        ours = replace(ops, rms_norm=partial(norm_rows(table), format=format), pack_linear=pack_linear)
        return ops.project(weights, layer, ours, format=format)

    return project


def build_finish(table: Table, product: Product = scaled_mm) -> PackFinish:
    """Formats "none", "int8" and "fp8"."""

    def finish(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
        return FusedFinish(weights, layer, ops, format, table, product)

    return finish
