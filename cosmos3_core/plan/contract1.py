"""Backends of contract 1 under contract 2.

Contract 1 handed attention plain pairs of keys and values. It let a norm or a gate return rows in 8 bits
(`Quantized`), and a linear say by attributes that it takes such rows, applies the gate, or adds to a residual: these
doors are closed here, and such a plugin runs on what its rows give without them. Its packed weights name no tensors, so
they cannot be moved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..contract import Attention, Backend, Device, Gate, Kernel, Linear, PackLinear, RmsNorm, Segment

if TYPE_CHECKING:
    from torch import Tensor


def adapted(backend: Backend) -> Backend:
    """The backend with rows that do what contract 2 asks of them; its `api` goes on saying what it was written for."""
    return replace(backend, kernels=tuple(map(_row, backend.kernels)))


def _row(row: Kernel) -> Kernel:
    changed = dict(DECLARED.get(row.op, {}))
    if adapt := ADAPTERS.get(row.op):
        changed["build"] = _building(row.build, adapt)
    return replace(row, **changed)


def _building(build: Callable[[Device], Any], adapt: Callable[[Any], Any]) -> Callable[[Device], Any]:
    @functools.wraps(build)  # whoever asks where a row's code stands is shown the package's
    def build_adapted(device: Device) -> Any:
        return adapt(build(device))

    return build_adapted


def _attention(op: Callable[..., tuple[Tensor, Tensor | None]]) -> Attention:
    def attention(
        q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return op(q_BSHD, [tuple(segment) for segment in segments], causal=causal, want_lse=want_lse)

    return attention


class _Linear:
    """A linear of contract 1, behind a call that closes its doors."""

    def __init__(self, call: Callable[[Tensor], Tensor]):
        self.call = call

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self.call(x_MI)

    def tensors(self) -> None:
        return None


def _pack_linear(op: Callable[..., Callable[[Tensor], Tensor]]) -> PackLinear:
    def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        return _Linear(op(weight_OI, bias_O, format=format))

    return pack_linear


def _rms_norm(op: Callable[..., tuple[Tensor, Tensor]]) -> RmsNorm:
    def rms_norm(
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        eps: float,
        residual_MI: Tensor | None = None,
        weight_fp32: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return op(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32)

    return rms_norm


def _gate(op: Callable[..., Tensor]) -> Gate:
    def gate(x_MI: Tensor, *, activation: str) -> Tensor:
        return op(x_MI, activation=activation)

    return gate


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "attention": _attention,
    "pack_linear": _pack_linear,
    "rms_norm": _rms_norm,
    "gate": _gate,
}
"""What makes an op of contract 2 of one of contract 1; other ops are the same in both."""

DECLARED: dict[str, dict[str, Any]] = {
    "rms_norm": {"formats": ("none",)},
    "gate": {"formats": ("none",)},
    "capture": {"fresh": False},  # contract 1 allowed every one to overwrite its results
}
"""By op, what a row declares under contract 2 instead."""
