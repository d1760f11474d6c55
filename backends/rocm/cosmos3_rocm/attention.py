"""Attention on AMD GPUs: torch's FlashAttention (AOTriton's kernels in a ROCm build), and AITER's.

torch's operator is called by name rather than through scaled_dot_product_attention: where AOTriton does not serve, that
one would write out the score matrix in silence, and it returns no log-sum-exp. Both take fewer key heads than query
heads as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos3_core.contract import Attention, Segment
from cosmos3_core.contract.attention import joined

Segments = Sequence[Segment]


def sdpa_flash(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    out_BHSD, lse_BHS, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal)
    return out_BHSD.transpose(1, 2), lse_BHS if want_lse else None


def build_aiter_fa() -> Attention:
    """AITER's FlashAttention: hand-written assembly for bf16 at head dim 128."""
    from aiter import flash_attn_func

    def aiter_fa(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        found = flash_attn_func(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_lse=want_lse)
        return found if want_lse else (found, None)

    return aiter_fa
