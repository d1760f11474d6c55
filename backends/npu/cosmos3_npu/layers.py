"""The two halves of a decoder layer. In quantization formats norms and gates hand their rows quantized to the product
behind them, where an operator does that, so that a row is read and written in 16 bits once. Where the norm of a sum
rounds once, on the 950, and its weight has to come after a rounding, the weight lies in the columns of the product
behind it. Everything else is the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cosmos3_core.contract import (
    Device,
    Finish,
    FinishWeights,
    Layer,
    NormRope,
    Ops,
    PackFinish,
    PackProject,
    Project,
    Projected,
    ProjectWeights,
    Residual,
)

from . import rows
from .linears import pack_linear
from .quantized import Rows, Scheme, scheme_of

Heads = Sequence[tuple[Tensor, Tensor | None]]


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


def norm_once(
    x_MI: Tensor,
    weight_I: Tensor,
    *,
    eps: float,
    residual_MI: Tensor | None = None,
    weight_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """contract.ops.RmsNorm of the 950, rounded once whatever is asked, and the sum not at all: where rows are quantized
    next, or the weight is ones."""
    import torch_npu

    if residual_MI is None:
        return torch_npu.npu_rms_norm(x_MI, weight_I, eps)[0], x_MI
    y_MI, _, z_MI = torch_npu.npu_add_rms_norm(x_MI, residual_MI, weight_I, eps)
    return y_MI, z_MI


def norm_rope_once(
    ours: NormRope, heads: Heads, cos_BSD: Tensor, sin_BSD: Tensor, *, eps: float, weight_fp32: bool = False
) -> list[Tensor]:
    """contract.ops.NormRope, rounded once whatever is asked: beside quantized rows nobody sees the order, and fewer
    operators are launched."""
    return ours(heads, cos_BSD, sin_BSD, eps=eps, weight_fp32=True)


def of_format(ops: Ops, format: str, device: Device) -> Ops:
    """The plan's ops, with norms, linears and, where the format has rows that are passed on, gates of ours."""
    ours = {"norm_rope": partial(norm_rope_once, rows.build_norm_rope(device)), "pack_linear": pack_linear}
    scheme = scheme_of(format, device.arch)
    if scheme is None:
        ours["rms_norm"] = norm_once
    else:
        ours |= {"rms_norm": partial(norm, scheme), "gate": partial(gate, scheme)}
    return replace(ops, **ours)  # type: ignore[arg-type]  # rows are between ours alone


def build_project(device: Device) -> PackProject:
    """Formats other than "none"."""

    def project(weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
        return ops.project(weights, layer, of_format(ops, format, device), format=format)

    return project


def build_finish(device: Device) -> PackFinish:
    """Formats other than "none"."""

    def finish(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
        return ops.finish(weights, layer, of_format(ops, format, device), format=format)

    return finish


def folded(matrix_OI: Tensor, norm_I: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix that multiplies normed rows, with the norm's weight in its columns, and the weight that is left."""
    return matrix_OI * norm_I, torch.ones_like(norm_I)


@dataclass(frozen=True)
class HeadNorms:
    """contract.ops.NormRope of a layer. Its queries and keys lie beside each other in one projection: they are normed,
    multiplied by `weight_ND`, a row for each head, and rotated as one."""

    weight_ND: Tensor

    def __call__(
        self, heads: Heads, cos_BSD: Tensor, sin_BSD: Tensor, *, eps: float, weight_fp32: bool = False
    ) -> list[Tensor]:
        import torch_npu

        (q, _), (k, _), *rest = heads
        units = rows.normed(rows.together(q, k), eps)
        others = [units[:, :, q.shape[2] :] * weight for _, weight in rest if weight is not None]
        cos, sin = cos_BSD.unsqueeze(2), sin_BSD.unsqueeze(2)
        both, *others = (torch_npu.npu_rotary_mul(x, cos, sin) for x in (units.mul_(self.weight_ND), *others))
        return [*both.split([q.shape[2], k.shape[2]], dim=2), *others]


@dataclass(frozen=True)
class FoldedProject:
    """contract.Project. `half` is the default one, on folded weights; `weight_ND` is that of its `HeadNorms`."""

    half: Project
    weight_ND: Tensor

    def __call__(self, residual: Residual, cos_BSD: Tensor, sin_BSD: Tensor) -> Projected:
        return self.half(residual, cos_BSD, sin_BSD)

    def tensors(self) -> dict[str, Tensor] | None:
        held = self.half.tensors()
        if held is None:
            return None
        return {name: held[name] for name in held if name not in ("norm_q", "norm_k")} | {"norm_heads": self.weight_ND}


def build_folded_project(device: Device) -> PackProject:
    norm_rope = rows.build_norm_rope(device)

    def project(weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
        ours = replace(ops, rms_norm=norm_once, norm_rope=norm_rope, pack_linear=pack_linear)
        if layer.weight_fp32:
            return ops.project(weights, layer, ours, format=format)
        qkv_OI, norm_I = folded(weights.qkv_OI, weights.norm_I)
        weights = replace(weights, qkv_OI=qkv_OI, norm_I=norm_I)
        if weights.norm_q_D is None or weights.norm_k_D is None:
            return ops.project(weights, layer, ours, format=format)
        each = (weights.norm_q_D, layer.heads), (weights.norm_k_D, layer.kv_heads)
        weight_ND = torch.cat([weight.expand(heads, -1) for weight, heads in each])
        ours = replace(ours, norm_rope=HeadNorms(weight_ND))
        return FoldedProject(ops.project(weights, layer, ours, format=format), weight_ND)

    return project


def build_folded_finish(device: Device) -> PackFinish:
    def finish(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
        ours = replace(ops, rms_norm=norm_once, pack_linear=pack_linear)
        if not layer.weight_fp32:
            up_OI, norm_I = folded(weights.up_OI, weights.norm_I)
            weights = replace(weights, up_OI=up_OI, norm_I=norm_I)
        return ops.finish(weights, layer, ours, format=format)

    return finish
