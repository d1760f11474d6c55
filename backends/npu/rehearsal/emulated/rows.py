"""Norms, rotation and gates, and those that make quantized rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .limits import FP4, within
from .quantization import dynamic_mx_quant, dynamic_quant


def rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    within(input.dtype == gamma.dtype, "the weight is of the rows' dtype")
    x = input.float()
    rstd = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * rstd * gamma.float()).to(input.dtype), rstd


def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Of the 910B and 910C, which round before the weight, too."""
    total = x1 + x2
    units, rstd = rms_norm(total, torch.ones_like(gamma), epsilon)
    return (units.float() * gamma.float()).to(x1.dtype), rstd, total


def add_rms_norm_950(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Of the 950, which rounds what it returns alone."""
    total = x1.float() + x2.float()
    y, rstd = rms_norm(total, gamma.float(), epsilon)
    return y.to(x1.dtype), rstd, total.to(x1.dtype)


def add_rms_norm_dynamic_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6, **other: Any
) -> tuple[Tensor, ...]:
    within(not any(value is not None for value in other.values()), "the 950 takes no other options")
    within(x1.numel() > 0, "no empty tensors")
    total = x1 + x2
    y, _ = rms_norm(total.float(), gamma.float(), epsilon)
    values, scale = dynamic_quant(y)
    return values, torch.empty(0, dtype=torch.int8), total, scale, torch.empty(0)


def rms_norm_dynamic_mx_quant(
    x: Tensor, gamma: Tensor, *, epsilon: float = 1e-6, dst_type: int = FP4, **other: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = rms_norm(x, gamma, epsilon)
    return *dynamic_mx_quant(y, dst_type=dst_type), rstd


def add_rms_norm_dynamic_mx_quant(
    x1: Tensor, x2: Tensor, gamma: Tensor, *, epsilon: float = 1e-6, dst_type: int = FP4, **other: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x1 + x2
    y, scales, rstd = rms_norm_dynamic_mx_quant(total, gamma, epsilon=epsilon, dst_type=dst_type)
    return y, total, scales, rstd


def rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None
) -> Tensor:
    within(rotary_mode == "half" and rotate is None, "rotation is by halves")
    within(input.ndim == 4 and input.shape[-1] < 896 and input.shape[-1] % 2 == 0, "4 axes, an even D below 896")
    within(max(input.shape[0], input.shape[2]) < 1000, "B and N are below 1000")
    x = input.float()
    first, second = x.chunk(2, -1)
    return (x * r1.float() + torch.cat((-second, first), -1) * r2.float()).to(input.dtype)


def apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str = "BSND", rotary_mode: str = "half"
) -> tuple[Tensor, Tensor]:
    """The device writes the results over its inputs, so they are overwritten here."""
    within(layout == "BSND", "heads are behind tokens")
    for x in (query, key):
        x.copy_(rotary_mul(x, cos, sin, rotary_mode))
    return query.clone(), key.clone()


def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    first, second = input.float().chunk(2, dim)
    return (F.silu(first) * second).to(input.dtype)


def swiglu_mx_quant(
    x: Tensor, *, activate_left: bool = False, dst_type: int = FP4, swiglu_mode: int = 0, **other: Any
) -> tuple[Tensor, Tensor]:
    within(activate_left and swiglu_mode == 0, "silu of the first half")
    return dynamic_mx_quant(swiglu(x), dst_type=dst_type)


def dequant_swiglu_quant(
    x: Tensor, *, activate_left: bool = False, quant_mode: int = 0, swiglu_mode: int = 0, **other: Any
) -> tuple[Tensor, Tensor]:
    """Of the 950, without groups."""
    within(activate_left and quant_mode == 1 and swiglu_mode == 0, "silu of the first half, a scale for each row")
    within(all(other.get(name) is None for name in ("weight_scale", "group_index", "quant_scale")), "rows are floats")
    first, second = x.float().chunk(2, -1)
    return dynamic_quant(F.silu(first) * second)


def dequant_swiglu_quant_910(x: Tensor, *, group_index: Tensor | None = None, **other: Any) -> tuple[Tensor, Tensor]:
    """Of the 910B and 910C, in groups: rows behind the last one hold whatever was there."""
    within(x.ndim == 2 and x.dtype == torch.bfloat16, "rows are bfloat16")
    within(group_index is not None and group_index.dtype == torch.int64, "groups are there, and their counts int64")
    assert group_index is not None
    within(group_index.ndim == 1 and int(group_index.sum()) <= len(x), "groups count the rows that are there")
    width = x.shape[1] // 2
    within(width <= 10496 and width % 64 == 0, f"rows have up to 10496 numbers, a multiple of 64, not {width}")
    values, scale = dequant_swiglu_quant(x, **other)
    values[int(group_index.sum()) :], scale[int(group_index.sum()) :] = 127, torch.nan
    return values, scale
