"""The composites made of primitives: the two halves of a decoder layer, on the rows that the plan chose for each op."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..contract import FinishWeights, Layer, Linear, Ops, Projected, ProjectWeights, Residual


class Project:
    """contract.Project."""

    def __init__(self, weights: ProjectWeights, layer: Layer, ops: Ops, format: str):
        self.layer, self.ops, self.norm_I = layer, ops, weights.norm_I
        self.norm_q_D, self.norm_k_D = weights.norm_q_D, weights.norm_k_D
        self.norm_k_for_gen_D = weights.norm_k_for_gen_D
        self.qkv = ops.pack_linear(weights.qkv_OI, None, format=format)

    def __call__(self, residual: Residual, cos_BSD: Tensor, sin_BSD: Tensor) -> Projected:
        c, stream = self.layer, residual
        options: dict[str, Any] = {"eps": c.eps, "weight_fp32": c.weight_fp32}
        h_MI, stream.x_MI = self.ops.rms_norm(stream.x_MI, self.norm_I, residual_MI=stream.delta_MI, **options)
        stream.delta_MI = None
        heads = self.qkv(h_MI).view(len(cos_BSD), -1, c.heads + 2 * c.kv_heads, c.head_dim)
        del h_MI
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        normed: list[tuple[Tensor, Tensor | None]] = [(q, self.norm_q_D), (k, self.norm_k_D)]
        if self.norm_k_for_gen_D is not None:
            normed.append((k, self.norm_k_for_gen_D))
        q, k, *k_for_gen = self.ops.norm_rope(normed, cos_BSD, sin_BSD, **options)
        return Projected(q, k, v, k_for_gen[0] if k_for_gen else None)

    def tensors(self) -> dict[str, Tensor] | None:
        norms = {"norm": self.norm_I, "norm_q": self.norm_q_D, "norm_k": self.norm_k_D}
        return _tensors({"qkv": self.qkv}, norms | {"norm_k_for_gen": self.norm_k_for_gen_D})


class Finish:
    """contract.Finish. What is left to add is added by the norm that reads the residual stream next."""

    def __init__(self, weights: FinishWeights, layer: Layer, ops: Ops, format: str):
        self.norm_I, self.layer, self.ops = weights.norm_I, layer, ops
        self.out, self.up, self.down = (
            ops.pack_linear(weight, None, format=format) for weight in (weights.out_OI, weights.up_OI, weights.down_OI)
        )

    def __call__(self, residual: Residual, attended_BSHD: Tensor) -> None:
        c, stream = self.layer, residual
        # No name for the rows of what was attended, nor for their projection: they would live on through the MLP, whose
        # tensors are the largest.
        h_MI, stream.x_MI = self.ops.rms_norm(
            stream.x_MI,
            self.norm_I,
            eps=c.eps,
            residual_MI=self.out(attended_BSHD.reshape(-1, c.heads * c.head_dim)),
            weight_fp32=c.weight_fp32,
        )
        h_MI = self.up(h_MI)
        stream.delta_MI = self.down(self.ops.gate(h_MI, activation=c.activation))

    def tensors(self) -> dict[str, Tensor] | None:
        return _tensors({"out": self.out, "up": self.up, "down": self.down}, {"norm": self.norm_I})


def _tensors(linears: dict[str, Linear], plain: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
    """All of them by name; None if one of the linears cannot be moved."""
    found = {name: tensor for name, tensor in plain.items() if tensor is not None}
    for name, linear in linears.items():
        if (held := linear.tensors()) is None:
            return None
        found |= {f"{name}.{part}": tensor for part, tensor in held.items()}
    return found


def project(weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
    """See contract.ops.PackProject."""
    return Project(weights, layer, ops, format)


def finish(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
    """See contract.ops.PackFinish."""
    return Finish(weights, layer, ops, format)
