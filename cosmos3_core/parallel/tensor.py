"""Tensor parallel: each process has some heads of every layer's attention and as much of its MLP, and what these give
is summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..contract import Finish, FinishWeights, Layer, Linear, Ops, RunError
from ..model.weights import Target
from ..quant.splitting import columns_of, rows_of
from ..reference import layers
from .attention import kv_heads_of
from .ranks import Circle


@dataclass(frozen=True)
class Part:
    """model.weights.Part of one process of a circle. What is packed is packed whole, `packed` by whom, and then split:
    its scales are those that one device has."""

    circle: Circle
    packed: Callable[[Tensor], Any] | None

    def __call__(self, w: Mapping[str, Any], layer: Layer, format: str) -> tuple[dict[str, Any], Layer]:
        try:
            return self._own(w, layer, format)
        except ValueError as error:  # what only the files say, such as an order of the features
            asked = f"splitting layers among {self.circle.count} devices"
            raise RunError(asked, str(error), "Split another axis than tensor") from error

    def _own(self, w: Mapping[str, Any], layer: Layer, format: str) -> tuple[dict[str, Any], Layer]:
        count, number = self.circle.count, self.circle.number
        whole = dict(w)
        if format != "none" and self.packed:
            for key in ("qkv", "out", "up", "down"):
                whole[key] = self.packed(w[key]) if isinstance(w[key], Tensor) else w[key]
        size, heads, keys = layer.head_dim, layer.heads // count, kv_heads_of(count, number, layer.kv_heads)
        q = slice(number * heads * size, (number + 1) * heads * size)
        before, each = layer.heads * size, layer.kv_heads * size
        k = slice(before + keys.start * size, before + keys.stop * size)
        v = slice(k.start + each, k.stop + each)
        inner = _width(whole["down"])
        own = slice(number * inner // count, (number + 1) * inner // count)
        up = [own, slice(inner + own.start, inner + own.stop)] if layer.activation == "silu" else [own]
        whole["qkv"], whole["out"] = rows_of(whole["qkv"], [q, k, v]), columns_of(whole["out"], q)
        whole["up"], whole["down"] = rows_of(whole["up"], up), columns_of(whole["down"], own)
        return whole, replace(layer, heads=heads, kv_heads=keys.stop - keys.start)


def _width(weight_OI: Any) -> int:
    return int((weight_OI[0] if isinstance(weight_OI, tuple) else weight_OI).shape[-1])


class Summed:
    """contract.Linear of the features that this process has, summed over all."""

    def __init__(self, linear: Linear, circle: Circle):
        self.linear, self.circle = linear, circle

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self.circle.summed(self.linear(x_MI))

    def tensors(self) -> dict[str, Tensor] | None:
        return self.linear.tensors()


@dataclass(frozen=True)
class PackFinish:
    """contract.PackFinish whose two products are sums over a circle."""

    circle: Circle

    def __call__(self, weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
        made = layers.finish(weights, layer, ops, format=format)
        made.out, made.down = Summed(made.out, self.circle), Summed(made.down, self.circle)
        return made


def split(target: Target, circle: Circle, packed: Callable[[Tensor], Any] | None) -> Target:
    """What weights become in one process of a circle."""
    finish = PackFinish(circle)

    def own(ops: Ops) -> Ops:
        return replace(ops, finish=finish)

    return replace(
        target,
        ops=own(target.ops),
        kept=own(target.kept),
        mixed=target.mixed and own(target.mixed),
        a16=target.a16 and replace(target.a16, ops=own(target.a16.ops)),
        part=Part(circle, packed),
    )
