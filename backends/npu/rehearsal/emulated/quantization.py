"""Rows in 8 and 4 bits, and their scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import Packed, pack, unpack

from .limits import FP4, FP8, within


def dynamic_quant(
    input: Tensor, *, smooth_scales: Tensor | None = None, dst_type: int | None = None, **other: Any
) -> tuple[Tensor, Tensor]:
    within(dst_type in (None, 1) and not other, "only int8 rows are emulated")
    x = input.float() if smooth_scales is None else input.float() * smooth_scales.float()
    scale = x.abs().amax(-1) / 127
    units = x / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)
    return units.round().clamp(-128, 127).to(torch.int8), scale


def of_mx(dst_type: int) -> str:
    within(dst_type in (FP4, *FP8), f"quantization to the type {dst_type} is not emulated")
    return "mxfp4" if dst_type == FP4 else "mxfp8"


def scales_in_pairs(scales: Tensor) -> Tensor:
    """[..., I/32] as the operators have it: [..., I/64 rounded up, 2], with zeros behind."""
    return F.pad(scales, (0, scales.shape[-1] % 2)).unflatten(-1, (-1, 2)).contiguous()


def dynamic_mx_quant(
    input: Tensor,
    *,
    axis: int = -1,
    round_mode: str = "rint",
    dst_type: int = FP4,
    block_size: int = 32,
    scale_alg: int = 0,
    **other: Any,
) -> tuple[Tensor, Tensor]:
    within(block_size == 32 and round_mode == "rint", "blocks are of 32 numbers, rint")
    within(not any(other.values()), "no other maximum or bound is emulated")
    within(scale_alg in ((0,) if dst_type == FP4 else (0, 1)), "scales are by OCP's rule, or for FP8 by cuBLAS's")
    format = replace(FORMATS[of_mx(dst_type)], exponent="rceil" if scale_alg else "floor")
    if axis in (-1, input.ndim - 1):
        packed = pack(input, format)
        return packed.values, scales_in_pairs(packed.scales)
    within(axis == 0 and format.name == "mxfp8", "blocks of rows are emulated of the first axis, in FP8")
    last = F.pad(input.movedim(0, -1), (0, -len(input) % 32))
    packed = pack(last.contiguous(), format)
    values = packed.values[..., : len(input)].movedim(-1, 0).contiguous()
    return values, scales_in_pairs(packed.scales).movedim(-2, 0).contiguous()


def dynamic_dual_level_mx_quant(
    input: Tensor, *, smooth_scale: Tensor | None = None, round_mode: str = "rint"
) -> tuple[Tensor, Tensor, Tensor]:
    within(smooth_scale is None and round_mode == "rint", "smoothing is not emulated")
    packed = pack(input, FORMATS["mxfp4_dual"])
    assert packed.super_scales is not None
    return packed.values, packed.super_scales, scales_in_pairs(packed.scales)


def mx(values: Tensor, pairs: Tensor, format: str) -> Tensor:
    """The numbers of values and scales in pairs."""
    width = values.shape[-1] * (2 if format == "mxfp4" else 1)
    return unpack(Packed(FORMATS[format], values, pairs.flatten(-2)[..., : width // 32].view(torch.uint8)))
