"""FlashAttention-3 (package fa3-fwd) over segments: in 16 bits, and with the media's segment in FP8.

Where there are many queries, segments are attended to apart and merged by their log-sum-exp: that costs one pass over
the output, and copying keys and values together costs more. In FP8 only the last segment, the media's, is quantized.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos3_core.contract.attention import joined

from .attention import Segments, sdpa_cudnn

FA3_FROM = 2048
"""Queries from which on FlashAttention-3 is faster than cuDNN on an H100. It takes the host 0.25 ms to call and cuDNN
0.1 ms; in a CUDA graph the two are equally fast at 1,024 queries."""
APART_FROM = 16384
"""Queries from which on two calls and a merge are faster than one call on a copy of both segments: on an H100 2.3
against 2.2 ms at 9,360 queries, 45.7 against 48.7 at 44,160."""
CUDNN_HEAD_DIM = 128
MOST = 448.0
"""The largest number of e4m3."""
CHUNKS = 64
"""Parts of a sequence whose range is found in parallel."""


class FlashAttention3:
    """contract.ops.Attention. With `cudnn`, short calls go to cuDNN; with `fp8`, the last segment of a call that is
    not causal is in FP8."""

    def __init__(self, *, cudnn: bool, fp8: bool):
        from fa3_fwd_interface import flash_attn_func

        self.flash, self.cudnn, self.fp8 = flash_attn_func, cudnn, fp8

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if self.fp8 and not causal:
            return self._in_fp8(q_BSHD, segments, want_lse)
        if self.cudnn and q_BSHD.shape[1] < FA3_FROM and q_BSHD.shape[3] <= CUDNN_HEAD_DIM:
            return sdpa_cudnn(q_BSHD, segments, causal=causal, want_lse=want_lse)
        if len(segments) == 1 or q_BSHD.shape[1] < APART_FROM:
            k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
            # `return_attn_probs` is its name for returning the log-sum-exp.
            found = self.flash(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_attn_probs=want_lse)
            return found if want_lse else (found, None)
        before = joined(q_BSHD, segments[:-1], causal=False)
        parts = [self.flash(q_BSHD, k, v, return_attn_probs=True) for k, v in (before, segments[-1])]
        return merge(*parts, want_lse)

    def _in_fp8(self, q_BSHD: Tensor, segments: Segments, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Taking one vector from every key moves all scores of a query alike, so the media's mean key is taken from
        the text's keys too; only the log-sum-exp has to be moved back. The mean value is given back as it is: where
        attention is spread over many keys, it is most of the result, and rounding errors of the rest average out."""
        k_BTKD, v_BTKD = segments[-1]
        q8, q_scale, _ = quantize(q_BSHD, groups=k_BTKD.shape[2])
        k8, k_scale, mean_BKD = quantize(k_BTKD, centre=True)
        v8, v_scale, mean_value_BKD = quantize(v_BTKD, centre=True)
        scales = {"q_descale": q_scale, "k_descale": k_scale, "v_descale": v_scale}
        out, lse = self.flash(q8, k8, v8, return_attn_probs=True, **scales)
        if len(segments) > 1:
            k, v = joined(q_BSHD, segments[:-1], causal=False)
            k = (k - mean_BKD[:, None]).to(k.dtype)
            out, lse = merge(self.flash(q_BSHD, k, v, return_attn_probs=True), (out, lse), want_lse, mean_value_BKD)
        else:
            out = (
                (out.unflatten(2, (k_BTKD.shape[2], -1)) + mean_value_BKD[:, None, :, None]).to(out.dtype).flatten(2, 3)
            )
        if not want_lse:
            return out, None
        q_BSKGD = q_BSHD.unflatten(2, (k_BTKD.shape[2], -1)).float()
        shift_BSKG = torch.einsum("bskgd,bkd->bskg", q_BSKGD, mean_BKD) / math.sqrt(q_BSHD.shape[3])
        return out, lse + shift_BSKG.flatten(2).transpose(1, 2)


