"""Flash attention in Triton with products in 8 bits.

What 8 bits lose is lost in rounding, so what is rounded is made small and even first. None of that changes the result:
  keys           less their mean over the segment. The other segment's keys are not shifted, so a query's product with
                 the mean is added back to its scores.
  queries, keys  rotated by a Hadamard matrix, which leaves their products as they are and spreads a channel that is
                 much larger than the others over all. Then a scale for each query, and one for all keys of a head.
  values         less their mean, which the output gets back, since weights sum to one; with a scale for each channel,
                 which the output is multiplied by.
  weights        relative to the largest of their row in their block, not to the largest so far: 7 bits then do for
                 every block, however small its part in the whole.
No scale changes from block to block, so the loop over them loads nothing but keys and values. A block's products are
summed in int32, or in what the FP8 units have (about 14 bits on Hopper), and blocks in fp32.

Only the last segment (the media's) is held in 8 bits. The text's keys and values have other ranges, much depends on
them and they are few: they stay in 16 bits, in the same launch.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .activations import INT8, ROUND, Element, element
from .attention import LENGTHS, LOG2_E, Flash, Segments, attend, first_and_last, load_block, results, store_output
from .tables import Table

MAX_GAP = tl.constexpr(60.0)
"""Logarithm, base 2. Where a block's largest weight is below 2**-60 of the largest so far, its weights are relative to
that bound and round to zero: in units of so small a weight the other blocks' sums would overflow."""
TINY = tl.constexpr(1e-8)
"""Added to scales, so that what is zero throughout has one."""
GOLDEN = tl.constexpr(2654435769)
GRID = tl.constexpr(2**-32 * 2**-7.5)
"""bf16 values lie on a grid. Where a channel has one scale, equal values are rounded alike, and over thousands of keys
what is lost adds up instead of averaging out. So values are spread over the distance to their neighbours, by multiples
of the golden ratio."""


