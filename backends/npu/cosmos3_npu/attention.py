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

from .quantized import FP8

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


NO_OVERFLOW = 1
"""The quantization's `scale_alg` by which no number is beyond the largest of FP8."""
FEW = 80
"""So many queries for a head of keys have another layout of their scales."""
MOST = 448.0
"""The largest number of FP8, to which the operator scales the weights of the softmax, so that small ones count."""
BY_TOKEN, BY_CHANNEL = 6, 8
"""The operator's `..._quant_mode` for blocks of a token's numbers, and for blocks of a channel's tokens."""


@functools.cache
def most(device: torch.device) -> Tensor:
    """MOST as the operator takes it: one for all layers."""
    return torch.tensor([MOST], device=device)


def mx(
    q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention: queries, keys and values in MXFP8, branch by branch, so that no block of values is of
    two. Where a log-sum-exp or a mask is wanted, `fusion` is what runs.

    Shapes and modes are those of op-plugin's page of npu_fused_infer_attention_score_v2 for the 950: scales of keys and
    queries are [T, K, D/64, 2], those of FEW queries [K, S, H/K, D/64, 2]; those of values, whose blocks are of 32
    tokens, [T/64 rounded up, K, D, 2]."""
    if want_lse or causal:
        return fusion(q_BSHD, segments, causal=causal, want_lse=want_lse)
    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    branches = [mx_branch(*branch) for branch in zip(q_BSHD, k_BTKD, v_BTKD, strict=True)]
    return torch.stack(branches) if len(branches) > 1 else branches[0].unsqueeze(0), None


def mx_branch(q_SHD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
    import torch_npu

    q, q_scale = torch_npu.npu_dynamic_mx_quant(q_SHD, dst_type=FP8.type, scale_alg=NO_OVERFLOW)
    k, k_scale = torch_npu.npu_dynamic_mx_quant(k_TKD, dst_type=FP8.type, scale_alg=NO_OVERFLOW)
    group = q.shape[1] // k.shape[1]
    if len(q) * group <= FEW:
        q_scale = q_scale.unflatten(1, (-1, group)).movedim(1, 0).contiguous()
    v, v_scale = torch_npu.npu_dynamic_mx_quant(v_TKD, axis=0, dst_type=FP8.type, scale_alg=NO_OVERFLOW)
    out_SHD, _ = torch_npu.npu_fused_infer_attention_score_v2(
        q,
        k,
        v,
        actual_seq_qlen=[len(q)],
        actual_seq_kvlen=[len(k)],
        dequant_scale_query=q_scale,
        dequant_scale_key=k_scale,
        dequant_scale_value=v_scale,
        quant_scale_p=most(q.device),
        num_query_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        softmax_scale=1 / math.sqrt(q.shape[2]),
        input_layout="TND",
        query_quant_mode=BY_TOKEN,
        key_quant_mode=BY_TOKEN,
        value_quant_mode=BY_CHANNEL,
        dequant_scale_query_dtype=torch_npu.float8_e8m0fnu,
        dequant_scale_key_dtype=torch_npu.float8_e8m0fnu,
        dequant_scale_value_dtype=torch_npu.float8_e8m0fnu,
        out_dtype=q_SHD.dtype,
    )
    return out_SHD


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
