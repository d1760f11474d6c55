"""Products of matrices, of rows and weights in formats, and a weight's packing for one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cosmos3_core.quant.codes import from_bytes, to_bytes

from .limits import DTYPES, E8M0, FP4, WIDEST, within
from .quantization import mx


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: list[int] | None = None,
    **other: Any,
) -> Tensor:
    within(max(x1.shape[-1], x2.shape[-1]) <= WIDEST, f"last dims are at most {WIDEST}")
    assert pertoken_scale is not None and output_dtype is not None
    if scale_dtype != E8M0:
        within(x1.dtype == x2.dtype == torch.int8 and group_sizes is None, "rows are int8")
        y = (x1.double() @ x2.double()).float() * scale.float() * pertoken_scale.unsqueeze(-1)
    else:
        of_x1, of_x2 = ("mxfp4" if dtype == FP4 else "mxfp8" for dtype in (x1_dtype, x2_dtype))
        mixed = of_x1 != of_x2
        within(group_sizes == ([0, 0, 32] if mixed else [1, 1, 32]), "groups are of 32 features")
        within(not mixed or x1.shape[-1] % 64 == 0, "a product of fp8 and fp4 has a multiple of 64 features")
        y = mx(x1, pertoken_scale, of_x1) @ mx(x2.transpose(0, 1), scale.transpose(0, 1), of_x2).T
    if bias is not None:
        y = y + bias.float()
    return y.to(DTYPES[output_dtype])


def dual_level_quant_matmul(
    x1: Tensor,
    x2: Tensor,
    x1_level0_scale: Tensor,
    x2_level0_scale: Tensor,
    x1_level1_scale: Tensor,
    x2_level1_scale: Tensor,
    *,
    bias: Tensor | None = None,
    output_dtype: int = 15,
) -> Tensor:
    a, b = mx(x1, x1_level1_scale, "mxfp4"), mx(x2.view(torch.uint8), x2_level1_scale, "mxfp4")
    y = torch.zeros(len(a), len(b))
    for i in range(x1_level0_scale.shape[1]):
        block = slice(512 * i, 512 * (i + 1))
        y += (a[:, block] @ b[:, block].T) * x1_level0_scale[:, i : i + 1] * x2_level0_scale[i]
    return (y if bias is None else y + bias.float()).to(DTYPES[output_dtype])


def convert_weight_to_int4pack(weight: Tensor, inner_k_tiles: int = 0) -> Tensor:
    within(weight.dtype == torch.int32 and weight.shape[-1] % 8 == 0, "eight integers of 4 bits make one of 32")
    return to_bytes((weight & 15).to(torch.uint8), 4).view(torch.int32)


def weight_quant_batchmatmul(
    x: Tensor,
    weight: Tensor,
    antiquant_scale: Tensor,
    antiquant_offset: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    bias: Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: int | None = None,
) -> Tensor:
    within(bias is None or x.dtype != torch.bfloat16 or bias.dtype == torch.float32, "a bias beside bf16 is fp32")
    within(antiquant_scale.dtype == x.dtype, "scales are of the activations' dtype")
    width = x.shape[-1]
    if weight.dtype == torch.int32:
        packed_along_k = weight.stride(0) == 1 and weight.shape[0] * 8 == width
        codes_rows = weight.transpose(0, 1).contiguous() if packed_along_k else weight.contiguous()
        numbers = (from_bytes(codes_rows.view(torch.uint8), 4) ^ 8).float() - 8
        weight_KN = numbers.T if packed_along_k else numbers
    else:
        weight_KN = weight.float()
    within(max(weight_KN.shape) <= WIDEST, f"sides are at most {WIDEST}")
    scales = antiquant_scale.float()
    if antiquant_group_size:
        within(antiquant_group_size % 32 == 0 and 32 <= antiquant_group_size < width, "groups are 32 to K - 1 features")
        scales = scales.repeat_interleave(antiquant_group_size, 0)[:width]
    if antiquant_offset is not None:
        offset = antiquant_offset.float()
        grouped = offset.repeat_interleave(antiquant_group_size, 0)[:width] if antiquant_group_size else offset
        weight_KN = weight_KN + grouped
    y = x.float() @ (weight_KN * scales)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def format_cast(input: Tensor, acl_format: int, *rest: Any, **other: Any) -> Tensor:
    """Where a tensor's numbers lie is a matter of the device alone; here they stay where they were."""
    return input.clone()
