"""Ops over rows by AITER: norms, rotation and gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos3_core.contract import Device, Gate, NormRope, RmsNorm

from .signatures import load

NEOX = 0
"""AITER's `rotate_style` of rotation by halves."""


def rounding(weight_fp32: bool) -> dict[str, int]:
    """AITER's word for what contract.ops.RmsNorm calls `weight_fp32`: 1 rounds before the weight multiplies, as T5."""
    return {"use_model_sensitive_rmsnorm": 0 if weight_fp32 else 1}


def build_rms_norm(device: Device) -> RmsNorm:
    norm, add_norm = load("rmsnorm2d_fwd"), load("rmsnorm2d_fwd_with_add")

    def rms_norm(
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        eps: float,
        residual_MI: Tensor | None = None,
        weight_fp32: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """See contract.ops.RmsNorm."""
        if residual_MI is None:
            return norm(x_MI, weight_I, eps, **rounding(weight_fp32)), x_MI
        y_MI, z_MI = (torch.empty(x_MI.shape, dtype=x_MI.dtype, device=x_MI.device) for _ in range(2))
        add_norm(y_MI, x_MI, residual_MI, z_MI, weight_I, eps, **rounding(weight_fp32))
        return y_MI, z_MI

    return rms_norm


def build_norm_rope(device: Device) -> NormRope:
    """A norm for each projection, and one rotation for every two of them."""
    norm, rotate, rotate_two = load("rmsnorm2d_fwd"), load("rope_cached_fwd"), load("rope_cached_2c_fwd")

    def rotated(parts: Sequence[Tensor], cos_BSD: Tensor, sin_BSD: Tensor) -> list[Tensor]:
        """Each [B, S, H, D], of one branch or of several that lie at the same places. AITER's axes are S, B, H, D."""
        tables = [table[0, :, None, None, :] for table in (cos_BSD, sin_BSD)]
        turned = [x.transpose(0, 1) for x in parts]
        options = NEOX, False, False  # tables as wide as heads, and all of a head is rotated
        found: list[Tensor] = []
        for i in range(0, len(turned) - 1, 2):
            found += rotate_two(turned[i], turned[i + 1], *tables, *options)
        if len(turned) % 2:
            found.append(rotate(turned[-1], *tables, *options))
        return [x.transpose(0, 1) for x in found]

    def norm_rope(
        heads: Sequence[tuple[Tensor, Tensor | None]],
        cos_BSD: Tensor,
        sin_BSD: Tensor,
        *,
        eps: float,
        weight_fp32: bool = False,
    ) -> list[Tensor]:
        """See contract.ops.NormRope."""
        parts = [
            x if weight is None else norm(x.reshape(-1, x.shape[3]), weight, eps, **rounding(weight_fp32)).view(x.shape)
            for x, weight in heads
        ]
        if len(cos_BSD) == 1:
            return rotated(parts, cos_BSD, sin_BSD)
        branches = [
            rotated([x[i : i + 1] for x in parts], cos_BSD[i : i + 1], sin_BSD[i : i + 1]) for i in range(len(cos_BSD))
        ]
        return [torch.cat(branch) for branch in zip(*branches, strict=True)]

    return norm_rope


def build_gate(device: Device) -> Gate:
    silu_and_mul = load("silu_and_mul")

    def gate(x_MI: Tensor, *, activation: str) -> Tensor:
        """See contract.ops.Gate. AITER has a kernel for "silu"."""
        if activation == "relu2":
            return x_MI.relu_().square_()
        y_MI = x_MI.new_empty(*x_MI.shape[:-1], x_MI.shape[-1] // 2)
        silu_and_mul(y_MI, x_MI.contiguous())
        return y_MI

    return gate
