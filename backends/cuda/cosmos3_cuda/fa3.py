"""FlashAttention-3 (package fa3-fwd) over segments: in 16 bits, and with the media's segment in FP8.

In FP8 only the last segment, the media's, is quantized. The library attends to that one; a kernel of ours then adds the
other segments, the text's, in 16 bits, to what it found.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.contract.attention import joined

from .attention import Segments, sdpa_cudnn
from .triton_attention import LENGTHS, LN_2, LOG2_E, Launch, _attend, _block, _put

FA3_FROM = 2048
"""Queries from which on FlashAttention-3 is faster than cuDNN on an H100. It takes the host 0.25 ms to call and cuDNN
0.1 ms; in a CUDA graph the two are equally fast at 1,024 queries."""
CUDNN_HEAD_DIM = 128
MOST = tl.constexpr(448.0)
"""The largest number of e4m3."""
CHUNKS = 64
"""Parts of a sequence whose range is found in parallel."""
RUN = 4
"""Blocks that a program quantizes one after another, because it has to read the parts' ranges first."""


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
        k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
        # `return_attn_probs` is its name for returning the log-sum-exp.
        found = self.flash(q_BSHD, k_BTKD, v_BTKD, causal=causal, return_attn_probs=want_lse)
        return found if want_lse else (found, None)

    def _in_fp8(self, q_BSHD: Tensor, segments: Segments, want_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Taking one vector from every key moves all scores of a query alike, which `add_segment` takes back. The mean
        value is given back as it is: where attention is spread over many keys, it is most of the result, and rounding
        errors of the rest average out."""
        k_BTKD, v_BTKD = segments[-1]
        q8, q_scale, _ = quantize(q_BSHD, share=q_BSHD.shape[2] // k_BTKD.shape[2])
        k8, k_scale, k_mean_BKD = quantize(k_BTKD, centre=True)
        v8, v_scale, v_mean_BKD = quantize(v_BTKD, centre=True)
        scales = {"q_descale": q_scale, "k_descale": k_scale, "v_descale": v_scale}
        out_BSHD, lse_BHS = self.flash(q8, k8, v8, return_attn_probs=True, **scales)
        others = joined(q_BSHD, segments[:-1], causal=False) if len(segments) > 1 else None
        add_segment(q_BSHD, others, out_BSHD, lse_BHS, k_mean_BKD, v_mean_BKD)
        return out_BSHD, lse_BHS if want_lse else None


@triton.jit(do_not_specialize=LENGTHS)
def _add_segment(
    q_x, k_x, v_x, out_x, lse_ptr, k_mean_ptr, v_mean_ptr, queries, length, groups, scale,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One program: M queries of one head, as in triton_attention._flash, which begins with nothing seen. Heads of the
    same queries run at a time: a row of all heads is read and written as one."""
    tiles = tl.cdiv(queries, M)
    heads = tl.num_programs(0) // tiles
    start, head, batch = tl.program_id(0) // heads * M, tl.program_id(0) % heads, tl.program_id(1)
    kv = head // groups
    row, channel = start + tl.arange(0, M), (batch * (heads // groups) + kv) * D + tl.arange(0, D)
    q = _block(q_x, batch, start, head, queries, M, D, False, True)
    lse = tl.load(lse_ptr + (batch * heads + head).to(tl.int64) * queries + row, row < queries, 0.0)
    peak = lse / LN_2 + tl.sum(q.to(tl.float32) * tl.load(k_mean_ptr + channel)[None, :], 1) * scale
    acc = _block(out_x, batch, start, head, queries, M, D, False, True).to(tl.float32)
    acc += tl.load(v_mean_ptr + channel)[None, :]
    total = tl.full([M], 1.0, tl.float32)
    acc, total, peak = _attend(acc, total, peak, q, k_x, v_x, batch, kv, start, length, scale, N, False, True)
    out = (acc / total[:, None]).to(q.dtype)
    _put(out_x, lse_ptr, out, peak + tl.log2(total), batch, start, head, heads, queries, True)


ADD = Launch(64, 64, warps=4, stages=3)
"""The fastest of seven on an H100, for 512 keys."""


def add_segment(
    q_BSHD: Tensor,
    segment: tuple[Tensor, Tensor] | None,
    out_BSHD: Tensor,
    lse_BHS: Tensor,
    k_mean_BKD: Tensor,
    v_mean_BKD: Tensor,
) -> None:
    """Make of out and lse, in place, the attention over their own keys and those of `segment`. `k_mean` was taken from
    their keys and `v_mean` from their values; both get it back."""
    k_BTKD, v_BTKD = (q_BSHD, q_BSHD) if segment is None else segment
    (batch, queries, heads, dim), launch = q_BSHD.shape, ADD

    def rows(x_BTHD: Tensor, block: int) -> TensorDescriptor:
        return TensorDescriptor(x_BTHD, x_BTHD.shape, x_BTHD.stride(), [1, block, 1, dim])

    _add_segment[triton.cdiv(queries, launch.block_m) * heads, batch](
        rows(q_BSHD, launch.block_m),
        rows(k_BTKD, launch.block_n),
        rows(v_BTKD, launch.block_n),
        rows(out_BSHD, launch.block_m),
        lse_BHS,
        k_mean_BKD,
        v_mean_BKD,
        queries,
        0 if segment is None else k_BTKD.shape[1],
        heads // k_mean_BKD.shape[1],
        LOG2_E / math.sqrt(dim),
        M=launch.block_m,
        N=launch.block_n,
        D=dim,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )


@triton.jit(do_not_specialize=LENGTHS)
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


@triton.jit(do_not_specialize=LENGTHS)
def _scaled(
    x_ptr, strides, most_ptr, sum_ptr, out_ptr, scale_ptr, mean_ptr, length,
    D: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr, SHARE: tl.constexpr,
    CENTRE: tl.constexpr,
):  # fmt: skip
    """out_BTHD = (x - mean) / scale in FP8, and scale_BG, mean_BHD."""
    run, head, batch, heads = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    owner, channel, part = batch * heads + head, tl.arange(0, D), tl.arange(0, CHUNKS)
    shared = tl.arange(0, triton.next_power_of_2(SHARE * CHUNKS))
    reach = tl.max(tl.load(most_ptr + owner // SHARE * SHARE * CHUNKS + shared, shared < SHARE * CHUNKS, 0.0), 0)
    mean = tl.zeros([D], tl.float32)
    if CENTRE:
        mean = tl.sum(tl.load(sum_ptr + (owner * CHUNKS + part)[:, None] * D + channel[None, :]), 0) / length
        reach += tl.max(tl.abs(mean), 0)
    scale = tl.maximum(reach / MOST, 1e-30)
    if run == 0:
        tl.store(scale_ptr + owner // SHARE, scale)
        tl.store(mean_ptr + owner * D + channel, mean)
    x_ptr += batch.to(tl.int64) * strides[0] + head * strides[2]
    for block in range(RUN):
        token = (run * RUN + block) * N + tl.arange(0, N)
        inside = (token < length)[:, None]
        at = token.to(tl.int64)[:, None]
        x = tl.load(x_ptr + at * strides[1] + channel[None, :], inside, 0.0).to(tl.float32)
        x = ((x - mean[None, :]) / scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + ((batch * length + at) * heads + head) * D + channel[None, :], x, inside)


def quantize(x_BTHD: Tensor, *, share: int = 1, centre: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(x in e4m3, its scale_BG, the mean_BHD that was taken from it or zeros). `share` neighbouring heads have one
    scale; those that are centred have each its own.

    The scale only has to keep all numbers in range: within it, how finely e4m3 resolves does not depend on it.
    """
    batch, length, heads, dim = x_BTHD.shape
    fp32 = {"dtype": torch.float32, "device": x_BTHD.device}
    most_BHC, sum_BHCD = torch.empty(batch, heads, CHUNKS, **fp32), torch.empty(batch, heads, CHUNKS, dim, **fp32)
    scale_BG, mean_BHD = torch.empty(batch, heads // share, **fp32), torch.empty(batch, heads, dim, **fp32)
    x8 = torch.empty_like(x_BTHD, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    strides, chunk, block = x_BTHD.stride()[:3], triton.cdiv(length, CHUNKS), 64
    _reach[CHUNKS, heads, batch](x_BTHD, strides, most_BHC, sum_BHCD, length, chunk, D=dim, N=32, num_warps=4)
    _scaled[triton.cdiv(length, RUN * block), heads, batch](
        x_BTHD,
        strides,
        most_BHC,
        sum_BHCD,
        x8,
        scale_BG,
        mean_BHD,
        length,
        D=dim,
        N=block,
        CHUNKS=CHUNKS,
        RUN=RUN,
        SHARE=share,
        CENTRE=centre,
        num_warps=4,
    )
    return x8, scale_BG, mean_BHD
