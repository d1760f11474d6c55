"""Attention on Ascend NPUs: torch's scaled_dot_product_attention, and the fused operator that torch_npu calls below it.

Both take fewer key heads than query heads as they come.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Segment
from cosmos3_core.contract.attention import joined

Segments = Sequence[Segment]

CAUSAL = 2
"""The operator's `sparse_mode` for a causal mask that starts at the top left."""
MASK_SIZE = 2048
"""Edge of the triangle that the operator tiles into a causal mask of any size."""


@functools.cache
def causal_mask(device: torch.device) -> Tensor:
    """The triangle [MASK_SIZE, MASK_SIZE], True where it masks out: one for all layers."""
    return torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool, device=device).triu(1)


def sdpa(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. torch returns no log-sum-exp, so where it is wanted, `fusion` is what runs."""
    if want_lse:
        return fusion(q_BSHD, segments, causal=causal, want_lse=True)
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2), None


def fusion(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    import torch_npu

    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    options = {}
    if causal:
        options = {"atten_mask": causal_mask(q_BSHD.device), "sparse_mode": CAUSAL}
    out_BSHD, peak, total, *_ = torch_npu.npu_fusion_attention(
        q_BSHD, k_BTKD, v_BTKD, q_BSHD.shape[2], "BSND", scale=1 / math.sqrt(q_BSHD.shape[3]), **options
    )
    # The scores' maximum and the sum of their exponentials, [B, H, S, 8] with eight times the same value.
    return out_BSHD, (peak + total.log())[..., 0] if want_lse else None
