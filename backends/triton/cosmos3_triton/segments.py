"""Segments of keys and values: joined into one, in e4m3, and added to an attention that was computed without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.contract import Segment

from .activations import E4M3_MOST
from .attention import LENGTHS, LN_2, LOG2_E, Segments, attend, load_block, store_output
from .tables import Launch

CHUNKS = 64
"""Parts of a sequence whose range is found in parallel."""
JOINED = 64
"""Keys that a program copies."""
RUN = 4
"""Blocks that a program quantizes one after another, because it has to read the parts' ranges first."""


@triton.jit(do_not_specialize=["length", "first", "total"])
def _join(
    k_ptr, v_ptr, k_strides, v_strides, k_out_ptr, v_out_ptr, length, first, total, D: tl.constexpr, N: tl.constexpr
):
    """N keys and values of one head of a segment, to where the head's are from key `first` on."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token, channel = (block * N + tl.arange(0, N))[:, None], tl.arange(0, triton.next_power_of_2(D))[None, :]
    inside = (token < length) & (channel < D)
    k_ptr += batch.to(tl.int64) * k_strides[0] + token.to(tl.int64) * k_strides[1] + head * k_strides[2] + channel
    v_ptr += batch.to(tl.int64) * v_strides[0] + token.to(tl.int64) * v_strides[1] + head * v_strides[2] + channel
    at = ((batch * tl.num_programs(1) + head).to(tl.int64) * total + first + token) * D + channel
    tl.store(k_out_ptr + at, tl.load(k_ptr, inside), inside)
    tl.store(v_out_ptr + at, tl.load(v_ptr, inside), inside)


def join(segments: Segments) -> Segment:
    """The segments as one. In memory the tokens of a head follow each other, from which a pass of
    FlashAttention-3 is 0.3% faster than from the heads of a token."""
    any_BTKD, lengths = segments[0].k_BTKD, [k.shape[1] for k, _ in segments]
    batch, _, heads, dim = any_BTKD.shape
    k_BKTD, v_BKTD = (any_BTKD.new_empty(batch, heads, sum(lengths), dim) for _ in "kv")
    first = 0
    for (k, v), length in zip(segments, lengths, strict=True):
        strides = k.stride()[:3], v.stride()[:3]
        _join[triton.cdiv(length, JOINED), heads, batch](
            k, v, *strides, k_BKTD, v_BKTD, length, first, sum(lengths), D=dim, N=JOINED, num_warps=4
        )
        first += length
    return Segment(k_BKTD.transpose(1, 2), v_BKTD.transpose(1, 2))


@dataclass(frozen=True)
class QuantizedHeads:
    """Heads in e4m3: what they were is x_BTHD · scale_BG + mean_BHD. Neighbouring heads may share a scale.
    `against_BHT` are products of what they were with a vector."""

    x_BTHD: Tensor
    scale_BG: Tensor
    mean_BHD: Tensor
    against_BHT: Tensor | None


@triton.jit(do_not_specialize=LENGTHS)
def _add_segment(
    q_x, k_x, v_x, out_x, lse_ptr, apart_ptr, q_scale_ptr, k_scale_ptr, mean_ptr, queries, length, groups, scale,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One program: M queries of one head, as in attention._flash, which begins with nothing seen. Heads of the
    same queries run at a time: a row of all heads is read and written as one."""
    tiles = tl.cdiv(queries, M)
    heads = tl.num_programs(0) // tiles
    start, head, batch = tl.program_id(0) // heads * M, tl.program_id(0) % heads, tl.program_id(1)
    kv = head // groups
    owner, row = batch * (heads // groups) + kv, start + tl.arange(0, M)
    at = (batch * heads + head).to(tl.int64) * queries + row
    q = load_block(q_x, batch, start, head, queries, M, D, False, True)
    lse, apart = tl.load(lse_ptr + at, row < queries, 0.0), tl.load(apart_ptr + at, row < queries, 0.0)
    peak = lse / LN_2 + apart * scale
    found = load_block(out_x, batch, start, head, queries, M, D, False, True)
    acc = found.to(tl.float32) + tl.load(mean_ptr + owner * D + tl.arange(0, D))[None, :]
    total = tl.full([M], 1.0, tl.float32)
    scale *= tl.load(q_scale_ptr + owner) * tl.load(k_scale_ptr + owner)
    acc, total, peak = attend(acc, total, peak, q, k_x, v_x, batch, kv, start, length, scale, N, False, True)
    out = (acc / total[:, None]).to(found.dtype)
    store_output(out_x, lse_ptr, out, peak + tl.log2(total), batch, start, head, heads, queries, True)


def add_segment(
    q8: QuantizedHeads,
    segment: tuple[QuantizedHeads, Tensor] | None,
    out_BSHD: Tensor,
    lse_BHS: Tensor,
    v_mean_BKD: Tensor,
    launch: Launch,
) -> None:
    """Make of out and lse, in place, the attention over their own keys and those of `segment`. `v_mean` was taken from
    their values, which get it back; `q8.against` are products with what was taken from their keys and not from the
    segment's. lse comes out as that of scores without what was taken from the segment's keys."""
    k8, v_BTKD = segment or (q8, out_BSHD)  # without a segment its length is 0: none of this is read
    batch, queries, heads, dim = q8.x_BTHD.shape

    def rows(x_BTHD: Tensor, block: int) -> TensorDescriptor:
        return TensorDescriptor(x_BTHD, x_BTHD.shape, x_BTHD.stride(), [1, block, 1, dim])

    _add_segment[triton.cdiv(queries, launch.block_m) * heads, batch](
        rows(q8.x_BTHD, launch.block_m),
        rows(k8.x_BTHD, launch.block_n),
        rows(v_BTKD, launch.block_n),
        rows(out_BSHD, launch.block_m),
        lse_BHS,
        q8.against_BHT,
        q8.scale_BG,
        k8.scale_BG,
        v_mean_BKD,
        queries,
        0 if segment is None else v_BTKD.shape[1],
        heads // v_mean_BKD.shape[1],
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
    x_ptr, strides, most_ptr, sum_ptr, against_ptr, out_ptr, scale_ptr, mean_ptr, product_ptr, length,
    D: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr, SHARE: tl.constexpr,
    CENTRE: tl.constexpr,
):  # fmt: skip
    """out_BTHD = (x - mean) / scale in FP8, scale_BG, mean_BHD, and with `against_BGD` product_BHT of x with it."""
    run, head, batch, heads = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    owner, channel, part = batch * heads + head, tl.arange(0, D), tl.arange(0, CHUNKS)
    group = owner // SHARE
    shared = tl.arange(0, triton.next_power_of_2(SHARE * CHUNKS))
    reach = tl.max(tl.load(most_ptr + group * SHARE * CHUNKS + shared, shared < SHARE * CHUNKS, 0.0), 0)
    mean = tl.zeros([D], tl.float32)
    if CENTRE:
        mean = tl.sum(tl.load(sum_ptr + (owner * CHUNKS + part)[:, None] * D + channel[None, :]), 0) / length
        reach += tl.max(tl.abs(mean), 0)
    scale = tl.maximum(reach / E4M3_MOST, 1e-30)
    if run == 0:
        tl.store(scale_ptr + group, scale)
        tl.store(mean_ptr + owner * D + channel, mean)
    if against_ptr is not None:
        against = tl.load(against_ptr + group * D + channel)
    x_ptr += batch.to(tl.int64) * strides[0] + head * strides[2]
    for block in range(RUN):
        token = (run * RUN + block) * N + tl.arange(0, N)
        inside = (token < length)[:, None]
        at = token.to(tl.int64)[:, None]
        x = tl.load(x_ptr + at * strides[1] + channel[None, :], inside, 0.0).to(tl.float32)
        if against_ptr is not None:
            first = product_ptr + owner.to(tl.int64) * length
            tl.store(first + token, tl.sum(x * against[None, :], 1), token < length)
        x = ((x - mean[None, :]) / scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + ((batch * length + at) * heads + head) * D + channel[None, :], x, inside)


def quantize(
    x_BTHD: Tensor, *, share: int = 1, centre: bool = False, against_BGD: Tensor | None = None
) -> QuantizedHeads:
    """`share` neighbouring heads have one scale, and one vector that they are multiplied with; heads that are centred
    have each its own scale, and lose their mean.

    The scale only has to keep all numbers in range: within it, how finely e4m3 resolves does not depend on it.
    """
    batch, length, heads, dim = x_BTHD.shape
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": x_BTHD.device}
    most_BHC, sum_BHCD = torch.empty(batch, heads, CHUNKS, **fp32), torch.empty(batch, heads, CHUNKS, dim, **fp32)
    quantized = QuantizedHeads(
        torch.empty_like(x_BTHD, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format),
        torch.empty(batch, heads // share, **fp32),
        torch.empty(batch, heads, dim, **fp32),
        None if against_BGD is None else torch.empty(batch, heads, length, **fp32),
    )
    strides, chunk, block = x_BTHD.stride()[:3], triton.cdiv(length, CHUNKS), 64
    _reach[CHUNKS, heads, batch](x_BTHD, strides, most_BHC, sum_BHCD, length, chunk, D=dim, N=32, num_warps=4)
    _scaled[triton.cdiv(length, RUN * block), heads, batch](
        x_BTHD,
        strides,
        most_BHC,
        sum_BHCD,
        against_BGD,
        quantized.x_BTHD,
        quantized.scale_BG,
        quantized.mean_BHD,
        quantized.against_BHT,
        length,
        D=dim,
        N=block,
        CHUNKS=CHUNKS,
        RUN=RUN,
        SHARE=share,
        CENTRE=centre,
        num_warps=4,
    )
    return quantized
