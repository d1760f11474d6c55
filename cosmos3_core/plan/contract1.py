"""Backends of contract 1 under contract 2.

Contract 1 handed attention plain pairs of keys and values. It let a norm or a gate return rows in 8 bits
(`Quantized`), and a linear say by attributes that it takes such rows, applies the gate, or adds to a residual: these
doors are closed here, and such a plugin runs on what its rows give without them. Its packed weights name no tensors, so
they cannot be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..contract import Attention, Backend, Device, Gate, Kernel, Linear, PackLinear, RmsNorm, Segment

if TYPE_CHECKING:
    from torch import Tensor


def adapted(backend: Backend) -> Backend:
    """The backend with rows that do what contract 2 asks of them; its `api` goes on saying what it was written for."""
    rows = tuple(replace(row, **ADAPTERS[row.op](row)) if row.op in ADAPTERS else row for row in backend.kernels)
    return replace(backend, kernels=rows)


def _attention(row: Kernel) -> dict[str, Any]:
    def build(device: Device) -> Attention:
        op = row.build(device)

        def attention(
            q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
        ) -> tuple[Tensor, Tensor | None]:
            found: tuple[Tensor, Tensor | None] = op(
                q_BSHD, [tuple(segment) for segment in segments], causal=causal, want_lse=want_lse
            )
            return found

        return attention

    return {"build": build}


class _Linear:
    """A linear of contract 1, behind a call that closes its doors."""

    def __init__(self, call: Callable[[Tensor], Tensor]):
        self.call = call

    def __call__(self, x_MI: Tensor) -> Tensor:
        return self.call(x_MI)

    def tensors(self) -> None:
        return None


def _pack_linear(row: Kernel) -> dict[str, Any]:
    def build(device: Device) -> PackLinear:
        op = row.build(device)

        def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
            return _Linear(op(weight_OI, bias_O, format=format))

        return pack_linear

    return {"build": build}


def _rms_norm(row: Kernel) -> dict[str, Any]:
    def build(device: Device) -> RmsNorm:
        op = row.build(device)

        def rms_norm(
            x_MI: Tensor,
            weight_I: Tensor,
            *,
            eps: float,
            residual_MI: Tensor | None = None,
            weight_fp32: bool = False,
        ) -> tuple[Tensor, Tensor]:
            found: tuple[Tensor, Tensor] = op(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32)
            return found

        return rms_norm

    return {"build": build, "formats": ("none",)}


def _gate(row: Kernel) -> dict[str, Any]:
    def build(device: Device) -> Gate:
        op = row.build(device)

        def gate(x_MI: Tensor, *, activation: str) -> Tensor:
            found: Tensor = op(x_MI, activation=activation)
            return found

        return gate

    return {"build": build, "formats": ("none",)}


def _capture(row: Kernel) -> dict[str, Any]:
    return {"fresh": False}  # contract 1 allowed every one to overwrite its results


ADAPTERS: dict[str, Callable[[Kernel], dict[str, Any]]] = {
    "attention": _attention,
    "pack_linear": _pack_linear,
    "rms_norm": _rms_norm,
    "gate": _gate,
    "capture": _capture,
}
"""By op, what is another in a row under contract 2."""
