"""Attention on Intel GPUs: torch's scaled_dot_product_attention, which is oneDNN's fused kernel there, and those of the
packages vllm-xpu-kernels and auto-round-lib. All take fewer key heads than query heads as they come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Attention, Segment
from cosmos3_core.contract.attention import joined, log_sum_exp

Segments = Sequence[Segment]


def sdpa(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. oneDNN computes a log-sum-exp for a backward pass only, so that one is made
    explicitly."""
    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BTKD, v_BTKD))
    out_BHSD = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out_BHSD.transpose(1, 2), log_sum_exp(q_BSHD, k_BTKD, causal) if want_lse else None


def starts(batch: int, length: int, device: torch.device) -> Tensor:
    """Where each of so many sequences of one length begins among rows that follow each other, and where the last one
    ends: int32 [batch + 1]."""
    return torch.arange(0, batch * length + 1, max(length, 1), dtype=torch.int32, device=device)


def build_vllm_fa() -> Attention:
    """The flash attention of vllm-xpu-kernels. It takes ragged sequences: rows of [B x S, H, D] and where each begins.
    Its log-sum-exp is [H, B x S]."""
    from vllm_xpu_kernels.flash_attn_interface import flash_attn_varlen_func

    def vllm_fa(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        (batch, queries), keys = q_BSHD.shape[:2], k_BTKD.shape[1]
        found = flash_attn_varlen_func(
            *(x.flatten(0, 1) for x in (q_BSHD, k_BTKD, v_BTKD)),
            max_seqlen_q=queries,
            cu_seqlens_q=starts(batch, queries, q_BSHD.device),
            max_seqlen_k=keys,
            cu_seqlens_k=starts(batch, keys, q_BSHD.device),
            causal=causal,
            return_softmax_lse=want_lse,
        )
        out, lse = found if want_lse else (found, None)
        return out.view_as(q_BSHD), None if lse is None else lse.unflatten(1, (batch, queries)).transpose(0, 1)

    return vllm_fa


def build_ark() -> Attention:
    """The attention of auto-round-lib, which reads and writes [B, S, H, D]. It gives a log-sum-exp on XPU alone."""
    import auto_round_kernel

    def ark(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        # It looks at the strides of axes of one element, too, which contiguous() leaves.
        dense = (x.contiguous().view(-1).view(x.shape) for x in (q_BSHD, k_BTKD, v_BTKD))
        found = auto_round_kernel.sdpa(*dense, is_causal=causal, tensor_layout="NHD", return_lse=want_lse)
        return found if want_lse else (found, None)

    return ark
