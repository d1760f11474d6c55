"""Attention on Ascend NPUs: the fused operators of torch_npu, and torch's scaled_dot_product_attention above them.

All take fewer key heads than query heads as they come. Causal calls name the compressed triangle themselves: torch_npu
makes a new one in every causal call of scaled_dot_product_attention.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Attention, Device, Segment, Unavailable
from cosmos3_core.contract.attention import joined

Segments = Sequence[Segment]

CAUSAL = 2
"""The operators' `sparse_mode` for a causal mask that starts at the top left."""
MASK_SIZE = 2048
"""Edge of the triangle that the operators tile into a causal mask of any size."""


@functools.cache
def causal_mask(device: torch.device) -> Tensor:
    """The triangle [MASK_SIZE, MASK_SIZE], True where it masks out: one for all layers."""
    return torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool, device=device).triu(1)


def masked(q_BSHD: Tensor, causal: bool) -> dict[str, Any]:
    """The operators' options of a mask."""
    return {"atten_mask": causal_mask(q_BSHD.device), "sparse_mode": CAUSAL} if causal else {}


def sdpa(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. Where a log-sum-exp or a mask is wanted, `fusion` is what runs."""
    if want_lse or causal:
        return fusion(q_BSHD, segments, causal=causal, want_lse=want_lse)
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, *joined(q_BSHD, segments, causal)))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2), None


def fusion(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention."""
    import torch_npu

    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    options = {"scale": 1 / math.sqrt(q_BSHD.shape[3])} | masked(q_BSHD, causal)
    out_BSHD, peak, total, *_ = torch_npu.npu_fusion_attention(
        q_BSHD, k_BTKD, v_BTKD, q_BSHD.shape[2], "BSND", **options
    )
    # The scores' maximum and the sum of their exponentials, [B, H, S, 8] with eight times the same value.
    return out_BSHD, (peak + total.log())[..., 0] if want_lse else None


def infer(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. A first segment of one branch is handed over as the operator's shared prefix, so that
    nothing is joined. The operator takes contiguous tensors alone."""
    import torch_npu

    options = masked(q_BSHD, causal)
    if len(segments) == 2 and len(q_BSHD) == 1 and not causal:
        (key, value), (k_BTKD, v_BTKD) = segments
        options |= {"key_shared_prefix": key.contiguous(), "value_shared_prefix": value.contiguous()}
    else:
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    out_BSHD, lse_BHS1 = torch_npu.npu_fused_infer_attention_score(
        q_BSHD.contiguous(),
        k_BTKD.contiguous(),
        v_BTKD.contiguous(),
        num_heads=q_BSHD.shape[2],
        num_key_value_heads=k_BTKD.shape[2],
        input_layout="BSND",
        scale=1 / math.sqrt(q_BSHD.shape[3]),
        softmax_lse_flag=want_lse,
        **options,
    )
    return out_BSHD, lse_BHS1[..., 0] if want_lse else None


LASER = ("query", "key", "value", "attn_mask", "scale", "fused", "head_first", "kwargs")
"""What mindiesd 3.1's attention_forward takes."""


def build_laser(device: Device) -> Attention:
    """The laser attention of MindIE-SD, by its `attention_forward`. It multiplies in fp16, and has a head of keys for
    every one of queries: shared ones are copied. Raises Unavailable where that function takes something else."""
    from mindiesd.layers.flash_attn.attention_forward import attention_forward

    found = tuple(inspect.signature(attention_forward).parameters)
    if found != LASER:
        raise Unavailable(f"mindiesd's attention_forward takes {', '.join(found)}; install mindiesd 3.1")

    def laser(
        q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See contract.ops.Attention. Where a log-sum-exp or a mask is wanted, `fusion` is what runs."""
        if want_lse or causal:
            return fusion(q_BSHD, segments, causal=causal, want_lse=want_lse)
        heads = q_BSHD.shape[2]
        k_BTHD, v_BTHD = (
            x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)
            for x in joined(q_BSHD, segments, causal)
        )
        options = {"opt_mode": "manual", "op_type": "ascend_laser_attention", "layout": "BNSD"}
        return attention_forward(q_BSHD, k_BTHD, v_BTHD, scale=1 / math.sqrt(q_BSHD.shape[3]), **options), None

    return laser
