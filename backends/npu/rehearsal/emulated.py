"""What the vendor's operators compute, on the host, as the wheel's documentation has it: shapes, scales and layouts are
theirs; sums are in fp32. A documented limit that a call exceeds is an error, since the wheel's Meta kernels check few.

How a kernel rounds, orders its sums and saturates is the device's, and none of this says anything about it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.codes import from_bytes, to_bytes
from cosmos3_core.quant.numerics import Packed, pack, unpack

DTYPES = {1: torch.int8, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16, 27: torch.bfloat16}
FP8, FP4, E8M0 = (24, 292), 296, 293
"""The wheel's numbers of float8_e4m3fn (torch's and its own), float4_e2m1fn_x2 and float8_e8m0fnu."""
WIDEST = 65535
CHUNK = 256
"""Queries whose scores are there at once."""


class Limit(RuntimeError):
    """A call that the vendor's documentation rules out."""


def within(holds: bool, said: str) -> None:
    if not holds:
        raise Limit(said)


# Quantization


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


# Products


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


def mx(values: Tensor, pairs: Tensor, format: str) -> Tensor:
    """The numbers of values and scales in pairs."""
    width = values.shape[-1] * (2 if format == "mxfp4" else 1)
    return unpack(Packed(FORMATS[format], values, pairs.flatten(-2)[..., : width // 32].view(torch.uint8)))


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


# Rows


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


# Attention


def attend(
    q_BNSD: Tensor,
    k_BNTD: Tensor,
    v_BNTD: Tensor,
    scale: float,
    causal: bool,
    most: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The attended values, and of the scores of each query the maximum and the sum of exponentials, [B, N, S, 1]. With
    `most` the exponentials that multiply the values are rounded to FP8, the largest one being that."""
    group = q_BNSD.shape[1] // k_BNTD.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k_BNTD, v_BNTD))
    parts = []
    for start in range(0, q_BNSD.shape[2], CHUNK):
        scores = q_BNSD[:, :, start : start + CHUNK].float() @ k.mT * scale
        if causal:
            scores += torch.full_like(scores, -torch.inf).triu(start + 1)
        peak = scores.amax(-1, keepdim=True)
        scores.sub_(peak).exp_()
        total = scores.sum(-1, keepdim=True)
        if most is not None:
            scores = (scores * most).to(torch.float8_e4m3fn).float() / most
        parts.append((scores @ v / total, peak, total))
    out, peaks, totals = (torch.cat(part, 2) for part in zip(*parts, strict=True))
    return out.to(q_BNSD.dtype), peaks, totals


@functools.cache
def triangle() -> Tensor:
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def is_causal(sparse_mode: int, mask: Tensor | None, queries: int, keys: int) -> bool:
    if sparse_mode == 0:
        within(mask is None, "full masks are not emulated")
        return False
    within(sparse_mode == 2, f"a mask in the sparse mode {sparse_mode} is not emulated")
    within(queries == keys, "causal attention has as many keys as queries")
    whole = (
        mask is not None and mask.shape[-2:] == (2048, 2048) and torch.equal(mask.bool().view(2048, 2048), triangle())
    )
    within(whole, "the mask of a sparse mode is the triangle of 2048, with True for what is left out")
    return True


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"BNSD": lambda x: x, "BSND": lambda x: x.transpose(1, 2)}


def fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 0,
    next_tockens: int = 0,
    inner_precise: int = 0,
    prefix: Any = None,
    actual_seq_qlen: Any = None,
    actual_seq_kvlen: Any = None,
    sparse_mode: int = 0,
    *rest: Any,
    **other: Any,
) -> tuple[Any, ...]:
    order = LAYOUTS[input_layout]
    q, k, v = (order(x) for x in (query, key, value))
    within(head_num == q.shape[1] and q.shape[1] % k.shape[1] == 0, "head_num is of queries, keys' heads divide it")
    within(keep_prob == 1.0 and pse is None, "no dropout and no shift is emulated")
    out, peak, total = attend(q, k, v, scale, is_causal(sparse_mode, atten_mask, q.shape[2], k.shape[2]))
    eight = (*peak.shape[:-1], 8)
    return (
        order(out).contiguous(),
        peak.expand(eight).contiguous(),
        total.expand(eight).contiguous(),
        query.new_empty(0),
    )


def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor | None = None,
    key_shared_prefix: Tensor | None = None,
    value_shared_prefix: Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    softmax_lse_flag: bool = False,
    **other: Any,
) -> tuple[Tensor, Tensor]:
    within(all(x.is_contiguous() for x in (query, key, value)), "query, key and value are contiguous")
    within(query.shape[-1] % 16 == 0 and query.shape[-1] <= 512, "head dims are multiples of 16 up to 512")
    within(input_layout != "BSND" or query.shape[2] * query.shape[3] < WIDEST, f"N x D is below {WIDEST}")
    order = LAYOUTS[input_layout]
    if key_shared_prefix is not None and value_shared_prefix is not None:
        within(len(key_shared_prefix) == 1 and sparse_mode == 0, "a shared prefix is one")
        within(key_shared_prefix.is_contiguous() and value_shared_prefix.is_contiguous(), "prefixes are contiguous")
        axis = 1 if input_layout == "BSND" else 2
        both = ((key_shared_prefix, key), (value_shared_prefix, value))
        key, value = (torch.cat((first.expand(len(rest), *first.shape[1:]), rest), axis) for first, rest in both)
    q, k, v = (order(x) for x in (query, key, value))
    within(num_heads == q.shape[1] and num_key_value_heads == k.shape[1], "the numbers of heads are the tensors'")
    within(q.shape[1] <= 64 * k.shape[1] and q.shape[1] % k.shape[1] == 0, "at most 64 heads of queries share a key's")
    out, peak, total = attend(q, k, v, scale, is_causal(sparse_mode, atten_mask, q.shape[2], k.shape[2]))
    return order(out).contiguous(), peak + total.log() if softmax_lse_flag else torch.empty(0)


def fused_infer_attention_score_v2(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    actual_seq_qlen: list[int],
    actual_seq_kvlen: list[int],
    dequant_scale_query: Tensor,
    dequant_scale_key: Tensor,
    dequant_scale_value: Tensor,
    quant_scale_p: Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    input_layout: str,
    query_quant_mode: int = 0,
    key_quant_mode: int = 0,
    value_quant_mode: int = 0,
    dequant_scale_query_dtype: int,
    dequant_scale_key_dtype: int,
    dequant_scale_value_dtype: int,
    out_dtype: int,
) -> tuple[Tensor, Tensor]:
    """Of the 950, in MXFP8 alone, as CANN documents aclnnFusedInferAttentionScoreV5. The weights of the softmax are
    rounded to FP8 before they multiply the values, times a factor, and their sum is not, as tests of its attention in
    FP8 have it."""
    within((query_quant_mode, key_quant_mode, value_quant_mode) == (6, 6, 8), "blocks are of tokens, and of channels")
    within(input_layout == "TND" and query.shape[2] in (64, 128), "MXFP8 is for TND, head dims 64 and 128")
    within(all(x.dtype == torch.float8_e4m3fn and x.is_contiguous() for x in (query, key, value)), "FP8, contiguous")
    types = dequant_scale_query_dtype, dequant_scale_key_dtype, dequant_scale_value_dtype
    within(set(types) == {E8M0}, "scales are exponents")
    within(len(actual_seq_qlen) == len(actual_seq_kvlen) == 1, "one sequence is emulated")
    within((*actual_seq_qlen, *actual_seq_kvlen) == (len(query), len(key)), "sequences are as long as the tensors")
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[2]
    within((heads, kv_heads) == (num_query_heads, num_key_value_heads), "the numbers of heads are the tensors'")
    if len(query) * (heads // kv_heads) <= 80:
        within(
            list(dequant_scale_query.shape[:3]) == [kv_heads, len(query), heads // kv_heads], "scales of few queries"
        )
        dequant_scale_query = dequant_scale_query.movedim(0, 1).flatten(1, 2)
    shapes = [*map(list, (dequant_scale_query.shape, dequant_scale_key.shape, dequant_scale_value.shape))]
    blocks = -(-len(value) // 64)
    expected = [[len(x), x.shape[1], head_dim // 64, 2] for x in (query, key)] + [[blocks, kv_heads, head_dim, 2]]
    within(shapes == expected, f"scales are {expected}, not {shapes}")
    q, k = mx(query, dequant_scale_query, "mxfp8"), mx(key, dequant_scale_key, "mxfp8")
    last = F.pad(value.movedim(0, -1).float(), (0, -len(value) % 32)).to(value.dtype)
    v = mx(last, dequant_scale_value.movedim(0, -2), "mxfp8")[..., : len(value)].movedim(-1, 0)
    most = 1.0 if quant_scale_p is None else quant_scale_p.item()
    within(1 <= most <= 448, f"weights are scaled by 1 to 448, not {most}")
    out, _, _ = attend(*(x.movedim(0, 1).unsqueeze(0) for x in (q, k, v)), softmax_scale, False, most)
    return out[0].movedim(0, 1).to(DTYPES[out_dtype]).contiguous(), torch.empty(0)


def format_cast(input: Tensor, acl_format: int, *rest: Any, **other: Any) -> Tensor:
    """Where a tensor's numbers lie is a matter of the device alone; here they stay where they were."""
    return input.clone()


OPS: dict[str, Callable[..., Any]] = {
    "npu_dynamic_quant": dynamic_quant,
    "npu_dynamic_mx_quant": dynamic_mx_quant,
    "npu_dynamic_dual_level_mx_quant": dynamic_dual_level_mx_quant,
    "npu_quant_matmul": quant_matmul,
    "npu_dual_level_quant_matmul": dual_level_quant_matmul,
    "npu_convert_weight_to_int4pack": convert_weight_to_int4pack,
    "npu_weight_quant_batchmatmul": weight_quant_batchmatmul,
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_add_rms_norm_dynamic_quant": add_rms_norm_dynamic_quant,
    "npu_rms_norm_dynamic_mx_quant": rms_norm_dynamic_mx_quant,
    "npu_add_rms_norm_dynamic_mx_quant": add_rms_norm_dynamic_mx_quant,
    "npu_rotary_mul": rotary_mul,
    "npu_apply_rotary_pos_emb": apply_rotary_pos_emb,
    "npu_swiglu": swiglu,
    "npu_swiglu_mx_quant": swiglu_mx_quant,
    "npu_dequant_swiglu_quant": dequant_swiglu_quant_910,
    "npu_fusion_attention": lambda *args, **options: (*fusion_attention(*args, **options), 0, 0, 0),
    "npu_fusion_attention_v3": lambda *args, **options: (
        *fusion_attention(*args, **options),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    ),
    "npu_fused_infer_attention_score": fused_infer_attention_score,
    "npu_fused_infer_attention_score_v2": fused_infer_attention_score_v2,
    "npu_format_cast": format_cast,
    "_npu_format_cast": format_cast,
}

A2, A3, A5 = 220, 250, 260
"""The wheel's numbers of the first chip of a generation: 910B, 910C, 950."""
ONLY_950 = ("mx_", "dual_level", "attention_score_v2")
"""In names of operators. Of the attention MXFP8 alone is emulated."""
SINCE = {name: A5 if any(part in name for part in ONLY_950) else A2 for name in OPS}
ON_950: dict[str, Callable[..., Any]] = {
    "npu_add_rms_norm": add_rms_norm_950,
    "npu_dequant_swiglu_quant": dequant_swiglu_quant,
}
