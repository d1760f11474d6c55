"""Flash attention in Triton with products in 16 bits, and what its relatives share with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.contract import Segment
from cosmos3_core.contract.attention import joined

from .tables import Table

Segments = Sequence[Segment]

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))
LENGTHS = ["queries", "length", "length0", "length1", "chunk", "blocks"]
"""Arguments whose value a kernel is not compiled for: another size of video compiles nothing."""


@triton.jit
def load_block(
    x, batch, at, head, length, ROWS: tl.constexpr, D: tl.constexpr, INSIDE: tl.constexpr, TMA: tl.constexpr
):
    """x[batch, at : at + ROWS, head], zeros from row `length` on (with INSIDE there are none). x is a descriptor for
    the copy engine, or (pointer, strides of batch, token and head)."""
    if TMA:
        block = x.load([batch, at, head, 0]).reshape(ROWS, D)
    else:
        row = tl.arange(0, ROWS)[:, None]
        first = x[0] + batch.to(tl.int64) * x[1] + tl.cast(at, tl.int64) * x[2] + head * x[3]
        if INSIDE:
            block = tl.load(first + row * x[2] + tl.arange(0, D)[None, :])
        else:
            block = tl.load(first + row * x[2] + tl.arange(0, D)[None, :], at + row < length, other=0.0)
    return block


@triton.jit
def store_output(out_x, lse_ptr, out, lse, batch, start, head, heads, length, TMA: tl.constexpr):
    """Write what a program found: out_MD where `load_block` would read it, and lse_M, base 2, as natural logarithm."""
    M: tl.constexpr = out.shape[0]
    D: tl.constexpr = out.shape[1]
    row = tl.arange(0, M)
    if TMA:
        out_x.store([batch, start, head, 0], out.reshape(1, M, 1, D))
    else:
        first = out_x[0] + batch.to(tl.int64) * out_x[1] + start.to(tl.int64) * out_x[2] + head * out_x[3]
        tl.store(first + row[:, None] * out_x[2] + tl.arange(0, D)[None, :], out, (start + row < length)[:, None])
    first = lse_ptr + (batch * heads + head).to(tl.int64) * length + start
    tl.store(first + row, lse * LN_2, start + row < length)


@triton.jit
def _attend_blocks(
    acc, total, peak, q, k_x, v_x, first, last, batch, head, start, length, scale,
    N: tl.constexpr, INSIDE: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys `first` to `last`, N at a time, all seen by all queries if INSIDE."""
    M: tl.constexpr = q.shape[0]
    D: tl.constexpr = q.shape[1]
    for at in tl.range(first, last, N):
        k = load_block(k_x, batch, at, head, length, N, D, INSIDE, TMA)
        v = load_block(v_x, batch, at, head, length, N, D, INSIDE, TMA)
        s = tl.dot(q, k.T)
        if not INSIDE:
            key = at + tl.arange(0, N)[None, :]
            seen = key < length
            if CAUSAL:
                seen = seen & (key <= start + tl.arange(0, M)[:, None])
            s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(peak, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None])
        peak = higher
    return acc, total, peak


@triton.jit
def attend(
    acc, total, peak, q, k_x, v_x, batch, head, start, length, scale,
    N: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """A segment's part: acc_MD is the sum of weights times values and total_M that of weights, both in units of
    2**peak_M. `scale` is that of softmax, 1 / sqrt(D), times that of the logarithm's base."""
    inner = (start if CAUSAL else length) // N * N
    last = tl.minimum(start + q.shape[0], length) if CAUSAL else length
    acc, total, peak = _attend_blocks(
        acc, total, peak, q, k_x, v_x, 0, inner, batch, head, start, length, scale, N, True, CAUSAL, TMA
    )
    return _attend_blocks(
        acc, total, peak, q, k_x, v_x, inner, last, batch, head, start, length, scale, N, False, CAUSAL, TMA
    )


@triton.jit(do_not_specialize=LENGTHS)
def _flash(
    q_x, k0_x, v0_x, k1_x, v1_x, out_x, lse_ptr, queries, length0, length1, groups, scale,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program: M queries of one head over two segments, the second of which may be empty. Programs that run at a
    time share a key head, whose keys and values then stay in L2."""
    tiles = tl.cdiv(queries, M)
    start, head, batch = tl.program_id(0) % tiles * M, tl.program_id(0) // tiles, tl.program_id(1)
    heads, kv = tl.num_programs(0) // tiles, head // groups
    q = load_block(q_x, batch, start, head, queries, M, D, False, TMA)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    acc, total, peak = attend(acc, total, peak, q, k0_x, v0_x, batch, kv, start, length0, scale, N, CAUSAL, TMA)
    acc, total, peak = attend(acc, total, peak, q, k1_x, v1_x, batch, kv, start, length1, scale, N, False, TMA)
    out = (acc / total[:, None]).to(q.dtype)
    store_output(out_x, lse_ptr, out, peak + tl.log2(total), batch, start, head, heads, queries, TMA)


class Flash:
    """contract.ops.Attention with products in 16 bits. Two segments are read where they lie."""

    def __init__(self, table: Table):
        self.tma, self.launch = table.tma, table.launch("flash")

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        (k0, v0), (k1, v1) = pair = first_and_last(q_BSHD, segments, causal)
        (batch, queries, heads, dim), launch = q_BSHD.shape, self.launch
        out_BSHD, lse_BHS = results(q_BSHD)
        _flash[triton.cdiv(queries, launch.block_m) * heads, batch](
            self.rows(q_BSHD, launch.block_m),
            *(self.rows(x, launch.block_n) for x in (k0, v0, k1, v1)),
            self.rows(out_BSHD, launch.block_m),
            lse_BHS,
            queries,
            k0.shape[1],
            0 if pair[0] is pair[1] else k1.shape[1],
            heads // k0.shape[2],
            LOG2_E / math.sqrt(dim),
            M=launch.block_m,
            N=launch.block_n,
            D=dim,
            CAUSAL=causal,
            TMA=self.tma,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        return out_BSHD, lse_BHS if want_lse else None

    def rows(self, x_BTHD: Tensor, block: int) -> TensorDescriptor | tuple[Tensor, int, int, int]:
        """What `load_block` takes."""
        if self.tma:
            return TensorDescriptor(x_BTHD, x_BTHD.shape, x_BTHD.stride(), [1, block, 1, x_BTHD.shape[-1]])
        return x_BTHD, *x_BTHD.stride()[:3]


def first_and_last(
    q_BSHD: Tensor, segments: Segments, causal: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """All segments but the last joined, and the last; twice the same where there is one. ValueError as `joined`."""
    last = joined(q_BSHD, segments[-1:], causal and len(segments) == 1)
    return (joined(q_BSHD, segments[:-1], causal) if len(segments) > 1 else last), last


def results(q_BSHD: Tensor) -> tuple[Tensor, Tensor]:
    """Room for out_BSHD and lse_BHS, which is so little that it is always written."""
    batch, queries, heads, _ = q_BSHD.shape
    out_BSHD = torch.empty_like(q_BSHD, memory_format=torch.contiguous_format)
    return out_BSHD, q_BSHD.new_empty(batch, heads, queries, dtype=torch.float32)
