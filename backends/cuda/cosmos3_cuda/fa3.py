"""FlashAttention-3 (package fa3-fwd) over segments: in 16 bits, and in FP8.

In FP8 the library attends to the last segment, the media's. A kernel of ours then adds the other segments, the text's,
to what it found: their keys in FP8 as well, but with a mean and a scale of their own, since the two towers' ranges have
nothing in common, and their values in 16 bits, since they are few and much depends on them.
"""

from __future__ import annotations

import math

import torch
from cosmos3_triton.segments import add_segment, join, quantize
from cosmos3_triton.tables import Table
from torch import Tensor

from cosmos3_core.contract.attention import joined

from .attention import Segments, sdpa_cudnn

FA3_FROM = 2048
"""Queries from which on FlashAttention-3 is faster than cuDNN on an H100. It takes the host 0.25 ms to call and cuDNN
0.1 ms; in a CUDA graph the two are equally fast at 1,024 queries."""
CUDNN_HEAD_DIM = 128


class FlashAttention3:
    """contract.ops.Attention. With `cudnn`, short calls go to cuDNN; with `fp8`, the last segment of a call that is
    not causal is in FP8."""

    def __init__(self, table: Table, *, cudnn: bool, fp8: bool):
        from fa3_fwd_interface import flash_attn_func

        self.flash, self.cudnn, self.fp8, self.launch = flash_attn_func, cudnn, fp8, table.launch("add_segment")

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if self.fp8 and not causal:
            return self._in_fp8(q_BSHD, segments, want_lse)
        if self.cudnn and q_BSHD.shape[1] < FA3_FROM and q_BSHD.shape[3] <= CUDNN_HEAD_DIM:
            return sdpa_cudnn(q_BSHD, segments, causal=causal, want_lse=want_lse)
        if len(segments) > 1 and not causal:
            segments = [join(segments)]
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        # `return_attn_probs` is its name for returning the log-sum-exp.
        found = self.flash(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_attn_probs=want_lse)
        return found if want_lse else (found, None)

    def _in_fp8(self, q_BSHD: Tensor, segments: Segments, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Taking one vector from every key moves all scores of a query alike, by its product with the query. Taken
        from the keys of two segments, these products tell how much of the result is either's: they are made of the
        query as it was. The mean value is given back as it is: where attention is spread over many keys, it is most of
        the result, and rounding errors of the rest average out."""
        k_BTKD, v_BTKD = segments[-1]
        k8, v8 = quantize(k_BTKD, centre=True), quantize(v_BTKD, centre=True)
        apart_BKD, others = k8.mean_BHD, None
        if len(segments) > 1:
            other_k, other_v = joined(q_BSHD, segments[:-1], causal=False)
            others = quantize(other_k, centre=True), other_v
            apart_BKD = apart_BKD - others[0].mean_BHD
        q8 = quantize(q_BSHD, share=q_BSHD.shape[2] // k_BTKD.shape[2], against_BGD=apart_BKD)
        # Tiles of all queries of a key head, not of one query head: 1% less here, and 5% more in 16 bits.
        out_BSHD, lse_BHS = self.flash(
            q8.x_BTHD,
            k8.x_BTHD,
            v8.x_BTHD,
            q_descale=q8.scale_BG,
            k_descale=k8.scale_BG,
            v_descale=v8.scale_BG,
            return_attn_probs=True,
            pack_gqa=True,
        )
        add_segment(q8, others, out_BSHD, lse_BHS, v8.mean_BHD, self.launch)
        if not want_lse:
            return out_BSHD, None
        if others is not None:
            mean_BHD = others[0].mean_BHD.repeat_interleave(q_BSHD.shape[2] // k_BTKD.shape[2], dim=1)
            lse_BHS += torch.einsum("bshd,bhd->bhs", q_BSHD.float(), mean_BHD) / math.sqrt(q_BSHD.shape[3])
        return out_BSHD, lse_BHS
