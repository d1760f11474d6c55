"""Weights of few bits that are multiplied in 16: products of them by 16-bit inputs, and their 16-bit copies.

Kernels are not specialized for the number of rows, M: another size of video compiles nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.quant import Format
from cosmos3_core.quant.formats import NF4_VALUES
from cosmos3_core.quant.numerics import Packed

from .products import DTYPES
from .tables import Launch
from .tiles import load_tile

DEQUANTIZED_ROWS = 32
SUMMED = 1024
CHUNK = tl.constexpr(128)
HALF = tl.constexpr(64)
"""A byte holds the 4-bit codes of features j and j + 64 of a chunk of 128, so that the low codes of a run of bytes are
a run of features, and the high ones another."""
UNITS = {"e2m1": 2.0**14, "e4m3": 2.0**8}
"""What the kernels' numbers of an element leave out (see `_number`)."""
NF4 = tl.constexpr(NF4_VALUES)


@dataclass(frozen=True)
class Stored:
    """A packed weight_OI as the kernels read it, filled up to a multiple of 128 input features, W.

    `codes`: uint8, [O, W/2] of 4 bits (see HALF), [O, W] of 8. `scales` [O, groups] where features share them in groups
    of `group`: a float, or the bytes of e8m0 or e4m3; `zeros` [O, groups], the codes that stand for 0. `by_row` [O]:
    fp32, multiplies a row's outputs. `order`: as that of `Packed`.
    """

    format: Format
    width: int
    group: int
    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    by_row: Tensor | None
    order: Tensor | None

    @classmethod
    def of(cls, packed: Packed) -> Stored:
        """Nothing is rounded here. Of rows with a scale each the code alone is the number that is multiplied."""
        format, (outputs, width) = packed.format, packed.shape
        spare = -width % CHUNK.value
        codes = packed.values.view(torch.uint8)  # where it lies: steps in 8 bits may read it, too
        if spare:
            codes = F.pad(codes, (0, spare * format.bits // 8))
        if format.bits == 4:
            low, high = torch.stack((codes & 15, codes >> 4), -1).view(outputs, -1, 2, HALF.value).unbind(2)
            codes = (low | high << 4).flatten(1)
        group, shared, scales, zeros = format.group, 0, None, None
        by_row = None if packed.tensor_scale is None else packed.tensor_scale.float().expand(outputs, 1)
        if not group and packed.zeros is None:
            by_row = packed.scales.float().expand(outputs, 1) * UNITS.get(format.element, 1.0)
        else:  # a run of 64 features has a whole number of scales, or one
            group = group or width + spare
            shared = group if group % HALF.value == 0 else math.gcd(group, HALF.value)
            groups = -(-(width + spare) // shared)
            scales, zeros = (
                _by_group(part, outputs, group // shared, groups) for part in (packed.scales, packed.zeros)
            )
        return cls(
            format,
            width,
            shared,
            codes.contiguous(),
            scales,
            zeros,
            None if by_row is None else by_row.flatten().contiguous(),
            packed.order,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        names = ("codes", "scales", "zeros", "by_row", "order")
        return {name: held for name in names if (held := getattr(self, name)) is not None}


def _by_group(part: Tensor | None, outputs: int, times: int, groups: int) -> Tensor | None:
    """What groups share as [O, groups], each so many times, and zeros behind them; numbers of 8 bits as bytes."""
    if part is None:
        return None
    bits = part.view(torch.uint8) if part.dtype.itemsize == 1 else part
    bits = bits.repeat_interleave(outputs // len(bits), 0).repeat_interleave(times, 1)
    return F.pad(bits, (0, groups - bits.shape[1])).contiguous()


@triton.jit
def _number(code, ELEMENT: tl.constexpr):
    """What a code (int32) stands for, in fp32; of e2m1 2^-14 of it, of e4m3 2^-8."""
    if ELEMENT == "uint4":
        number = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0  # 2^23 + code, less 2^23
    elif ELEMENT == "int4":
        number = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    elif ELEMENT == "int8":
        number = ((code ^ 128) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0
    elif ELEMENT == "nf4":
        number = tl.full(code.shape, NF4[0], tl.float32)
        for i in tl.static_range(1, 16):
            number = tl.where(code == i, NF4[i], number)
    else:  # sign, exponent and mantissa where float16 has them, whose bias is 15, not 1 or 7
        if ELEMENT == "e2m1":
            bits = ((code & 8) << 12) | ((code & 7) << 9)
        elif ELEMENT == "e4m3":
            bits = ((code & 128) << 8) | ((code & 127) << 7)
        else:
            bits = code << 8
        number = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return number


@triton.jit
def _factor(scale, ELEMENT: tl.constexpr, SCALE: tl.constexpr):
    """A stored scale as fp32, times what `_number` leaves out."""
    if SCALE == "e8m0":
        factor = (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    elif SCALE == "e4m3":  # where float16 has it: 2^-8 of the number
        factor = (scale.to(tl.int16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        factor = scale.to(tl.float32)
    if ELEMENT == "e2m1":
        factor *= 16384.0
    elif ELEMENT == "e4m3":
        factor *= 256.0
    return factor


@triton.jit
def _half(
    code, scales_ptr, zeros_ptr, rows, k, groups, GROUP: tl.constexpr, ELEMENT: tl.constexpr, SCALE: tl.constexpr
):  # fmt: skip
    """The numbers [rows, 64] in fp32 that the codes from feature k on stand for, without `by_row`."""
    number = _number(code, ELEMENT)
    if scales_ptr is not None:
        SHARED: tl.constexpr = GROUP if GROUP < HALF else HALF
        BLOCKS: tl.constexpr = HALF // SHARED
        at = rows[:, None] * groups + k // GROUP + tl.arange(0, BLOCKS)[None, :]
        number = number.reshape(code.shape[0], BLOCKS, SHARED)
        if zeros_ptr is not None:
            number -= tl.load(zeros_ptr + at).to(tl.float32)[:, :, None]
        number *= _factor(tl.load(scales_ptr + at), ELEMENT, SCALE)[:, :, None]
        number = number.reshape(code.shape[0], HALF)
    return number


@triton.jit
def _chunk(
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    rows,
    k,
    width,
    groups,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
):
    """The numbers of `rows` for the two halves of the chunk that begins at feature k: [rows, 64] each."""
    if BITS == 4:
        code = tl.load(codes_ptr + rows[:, None] * (width // 2) + k // 2 + tl.arange(0, HALF)[None, :]).to(tl.int32)
        low, high = code & 15, code >> 4
    else:
        at = codes_ptr + rows[:, None] * width + k + tl.arange(0, HALF)[None, :]
        low, high = tl.load(at).to(tl.int32), tl.load(at + HALF).to(tl.int32)
    first = _half(low, scales_ptr, zeros_ptr, rows, k, groups, GROUP, ELEMENT, SCALE)
    second = _half(high, scales_ptr, zeros_ptr, rows, k + HALF, groups, GROUP, ELEMENT, SCALE)
    return first, second


@triton.jit
def _store_half(w_ptr, row, columns, order_ptr, number, K):
    inside = columns < K
    if order_ptr is not None:
        columns = tl.load(order_ptr + columns, mask=inside, other=0)
    at = row[:, None] * K + columns[None, :]
    tl.store(w_ptr + at, number.to(w_ptr.dtype.element_ty), mask=inside[None, :])


@triton.jit
def _dequantize(
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    by_row_ptr,
    order_ptr,
    w_ptr,
    N,
    K,
    width,
    groups,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64) % N
    k = tl.program_id(1) * CHUNK
    low, high = _chunk(codes_ptr, scales_ptr, zeros_ptr, rows, k, width, groups, GROUP, BITS, ELEMENT, SCALE)
    if by_row_ptr is not None:
        scale = tl.load(by_row_ptr + rows)[:, None]
        low, high = low * scale, high * scale
    _store_half(w_ptr, rows, k + tl.arange(0, HALF), order_ptr, low, K)
    _store_half(w_ptr, rows, k + HALF + tl.arange(0, HALF), order_ptr, high, K)


def dequantize(weight: Stored, dtype: torch.dtype) -> Tensor:
    """weight_OI in `dtype`: `quant.numerics.unpack`, rounded once."""
    N, W = len(weight.codes), weight.codes.shape[1] * 8 // weight.format.bits
    w_OI = torch.empty(N, weight.width, dtype=dtype, device=weight.codes.device)
    _dequantize[(triton.cdiv(N, DEQUANTIZED_ROWS), W // CHUNK.value)](
        weight.codes,
        weight.scales,
        weight.zeros,
        weight.by_row,
        weight.order,
        w_OI,
        N,
        weight.width,
        W,
        **_meaning(weight),
        ROWS=DEQUANTIZED_ROWS,
        num_warps=4,
    )
    return w_OI


@triton.jit(do_not_specialize=["M"])
def _a16_mm(
    x,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    by_row_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    width,
    groups,
    stride_x,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    DTYPE: tl.constexpr,
    TMA: tl.constexpr,
):
    """y = (W xᵀ)ᵀ: the first operand of a product may come from registers, where the weights are made from codes. With
    several SPLITs y is fp32 [SPLIT, M, N], a sum over a part of the features each, for `_sum_parts`."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    m, n = tl.program_id(0) % tiles_m * BLOCK_M, tl.program_id(0) // tiles_m * BLOCK_N
    at_m, at_n = m + tl.arange(0, BLOCK_M).to(tl.int64), n + tl.arange(0, BLOCK_N)
    rows = at_n % N
    part = tl.cdiv(width // CHUNK, SPLIT) * CHUNK
    begin = tl.program_id(1) * part
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(begin, tl.minimum(begin + part, width), CHUNK):
        low, high = _chunk(codes_ptr, scales_ptr, zeros_ptr, rows, k, width, groups, GROUP, BITS, ELEMENT, SCALE)
        acc = tl.dot(low.to(DTYPE), load_tile(x, m, k, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
        acc = tl.dot(high.to(DTYPE), load_tile(x, m, k + HALF, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
    if SPLIT == 1:
        if by_row_ptr is not None:
            acc *= tl.load(by_row_ptr + rows)[:, None]
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    else:
        y_ptr += tl.program_id(1).to(tl.int64) * M * N
    inside = (at_m[None, :] < M) & (at_n[:, None] < N)
    tl.store(y_ptr + at_m[None, :] * N + at_n[:, None], acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def _sum_parts(parts_ptr, by_row_ptr, bias_ptr, y_ptr, M, N, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """The parts of `_a16_mm`, always in the same order."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    y = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        y += tl.load(parts_ptr + (part * M.to(tl.int64) + row) * N + column, mask=inside, other=0.0)
    if by_row_ptr is not None:
        y *= tl.load(by_row_ptr + column, mask=inside, other=0.0)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def a16_mm(x_MI: Tensor, weight: Stored, bias_O: Tensor | None, launch: Launch, tma: bool) -> Tensor:
    """x Wᵀ + bias as y_MO in x's dtype, bfloat16 or float16. Rows of x may lie at any distance of 16-byte multiples;
    of a weight with an `order` they are in that."""
    (M, K), N = x_MI.shape, len(weight.codes)
    y_MO = torch.empty(M, N, dtype=x_MI.dtype, device=x_MI.device)
    parts = y_MO if launch.split == 1 else torch.empty(launch.split, M, N, dtype=torch.float32, device=x_MI.device)
    _a16_mm[(triton.cdiv(M, launch.block_m) * triton.cdiv(N, launch.block_n), launch.split)](
        TensorDescriptor.from_tensor(x_MI, [launch.block_m, HALF.value]) if tma else x_MI,
        weight.codes,
        weight.scales,
        weight.zeros,
        weight.by_row,
        bias_O,
        parts,
        M,
        N,
        K,
        weight.codes.shape[1] * 8 // weight.format.bits,
        **_meaning(weight),
        stride_x=x_MI.stride(0),
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        SPLIT=launch.split,
        DTYPE=DTYPES[x_MI.dtype],
        TMA=tma,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if launch.split > 1:
        grid = (M, triton.cdiv(N, SUMMED))
        _sum_parts[grid](parts, weight.by_row, bias_O, y_MO, M, N, SPLIT=launch.split, BLOCK=SUMMED, num_warps=4)
    return y_MO


def _meaning(weight: Stored) -> dict[str, int | str]:
    """How a weight is read, as the kernels' arguments."""
    format = weight.format
    return {
        "groups": 0 if weight.scales is None else weight.scales.shape[1],
        "GROUP": weight.group,
        "BITS": format.bits,
        "ELEMENT": format.element,
        "SCALE": format.scale if format.scale in ("e8m0", "e4m3") else "float",
    }
