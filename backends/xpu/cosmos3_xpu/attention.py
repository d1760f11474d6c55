"""Attention on Intel GPUs: torch's scaled_dot_product_attention, which is oneDNN's fused kernel there."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Segment
from cosmos3_core.contract.attention import joined, log_sum_exp


def sdpa(
    q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. The fused kernel takes fewer key heads than query heads as they come;
    oneDNN computes a log-sum-exp for a backward pass only, so that one is made explicitly."""
    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BTKD, v_BTKD))
    out_BHSD = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out_BHSD.transpose(1, 2), log_sum_exp(q_BSHD, k_BTKD, causal) if want_lse else None
