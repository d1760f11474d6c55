"""FlashAttention-3 (package fa3-fwd) over segments: in 16 bits, and in FP8.

In FP8 the library attends to the last segment, the media's. A kernel of ours then adds the other segments, the text's,
to what it found: their keys in FP8 as well, but with a mean and a scale of their own, since the two towers' ranges have
nothing in common, and their values in 16 bits, since they are few and much depends on them.
"""

from __future__ import annotations

import math

import torch
from cosmos3_triton.segments import QuantizedHeads, add_segment, join, quantize
from cosmos3_triton.tables import Table
from torch import Tensor

from cosmos3_core.contract.attention import joined

from .attention import Segments


class FlashAttention3:
    """contract.ops.Attention in 16 bits."""

    def __init__(self) -> None:
        from fa3_fwd_interface import flash_attn_func

        self.flash = flash_attn_func

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if len(segments) > 1 and not causal:
            segments = [join(segments)]
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        # `return_attn_probs` is its name for returning the log-sum-exp.
        found = self.flash(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_attn_probs=want_lse)
        return found if want_lse else (found, None)


class FlashAttention3InFP8(FlashAttention3):
    """With the last segment of a call in FP8. Causal calls are the text's own, and in 16 bits."""

    def __init__(self, table: Table):
        super().__init__()
        self.launch = table.launch("add_segment")

    def prepare(self, k_BTKD: Tensor, v_BTKD: Tensor) -> QuantizedHeads:
        """The text's keys in e4m3, once for all steps."""
        return quantize(k_BTKD, centre=True)

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if causal:
            return super().__call__(q_BSHD, segments, causal=True, want_lse=want_lse)
        return self._in_fp8(q_BSHD, segments, want_lse)

    def _others(self, q_BSHD: Tensor, segments: Segments) -> tuple[QuantizedHeads, Tensor] | None:
        """Keys in e4m3 and values of all segments but the last; None where there is one."""
        if len(segments) == 2 and segments[0].prepared is not None:
            return segments[0].prepared, segments[0].v_BTKD
        if len(segments) == 1:
            return None
        k_BTKD, v_BTKD = joined(q_BSHD, segments[:-1], causal=False)
        return quantize(k_BTKD, centre=True), v_BTKD

    def _in_fp8(self, q_BSHD: Tensor, segments: Segments, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """A segment's keys lose their mean, which lowers all scores of a query by the query's product with it. Two
        segments have two means, and the difference decides how much of the result is either's: its product is made of
        the query before rounding. The values' mean is added to the result unrounded: where attention is spread over
        many keys it is most of the result, and the rounding errors of the rest average out."""
        k_BTKD, v_BTKD = segments[-1]
        k8, v8 = quantize(k_BTKD, centre=True), quantize(v_BTKD, centre=True)
        others = self._others(q_BSHD, segments)
        apart_BKD = k8.mean_BHD if others is None else k8.mean_BHD - others[0].mean_BHD
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
