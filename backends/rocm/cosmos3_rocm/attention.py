"""Attention on AMD GPUs: torch's FlashAttention (AOTriton's kernels in a ROCm build), and AITER's.

torch's operator is called by name rather than through scaled_dot_product_attention: where AOTriton does not serve, that
one would write out the score matrix in silence, and it returns no log-sum-exp. All but AITER's in FP8 take fewer key
heads than query heads as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos3_core.contract import Attention, Device, Segment
from cosmos3_core.contract.attention import joined, log_sum_exp

from .signatures import load

Segments = Sequence[Segment]
HANGS_FROM = 65536
"""Rows of all sequences from which on AITER's kernel for ragged ones has been seen to hang on gfx942 (SGLang turns to
another there)."""
FP8_MOST = 448.0
SMALLEST = 1e-12
"""The least magnitude that a scale is made for."""


def sdpa_flash(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    out_BHSD, lse_BHS, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal)
    return out_BHSD.transpose(1, 2), lse_BHS if want_lse else None


def build_aiter_fa(device: Device) -> Attention:
    """AITER's FlashAttention: hand-written assembly for bf16 at head dim 128 and more than 128 queries, Composable
    Kernel's elsewhere. AITER chooses."""
    flash_attn_func = load("flash_attn_func")

    def aiter_fa(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        found = flash_attn_func(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_lse=want_lse)
        return found if want_lse else (found, None)

    return aiter_fa


def starts(batch: int, length: int, device: torch.device) -> Tensor:
    """Where each of so many sequences of one length begins among rows that follow each other, and where the last one
    ends: int32 [batch + 1]."""
    return torch.arange(0, batch * length + 1, max(length, 1), dtype=torch.int32, device=device)


def build_aiter_varlen(device: Device) -> Attention:
    """AITER's attention for ragged sequences: rows of [B x S, H, D] and where each begins. Its log-sum-exp is
    [H, B x S]."""
    flash_attn_varlen_func, whole = load("flash_attn_varlen_func"), build_aiter_fa(device)

    def aiter_varlen(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        (batch, queries), keys = q_BSHD.shape[:2], k_BTKD.shape[1]
        if device.arch == "gfx942" and batch * max(queries, keys) >= HANGS_FROM:
            return whole(q_BSHD, [Segment(k_BTKD, v_BTKD)], causal=causal, want_lse=want_lse)
        found = flash_attn_varlen_func(
            *(x.flatten(0, 1) for x in (q_BSHD, k_BTKD, v_BTKD)),
            starts(batch, queries, q_BSHD.device),
            starts(batch, keys, q_BSHD.device),
            queries,
            keys,
            causal=causal,
            return_lse=want_lse,
        )
        out, lse = found if want_lse else (found, None)
        return out.view_as(q_BSHD), None if lse is None else lse.unflatten(1, (batch, queries)).transpose(0, 1)

    return aiter_varlen


def in_fp8(x_BTHD: Tensor) -> tuple[Tensor, Tensor]:
    """The whole tensor in e4m3 by one scale, and that, fp32 [1]."""
    scale = x_BTHD.abs().amax().float().clamp_min(SMALLEST).view(1) / FP8_MOST
    return (x_BTHD / scale.to(x_BTHD.dtype)).clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn), scale


def build_aiter_fp8(device: Device) -> Attention:
    """AITER's attention in FP8, with a scale for a tensor; causal calls, the text's own, stay in 16 bits.

    Keys lose their mean first, which lowers all scores of a query alike, and values theirs, which is added to the
    result: what is left has a smaller range for the one scale. It takes as many key heads as query heads, so keys and
    values are repeated, and gives no log-sum-exp, so that one is made explicitly."""
    flash_attn_fp8, whole = load("flash_attn_fp8_pertensor_func"), build_aiter_fa(device)

    def aiter_fp8(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if causal:
            return whole(q_BSHD, segments, causal=True, want_lse=want_lse)
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        groups = q_BSHD.shape[2] // k_BTKD.shape[2]
        mean_B1KD = v_BTKD.mean(1, keepdim=True)
        q8, q_scale = in_fp8(q_BSHD)
        k8, k_scale = in_fp8(k_BTKD - k_BTKD.mean(1, keepdim=True))
        v8, v_scale = in_fp8(v_BTKD - mean_B1KD)
        # As bytes: torch repeats no floats of 8 bits on every device.
        k8, v8 = (x.view(torch.uint8).repeat_interleave(groups, 2).view(x.dtype) for x in (k8, v8))
        out_BSHD = flash_attn_fp8(q8, k8, v8, q_scale, k_scale, v_scale, causal=False)
        out_BSHD = out_BSHD.to(q_BSHD.dtype).add_(mean_B1KD.repeat_interleave(groups, 2))
        return out_BSHD, log_sum_exp(q_BSHD, k_BTKD, causal) if want_lse else None

    return aiter_fp8