@triton.jit
def _narrow(x, TYPE: tl.constexpr):
    """To int8, nearest even, what is within its range; or to FP8."""
    if TYPE == tl.int8:
        narrow = (x + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        narrow = x.to(TYPE)
    return narrow


@triton.jit
def _reorder(x):
    """[ROWS, N] with the columns' numbers abcd within 16 turned into bcad. Of 16 products in a row a thread has two
    and, 8 further, two more; as an 8-bit operand it has to hold four neighbours. With the columns of both operands
    renumbered like this nothing changes threads in between."""
    ROWS: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    return x.reshape(ROWS, N // 16, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(ROWS, N)


@triton.jit(do_not_specialize=LENGTHS)
def _ranges(k_x, v_x, rotation_ptr, ranges_ptr, length, chunk, N: tl.constexpr, D: tl.constexpr):
    """Sum, least and largest of every channel over a chunk of one head's rotated keys, and of its values.
    ranges_BKC6D, fp32."""
    part, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, D)
    rotation = tl.load(rotation_ptr + d[:, None] * D + d[None, :])
    # Sums and extremes of every N-th token first, so that threads exchange theirs once and not for every block.
    k_sum, v_sum = tl.zeros([N, D], tl.float32), tl.zeros([N, D], tl.float32)
    k_least, v_least = tl.full([N, D], float("inf"), tl.float32), tl.full([N, D], float("inf"), tl.float32)
    k_most, v_most = tl.full([N, D], float("-inf"), tl.float32), tl.full([N, D], float("-inf"), tl.float32)
    last = tl.minimum((part + 1) * chunk, length)
    for at in tl.range(part * chunk, last, N):
        inside = (at + tl.arange(0, N) < last)[:, None]
        k = tl.dot(load_block(k_x, batch, at, head, last, N, D, False, False), rotation)
        v = load_block(v_x, batch, at, head, last, N, D, False, False).to(tl.float32)
        k_sum, v_sum = k_sum + k, v_sum + v
        k_least = tl.minimum(k_least, tl.where(inside, k, float("inf")))
        v_least = tl.minimum(v_least, tl.where(inside, v, float("inf")))
        k_most = tl.maximum(k_most, tl.where(inside, k, float("-inf")))
        v_most = tl.maximum(v_most, tl.where(inside, v, float("-inf")))
    ranges = ranges_ptr + ((batch * tl.num_programs(1) + head) * tl.num_programs(0) + part) * 6 * D + d
    tl.store(ranges, tl.sum(k_sum, 0))
    tl.store(ranges + D, tl.min(k_least, 0))
    tl.store(ranges + 2 * D, tl.max(k_most, 0))
    tl.store(ranges + 3 * D, tl.sum(v_sum, 0))
    tl.store(ranges + 4 * D, tl.min(v_least, 0))
    tl.store(ranges + 5 * D, tl.max(v_most, 0))


@triton.jit
def _mean_and_reach(ranges, length, D: tl.constexpr):
    """Of every channel: its mean, and the largest distance from it. `ranges` points to chunks' sums."""
    mean = tl.sum(tl.load(ranges), 0) / length
    least, most = tl.min(tl.load(ranges + D), 0), tl.max(tl.load(ranges + 2 * D), 0)
    return mean, tl.maximum(most - mean, mean - least)


@triton.jit(do_not_specialize=LENGTHS)
def _quantize(
    k_x, v_x, ranges_ptr, rotation_ptr, k8_ptr, v8_ptr, channel_ptr, length, blocks,
    N: tl.constexpr, D: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr,
    K_MOST: tl.constexpr, V_MOST: tl.constexpr,
):  # fmt: skip
    """A run of blocks of one head's keys and values; the last block is filled up with zeros.

    k8_BKTD; v8_BKDT, keys innermost as an 8-bit product wants them; both in `_reorder`'s order along their rows.
    channel_BK4D, fp32: the keys' mean, rotated, and their scale; the values' mean and their scales.
    """
    run, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    owner = batch * tl.num_programs(1) + head
    d, n = tl.arange(0, D), tl.arange(0, N)
    ranges = ranges_ptr + (owner * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * 6 * D + d[None, :]
    k_mean, k_reach = _mean_and_reach(ranges, length, D)
    v_mean, v_reach = _mean_and_reach(ranges + 3 * D, length, D)
    k_scale, v_scale = tl.max(k_reach) / K_MOST + TINY, v_reach / V_MOST + TINY
    if run == 0:
        channel = channel_ptr + owner * 4 * D + d
        tl.store(channel, k_mean)
        tl.store(channel + D, tl.broadcast_to(k_scale, [D]))
        tl.store(channel + 2 * D, v_mean)
        tl.store(channel + 3 * D, v_scale)
    rotation = tl.load(rotation_ptr + d[:, None] * D + d[None, :])
    first = owner.to(tl.int64) * blocks * N * D
    for block in tl.range(run * RUN, tl.minimum((run + 1) * RUN, blocks)):
        at = block * N + n
        inside = (at < length)[:, None]
        k = tl.dot(load_block(k_x, batch, block * N, head, length, N, D, False, False), rotation)
        k = tl.where(inside, (k - k_mean[None, :]) / k_scale, 0.0)
        v = load_block(v_x, batch, block * N, head, length, N, D, False, False).to(tl.float32)
        jitter = ((at[:, None] * D + d[None, :]).to(tl.uint32) * GOLDEN).to(tl.int32, bitcast=True)
        v *= 1 + jitter.to(tl.float32) * GRID
        v = tl.where(inside, (v - v_mean[None, :]) / v_scale[None, :], 0.0)
        k, v = tl.clamp(k, -K_MOST, K_MOST), tl.clamp(v, -V_MOST, V_MOST)
        k8, v8 = _reorder(_narrow(k, k8_ptr.dtype.element_ty)), _reorder(_narrow(v, v8_ptr.dtype.element_ty).T)
        tl.store(k8_ptr + first + at[:, None] * D + d[None, :], k8)
        tl.store(v8_ptr + first + d[:, None] * (blocks * N) + at[None, :], v8)


@triton.jit
def _attend_blocks_8bit(
    acc, total, peak, highest, q8, scale, k8_x, v8_x, first, last, owner, blocks, length,
    N: tl.constexpr, INSIDE: tl.constexpr, V_TYPE: tl.constexpr, V_TOP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """As `_attend_blocks`, in blocks of N. Every block has its own peak_M, which may be lower than the one before;
    highest_M is the largest score so far. scale_M has all scales of a product in it."""
    M: tl.constexpr = q8.shape[0]
    D: tl.constexpr = q8.shape[1]
    d, n = tl.arange(0, D), tl.arange(0, N)
    base = (owner * D).to(tl.int64) * blocks * N
    for block in tl.range(first, last):
        if TMA:
            k = k8_x.load([(owner * blocks + block) * N, 0])
            v = v8_x.load([owner * D, block * N])
        else:
            k = tl.load(k8_x + base + (block * N + n)[:, None] * D + d[None, :])
            v = tl.load(v8_x + base + d[:, None] * (blocks * N) + (block * N + n)[None, :])
        s = tl.dot(q8, k.T).to(tl.float32)
        if not INSIDE:
            s = tl.where((block * N + n)[None, :] < length, s, float("-inf"))
        here = tl.max(s, 1) * scale
        highest = tl.maximum(highest, here)
        here = tl.maximum(here, highest - MAX_GAP) - V_TOP
        p = tl.exp2(s * scale[:, None] - here[:, None])
        fade = tl.exp2(peak - here)
        total = total * fade + tl.sum(p, 1)
        product = tl.dot(_reorder(_narrow(p, V_TYPE)), v.T).to(tl.float32)
        # Not acc * fade + product, of which the compiler makes a product that is summed up within the FP8 units.
        acc = tl.math.fma(acc, tl.broadcast_to(fade[:, None], [M, D]), product)
        peak = here
    return acc, total, peak, highest


@triton.jit(do_not_specialize=LENGTHS)
def _flash_8bit(
    q_x, k_x, v_x, k8_x, v8_x, out_x, channel_ptr, rotation_ptr, lse_ptr,
    queries, length0, length1, groups, scale,
    M: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, D: tl.constexpr,
    K_TYPE: tl.constexpr, K_MOST: tl.constexpr, V_TYPE: tl.constexpr, V_TOP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """As `_flash`, with the second segment in 8 bits and the first perhaps empty. V_TOP is the logarithm, base 2, of
    what the largest weight of a block becomes."""
    tiles = tl.cdiv(queries, M)
    start, head, batch = tl.program_id(0) % tiles * M, tl.program_id(0) // tiles, tl.program_id(1)
    heads, kv = tl.num_programs(0) // tiles, head // groups
    owner, d = batch * (heads // groups) + kv, tl.arange(0, D)
    q = load_block(q_x, batch, start, head, queries, M, D, False, TMA)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    acc, total, peak = attend(acc, total, peak, q, k_x, v_x, batch, kv, start, length0, scale, N0, False, TMA)
    rotated = tl.dot(q, tl.load(rotation_ptr + d[:, None] * D + d[None, :]))
    q_scale = tl.max(tl.abs(rotated), 1) / K_MOST + TINY
    q8 = _reorder(_narrow(rotated / q_scale[:, None], K_TYPE))
    k_mean = channel_ptr + owner * 4 * D + d
    v_mean, v_scale = k_mean + 2 * D, k_mean + 3 * D
    scale /= D  # a product of two that a matrix of ones rotated is D times as large
    shift = tl.sum(rotated * tl.load(k_mean)[None, :], 1) * scale
    q_scale *= tl.load(channel_ptr + (owner * 4 + 1) * D) * scale
    # The sums as they would be of scores without the keys' mean, and of values about theirs, in their scale.
    peak -= shift
    acc = (acc - total[:, None] * tl.load(v_mean)[None, :]) / tl.load(v_scale)[None, :]
    blocks, inner, highest = tl.cdiv(length1, N1), length1 // N1, peak
    acc, total, peak, highest = _attend_blocks_8bit(
        acc, total, peak, highest, q8, q_scale, k8_x, v8_x, 0, inner, owner, blocks, length1,
        N1, True, V_TYPE, V_TOP, TMA,
    )  # fmt: skip
    acc, total, peak, highest = _attend_blocks_8bit(
        acc, total, peak, highest, q8, q_scale, k8_x, v8_x, inner, blocks, owner, blocks, length1,
        N1, False, V_TYPE, V_TOP, TMA,
    )  # fmt: skip
    out = acc / total[:, None] * tl.load(v_scale)[None, :] + tl.load(v_mean)[None, :]
    lse = peak + shift + tl.log2(total)
    store_output(out_x, lse_ptr, out.to(q.dtype), lse, batch, start, head, heads, queries, TMA)


# Launches ---------------------------------------------------------------------------------------------------------


CHUNKS = 32
"""Parts of a segment whose ranges are found in parallel."""
RUN = 4
"""Blocks that a program quantizes one after another, because it has to read the ranges and the rotation first."""


class EightBit:
    """contract.ops.Attention with the last segment in 8 bits: `keys` and queries, and `values` and weights. Causal
    calls are the text's own, and in 16 bits."""

    def __init__(self, table: Table, keys: Element, values: Element):
        self.flash, self.launch, self.ranges = Flash(table), table.launch("eight_bit"), table.launch("ranges")
        self.keys, self.values = keys, values

    def __call__(
        self, q_BSHD: Tensor, segments: Segments, *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if causal:
            return self.flash(q_BSHD, segments, causal=True, want_lse=want_lse)
        (k0, v0), (k1, v1) = pair = first_and_last(q_BSHD, segments, causal)
        (batch, queries, heads, dim), launch, rows = q_BSHD.shape, self.launch, self.flash.rows
        out_BSHD, lse_BHS = results(q_BSHD)
        k8, v8, channel_BK4D = self.quantize(k1, v1)
        if self.flash.tma:
            k8 = TensorDescriptor.from_tensor(k8.view(-1, dim), [launch.block_n, dim])
            v8 = TensorDescriptor.from_tensor(v8.view(-1, v8.shape[-1]), [dim, launch.block_n])
        _flash_8bit[triton.cdiv(queries, launch.block_m) * heads, batch](
            rows(q_BSHD, launch.block_m),
            rows(k0, launch.text),
            rows(v0, launch.text),
            k8,
            v8,
            rows(out_BSHD, launch.block_m),
            channel_BK4D,
            rotation(dim, q_BSHD.dtype, q_BSHD.device),
            lse_BHS,
            queries,
            0 if pair[0] is pair[1] else k0.shape[1],
            k1.shape[1],
            heads // k1.shape[2],
            LOG2_E / math.sqrt(dim),
            M=launch.block_m,
            N0=launch.text,
            N1=launch.block_n,
            D=dim,
            K_TYPE=self.keys.triton,
            K_MOST=self.keys.most,
            V_TYPE=self.values.triton,
            V_TOP=math.log2(self.values.most),
            TMA=self.flash.tma,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        return out_BSHD, lse_BHS if want_lse else None

    def quantize(self, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `_quantize` writes: k8_BKTD, v8_BKDT, channel_BK4D."""
        (batch, length, kv_heads, dim), block = k_BTKD.shape, self.launch.block_n
        blocks, chunk = triton.cdiv(length, block), triton.cdiv(length, CHUNKS)
        ranges_BKC6D = k_BTKD.new_empty(batch, kv_heads, CHUNKS, 6, dim, dtype=torch.float32)
        channel_BK4D = k_BTKD.new_empty(batch, kv_heads, 4, dim, dtype=torch.float32)
        k8_BKTD = k_BTKD.new_empty(batch, kv_heads, blocks * block, dim, dtype=self.keys.torch)
        v8_BKDT = k_BTKD.new_empty(batch, kv_heads, dim, blocks * block, dtype=self.values.torch)
        k, v = ((x, *x.stride()[:3]) for x in (k_BTKD, v_BTKD))
        rotated_by = rotation(dim, k_BTKD.dtype, k_BTKD.device)
        _ranges[CHUNKS, kv_heads, batch](
            k,
            v,
            rotated_by,
            ranges_BKC6D,
            length,
            chunk,
            N=self.ranges.block_n,
            D=dim,
            num_warps=self.ranges.warps,
            num_stages=2,
        )
        _quantize[triton.cdiv(blocks, RUN), kv_heads, batch](
            k,
            v,
            ranges_BKC6D,
            rotated_by,
            k8_BKTD,
            v8_BKDT,
            channel_BK4D,
            length,
            blocks,
            N=block,
            D=dim,
            CHUNKS=CHUNKS,
            RUN=RUN,
            K_MOST=self.keys.most,
            V_MOST=self.values.most,
            num_warps=8,
            num_stages=2,
        )
        return k8_BKTD, v8_BKDT, channel_BK4D


def build_int8(table: Table) -> EightBit:
    """Everything in int8."""
    return EightBit(table, INT8, INT8)


def build_fp8(table: Table, *, int8: bool) -> EightBit:
    """Values and weights in FP8. Keys and queries in int8, which loses a third as much of them, where `int8` says that
    the device multiplies it fast."""
    fp8 = element(table)
    return EightBit(table, INT8 if int8 else fp8, fp8)


@functools.cache
def rotation(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[dim, dim] of 1 and -1, orthogonal: a Hadamard matrix whose rows have signs drawn once and for all, or else it
    would gather in one channel what all have in common."""
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    matrix *= 2 * torch.randint(0, 2, (dim, 1), generator=torch.Generator().manual_seed(0)) - 1
    return matrix.to(device, dtype)
