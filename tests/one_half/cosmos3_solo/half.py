from __future__ import annotations

from torch import Tensor

from cosmos3_core.contract import FinishWeights, Layer, Ops, Residual


class GatingHalf:
    """The plan's norm and products, and between up and down an activation of its own."""

    def __init__(self, weights: FinishWeights, layer: Layer, ops: Ops, format: str):
        self.norm_I, self.layer, self.ops = weights.norm_I, layer, ops
        named = {"out": weights.out_OI, "up": weights.up_OI, "down": weights.down_OI}
        self.products = {name: ops.pack_linear(weight, None, format=format) for name, weight in named.items()}

    def __call__(self, residual: Residual, attended_BSHD: Tensor) -> None:
        c, added = self.layer, self.products["out"](attended_BSHD.flatten(0, 1).flatten(1))
        options = {"eps": c.eps, "weight_fp32": c.weight_fp32}
        h_MI, residual.x_MI = self.ops.rms_norm(residual.x_MI, self.norm_I, residual_MI=added, **options)
        residual.delta_MI = self.products["down"](self.activated(self.products["up"](h_MI)))

    def activated(self, x_MI: Tensor) -> Tensor:
        if self.layer.activation == "relu2":
            return x_MI.clamp_min(0) ** 2
        gate, up = x_MI.float().chunk(2, dim=-1)
        return (gate * gate.sigmoid() * up).to(x_MI.dtype)

    def tensors(self) -> dict[str, Tensor] | None:
        held = {name: product.tensors() for name, product in self.products.items()}
        if None in held.values():
            return None
        named = {f"{product}.{name}": t for product, tensors in held.items() for name, t in tensors.items()}
        return {"norm": self.norm_I} | named


def gating_half(weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> GatingHalf:
    return GatingHalf(weights, layer, ops, format)