@triton.jit
def _merge(
    a_ptr, a_lse_ptr, b_ptr, b_lse_ptr, lse_ptr, mean_ptr, queries, heads, groups, D: tl.constexpr, M: tl.constexpr
):
    """b becomes the attention over the keys of a and b. a, b: [B, S, H, D], contiguous; lse: [B, H, S]; mean: what is
    to be added to b, [B, H / groups, D], or None."""
    rows = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    inside = rows < queries
    at_lse = (batch * heads + head).to(tl.int64) * queries + rows
    a_lse, b_lse = tl.load(a_lse_ptr + at_lse, inside, 0.0), tl.load(b_lse_ptr + at_lse, inside, 0.0)
    peak = tl.maximum(a_lse, b_lse)
    a_weight, b_weight = tl.exp(a_lse - peak), tl.exp(b_lse - peak)
    total = a_weight + b_weight
    at = ((batch * queries + rows) * heads + head)[:, None] * D + tl.arange(0, D)[None, :]
    a = tl.load(a_ptr + at, inside[:, None], 0.0).to(tl.float32)
    b = tl.load(b_ptr + at, inside[:, None], 0.0).to(tl.float32)
    if mean_ptr is not None:
        owner = batch * (heads // groups) + head // groups
        b += tl.load(mean_ptr + owner * D + tl.arange(0, D))[None, :]
    out = (a * a_weight[:, None] + b * b_weight[:, None]) / total[:, None]
    tl.store(b_ptr + at, out.to(b_ptr.dtype.element_ty), inside[:, None])
    tl.store(lse_ptr + at_lse, peak + tl.log(total), inside)


def merge(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], want_lse: bool, mean_BKD: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Attention over two sets of keys from that over each: (out_BSHD, lse_BHS), written over b's. `mean_BKD` was taken
    from b's values."""
    (out, lse), (other, other_lse) = b, a
    batch, queries, heads, dim = out.shape
    groups = 1 if mean_BKD is None else heads // mean_BKD.shape[1]
    _merge[triton.cdiv(queries, 32), batch * heads](
        other, other_lse, out, lse, lse, mean_BKD, queries, heads, groups, D=dim, M=32, num_warps=4
    )
    return out, lse if want_lse else None


@triton.jit
def _reach(x_ptr, strides, most_ptr, sum_ptr, length, chunk, D: tl.constexpr, N: tl.constexpr):
    """The largest magnitude and the channels' sums of a chunk of one head: most_BHC, sum_BHCD."""
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x_ptr += batch.to(tl.int64) * strides[0] + head * strides[2]
    channel = tl.arange(0, D)
    most, total = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    for start in range(part * chunk, min(length, (part + 1) * chunk), N):
        token = start + tl.arange(0, N)
        inside = token < min(length, (part + 1) * chunk)
        at = token.to(tl.int64)[:, None] * strides[1] + channel[None, :]
        x = tl.load(x_ptr + at, inside[:, None], 0.0).to(tl.float32)
        most, total = tl.maximum(most, tl.abs(x)), total + x
    at = (batch * tl.num_programs(1) + head) * tl.num_programs(0) + part
    tl.store(most_ptr + at, tl.max(tl.max(most, 1), 0))
    tl.store(sum_ptr + at * D + channel, tl.sum(total, 0))


@triton.jit
def _scaled(x_ptr, strides, mean_ptr, scale_ptr, out_ptr, length, D: tl.constexpr, N: tl.constexpr):
    """out_BTHD = (x - mean) / scale in FP8."""
    head, batch, heads = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    owner, channel = batch * heads + head, tl.arange(0, D)
    token = tl.program_id(0) * N + tl.arange(0, N)
    inside = (token < length)[:, None]
    at = batch.to(tl.int64) * strides[0] + head * strides[2] + token.to(tl.int64)[:, None] * strides[1]
    x = tl.load(x_ptr + at + channel[None, :], inside, 0.0).to(tl.float32)
    x = (x - tl.load(mean_ptr + owner * D + channel)[None, :]) / tl.load(scale_ptr + owner)
    at = ((batch.to(tl.int64) * length + token)[:, None] * heads + head) * D + channel[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), inside)


def quantize(x_BTHD: Tensor, *, groups: int | None = None, centre: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(x in e4m3, its scale [B, groups], the mean that was taken from it [B, H, D]). Heads of a group share a scale.

    The scale only has to keep all numbers in range: within it, how finely e4m3 resolves does not depend on it.
    """
    (batch, length, heads, dim), grid = x_BTHD.shape, (CHUNKS, x_BTHD.shape[2], x_BTHD.shape[0])
    most_BHC = x_BTHD.new_empty(batch, heads, CHUNKS, dtype=torch.float32)
    sum_BHCD = x_BTHD.new_empty(batch, heads, CHUNKS, dim, dtype=torch.float32)
    strides, chunk = x_BTHD.stride()[:3], triton.cdiv(length, CHUNKS)
    _reach[grid](x_BTHD, strides, most_BHC, sum_BHCD, length, chunk, D=dim, N=32, num_warps=4)
    mean_BHD = sum_BHCD.sum(2) / length if centre else torch.zeros_like(sum_BHCD[:, :, 0])
    reach_BH = most_BHC.amax(2) + mean_BHD.abs().amax(2)
    scale_BG = (reach_BH.unflatten(1, (groups or heads, -1)).amax(2) / MOST).clamp_min(1e-30)
    scale_BH = scale_BG.repeat_interleave(heads // scale_BG.shape[1], 1)
    x8 = torch.empty_like(x_BTHD, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    _scaled[triton.cdiv(length, 64), heads, batch](
        x_BTHD, strides, mean_BHD, scale_BH, x8, length, D=dim, N=64, num_warps=4
    )
    return x8, scale_BG, mean_BHD
