"""The two halves of a decoder layer in quantization formats: norms and gates hand their rows quantized to the product
behind them, so that a row is read and written in 16 bits once. Everything else is the plan's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from cosmos3_core.contract import Finish, FinishWeights, Layer, Ops, Project, ProjectWeights

from . import rows
from .linears import pack_linear
from .quantized import SCHEMES, Rows, Scheme


def norm(
    scheme: Scheme,
    x_MI: Tensor,
    weight_I: Tensor,
    *,
    eps: float,
    residual_MI: Tensor | None = None,
    weight_fp32: bool = False,
) -> tuple[Rows, Tensor]:
    """contract.ops.RmsNorm with its rows in the scheme."""
    return scheme.norm(x_MI, residual_MI, weight_I, eps)


def gate(scheme: Scheme, x_MI: Tensor, *, activation: str) -> Rows:
    """contract.ops.Gate with its rows in the scheme."""
    return scheme.gate(x_MI) if activation == "silu" else scheme.rows(rows.gate(x_MI, activation=activation))


def of_format(ops: Ops, format: str) -> Ops:
    """The plan's ops, with norm, gate and linears that pass quantized rows on to each other."""
    scheme = SCHEMES[format]
    quantized = {"rms_norm": partial(norm, scheme), "gate": partial(gate, scheme), "pack_linear": pack_linear}
    return replace(ops, **quantized)  # type: ignore[arg-type]  # rows are between ours alone


def project(weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
    """See contract.ops.PackProject."""
    return ops.project(weights, layer, of_format(ops, format), format=format)


def finish(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
    """See contract.ops.PackFinish."""
    return ops.finish(weights, layer, of_format(ops, format), format=format)
