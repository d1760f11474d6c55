"""Tensor parallel: each process has some heads of every layer's attention and as much of its MLP, and some of the rows
between them. Before a product all rows come together, and the sums that products come to go to those who have the rows:
norms and the residual stream are nobody's twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..contract import FinishWeights, Layer, Linear, Ops, Projected, ProjectWeights, Residual, RunError
from ..model.weights import Target
from ..quant.splitting import columns_of, room, rows_of, widened, with_extremes
from ..reference import layers
from .attention import kv_heads_of
from .ranks import Circle, parts


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
        for key in ("out", "down"):
            whole[key] = widened(whole[key], room(whole[key]))
        return whole, replace(layer, heads=heads, kv_heads=keys.stop - keys.start)


def _width(weight_OI: Any) -> int:
    return int((weight_OI[0] if isinstance(weight_OI, tuple) else weight_OI).shape[-1])


def _height(weight_OI: Any) -> int:
    return sum(one.shape[0] for one in (weight_OI if isinstance(weight_OI, tuple) else (weight_OI,)))


class Rows:
    """How many rows a pass has, of which each process of a circle holds its part of the residual stream: a half says it
    before its products, which gather the rows that they read and share out the sums."""

    def __init__(self, circle: Circle):
        self.circle, self.lengths = circle, [0]

    def begin(self, shape: Sequence[int]) -> None:
        """They are [branches, tokens, ...]."""
        self.lengths = parts(shape[0] * shape[1], self.circle.count)

    def gathering(self, linear: Linear) -> Linear:
        return Around(linear, before=lambda x: self.circle.gathered_rows(x, self.lengths, 0))

    def summing(self, linear: Linear, more: int) -> Linear:
        """Of this process's features, and `more` that show it the others' extremes."""
        return Around(linear, partial(self._shown, more), lambda y: self.circle.summed_rows(y, self.lengths))

    def _shown(self, more: int, x_MI: Tensor) -> Tensor:
        if not more:
            return x_MI
        low, high = x_MI.aminmax(dim=-1, keepdim=True)
        most = self.circle.largest(torch.cat((-low, high), -1).float()).to(x_MI.dtype)
        return with_extremes(x_MI, -most[:, :1], most[:, 1:], more)


@dataclass(frozen=True)
class Around:
    """contract.Linear of what `before` makes of the rows, and what `after` makes of its own."""

    linear: Linear
    before: Callable[[Tensor], Tensor] = lambda x: x
    after: Callable[[Tensor], Tensor] = lambda y: y

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self.after(self.linear(self.before(x_MI)))

    def tensors(self) -> dict[str, Tensor] | None:
        return self.linear.tensors()


class Project:
    """contract.Project of rows that are shared out."""

    def __init__(self, made: layers.Project, circle: Circle):
        self.made, self.rows = made, Rows(circle)
        made.qkv = self.rows.gathering(made.qkv)

    def __call__(self, residual: Residual, cos_BSD: Tensor, sin_BSD: Tensor) -> Projected:
        self.rows.begin(cos_BSD.shape)
        return self.made(residual, cos_BSD, sin_BSD)

    def tensors(self) -> dict[str, Tensor] | None:
        return self.made.tensors()


class Finish:
    """contract.Finish of rows that are shared out."""

    def __init__(self, made: layers.Finish, circle: Circle, more: Mapping[str, int]):
        self.made, self.rows = made, Rows(circle)
        made.up = self.rows.gathering(made.up)
        made.out = self.rows.summing(made.out, more["out"])
        made.down = self.rows.summing(made.down, more["down"])

    def __call__(self, residual: Residual, attended_BSHD: Tensor) -> None:
        self.rows.begin(attended_BSHD.shape)
        self.made(residual, attended_BSHD)

    def tensors(self) -> dict[str, Tensor] | None:
        return self.made.tensors()


@dataclass(frozen=True)
class PackProject:
    """contract.PackProject of one process of a circle."""

    circle: Circle

    def __call__(self, weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project:
        return Project(layers.project(weights, layer, ops, format=format), self.circle)


@dataclass(frozen=True)
class PackFinish:
    """contract.PackFinish of one process of a circle."""

    circle: Circle

    def __call__(self, weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish:
        inner = _height(weights.up_OI) // (2 if layer.activation == "silu" else 1)
        own = {"out": layer.heads * layer.head_dim, "down": inner}
        wide = {"out": _width(weights.out_OI), "down": _width(weights.down_OI)}
        more = {name: wide[name] - own[name] for name in own}
        return Finish(layers.finish(weights, layer, ops, format=format), self.circle, more)


def split(target: Target, circle: Circle, packed: Callable[[Tensor], Any] | None) -> Target:
    """What weights become in one process of a circle."""
    project, finish = PackProject(circle), PackFinish(circle)

    def own(ops: Ops) -> Ops:
        return replace(ops, project=project, finish=finish)

    return replace(
        target,
        ops=own(target.ops),
        kept=own(target.kept),
        mixed=target.mixed and own(target.mixed),
        a16=target.a16 and replace(target.a16, ops=own(target.a16.ops)),
        part=Part(circle, packed),
    )
