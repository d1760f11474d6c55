"""Attention on NVIDIA GPUs: torch's cuDNN and FlashAttention-2 kernels, and FlashAttention-4.

torch's operators are called by name rather than through scaled_dot_product_attention: that one may pick another kernel
than the plan printed, and returns no log-sum-exp. All take fewer key heads than query heads as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos3_core.contract import Attention, Segment
from cosmos3_core.contract.attention import joined

Segments = Sequence[Segment]


def sdpa_cudnn(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    out_BHSD, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, want_lse, is_causal=causal)
    return out_BHSD.transpose(1, 2), lse.reshape(q.shape[:3]) if want_lse else None


def sdpa_flash(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    out_BHSD, lse_BHS, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal)
    return out_BHSD.transpose(1, 2), lse_BHS if want_lse else None


def build_fa4() -> Attention:
    """FlashAttention-4 as the package flash-attn-4 publishes it."""
    from flash_attn.cute import flash_attn_func

    def fa4(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        out_BSHD, lse_BHS = flash_attn_func(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_lse=want_lse)
        return out_BSHD, lse_BHS if want_lse else None

    return fa4
