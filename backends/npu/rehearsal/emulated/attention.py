"""Attention, with the sums of its softmax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .limits import DTYPES, E8M0, WIDEST, within
from .quantization import mx

CHUNK = 256
"""Queries whose scores are there at once."""


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
