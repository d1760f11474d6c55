"""The row-wise ops in Triton: what eager torch does in several passes over device memory, in one.

All of them move bytes and hardly compute: a program reads and writes each element once, in 16-byte accesses where it
can, and computes in fp32. Row numbers are 64 bits wide, because a video's activations pass 2**31 elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cosmos3_core.contract import Gate, NormRope, NormSilu, RmsNorm

from .activations import Rows, dense, eight_bits, element, empty_rows
from .tables import Table


@triton.jit
def _store_result(y_ptr, scales_ptr, row, y, inside, dtype: tl.constexpr):
    """In the dtype; with scales_ptr the row is whole, and quantized after it was rounded."""
    y = y.to(dtype)
    if scales_ptr is not None:
        y, scale = eight_bits(y.to(tl.float32), y_ptr.dtype.element_ty, None)
        tl.store(scales_ptr + row, scale)
    tl.store(y_ptr, y, inside)


@triton.jit
def _rms_norm(
    x_ptr,
    residual_ptr,  # None: the row is x itself, and z is not written
    weight_ptr,
    y_ptr,
    scales_ptr,  # None: y is not quantized
    z_ptr,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WEIGHT_FP32: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    z = tl.load(x_ptr + row * x_stride + column, inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        z += tl.load(residual_ptr + row * residual_stride + column, inside, other=0.0).to(tl.float32)
        rounded = z.to(dtype)
        tl.store(z_ptr + row * WIDTH + column, rounded, inside)
        z = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + column, inside, other=0.0).to(tl.float32)
    y = z * tl.rsqrt(tl.sum(z * z) / WIDTH + eps)
    if not WEIGHT_FP32:
        y = y.to(dtype).to(tl.float32)
    _store_result(y_ptr + row * WIDTH + column, scales_ptr, row, y * weight, inside, dtype)


@triton.jit
def _norm_rope_heads(
    x_ptr,
    weight_ptr,  # None: the heads are rotated only
    y_ptr,
    row,
    x_stride,
    cos_1,
    cos_2,
    sin_1,
    sin_2,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WEIGHT_FP32: tl.constexpr,
):
    """One token of one projection."""
    head = tl.arange(0, triton.next_power_of_2(HEADS))[:, None]
    column = tl.arange(0, HALF)[None, :]
    at = head * (2 * HALF) + column
    inside = head < HEADS
    x_ptr += row * x_stride + at
    x_1 = tl.load(x_ptr, inside, other=0.0).to(tl.float32)
    x_2 = tl.load(x_ptr + HALF, inside, other=0.0).to(tl.float32)
    dtype = y_ptr.dtype.element_ty
    if weight_ptr is not None:
        mean = (tl.sum(x_1 * x_1, 1) + tl.sum(x_2 * x_2, 1)) / (2 * HALF)
        scale = tl.rsqrt(mean + eps)[:, None]
        x_1 *= scale
        x_2 *= scale
        if not WEIGHT_FP32:
            x_1 = x_1.to(dtype).to(tl.float32)
            x_2 = x_2.to(dtype).to(tl.float32)
        x_1 *= tl.load(weight_ptr + column).to(tl.float32)
        x_2 *= tl.load(weight_ptr + HALF + column).to(tl.float32)
    y_ptr += row * (HEADS * 2 * HALF) + at
    tl.store(y_ptr, (x_1 * cos_1 - x_2 * sin_1).to(dtype), inside)
    tl.store(y_ptr + HALF, (x_2 * cos_2 + x_1 * sin_2).to(dtype), inside)


@triton.jit
def _norm_rope(
    projections,  # of (x_ptr, weight_ptr, y_ptr, x_stride)
    cos_ptr,
    sin_ptr,
    table_rows,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WEIGHT_FP32: tl.constexpr,
):
    """One token of every projection: its angles are read once."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF)[None, :]
    cos_ptr += row % table_rows * (2 * HALF) + column
    sin_ptr += row % table_rows * (2 * HALF) + column
    cos_1, cos_2 = tl.load(cos_ptr).to(tl.float32), tl.load(cos_ptr + HALF).to(tl.float32)
    sin_1, sin_2 = tl.load(sin_ptr).to(tl.float32), tl.load(sin_ptr + HALF).to(tl.float32)
    for i in tl.static_range(len(HEADS)):
        x_ptr, weight_ptr, y_ptr, x_stride = projections[i]
        _norm_rope_heads(
            x_ptr, weight_ptr, y_ptr, row, x_stride, cos_1, cos_2, sin_1, sin_2, eps, HEADS[i], HALF, WEIGHT_FP32
        )


@triton.jit
def _gate(
    x_ptr,
    y_ptr,
    scales_ptr,  # None: y is not quantized
    x_stride,
    y_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
):
    BLOCKS: tl.constexpr = triton.cdiv(WIDTH, BLOCK)
    row = (tl.program_id(0) // BLOCKS).to(tl.int64)
    column = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    x_ptr += row * x_stride + column
    x = tl.load(x_ptr, inside, other=0.0).to(tl.float32)
    if SILU:
        y = x * tl.sigmoid(x) * tl.load(x_ptr + WIDTH, inside, other=0.0).to(tl.float32)
    else:
        y = tl.where(x < 0, 0.0, x * x)  # of NaN: NaN
    _store_result(y_ptr + row * y_stride + column, scales_ptr, row, y, inside, x_ptr.dtype.element_ty)


@triton.jit
def _norm_silu(
    x_ptr,
    weight_ptr,
    bias_ptr,  # or None
    residual_ptr,  # or None
    y_ptr,
    rows,
    x_stride,
    residual_stride,
    y_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)
    inside = (row < rows) & (column < WIDTH)[None, :]
    x_ptr += row * x_stride + column[None, :]
    x = tl.load(x_ptr, inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, column < WIDTH, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + column, column < WIDTH, other=0.0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        x += tl.load(residual_ptr + row * residual_stride + column[None, :], inside, other=0.0).to(tl.float32)
        tl.store(x_ptr, x.to(x_ptr.dtype.element_ty), inside)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
    y = x * (scale / length)[:, None] * weight[None, :]
    tl.store(y_ptr + row * y_stride + column[None, :], (y * tl.sigmoid(y)).to(y_ptr.dtype.element_ty), inside)


def build_rms_norm(table: Table) -> RmsNorm:
    """The sum and its norm in one pass."""
    rows = norm_rows(table)

    def rms_norm(
        x_MI: Tensor, weight_I: Tensor, *, eps: float, residual_MI: Tensor | None = None, weight_fp32: bool = False
    ) -> tuple[Tensor, Tensor]:
        return rows(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32)

    return rms_norm


def norm_rows(table: Table) -> Callable[..., tuple[Any, Tensor]]:
    """As contract.RmsNorm. With a `format` the first result is `Rows` in that format, with the same bits as if it was
    first rounded to the dtype and its rows were quantized then."""
    warps, fp8 = table.launch("rms_norm").warps, element(table).torch

    def rms_norm(
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        eps: float,
        residual_MI: Tensor | None = None,
        weight_fp32: bool = False,
        format: str = "none",
    ) -> tuple[Tensor | Rows, Tensor]:
        rows, width = x_MI.shape
        x_MI = dense(x_MI)
        y = x_MI.new_empty(rows, width) if format == "none" else empty_rows(x_MI, width, format, fp8)
        if residual_MI is None:
            residual, z_MI, residual_stride = None, x_MI, 0
        else:
            residual, z_MI = dense(residual_MI), x_MI.new_empty(rows, width)
            residual_stride = residual.stride(0)
        _rms_norm[(rows,)](
            x_MI,
            residual,
            weight_I,
            *_parts(y),
            z_MI,
            x_MI.stride(0),
            residual_stride,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            WEIGHT_FP32=weight_fp32,
            num_warps=warps,
        )
        return y, z_MI

    return rms_norm


def build_norm_rope(table: Table) -> NormRope:
    """All projections in one launch, read where the fused projection left them; results are contiguous."""
    warps = table.launch("norm_rope").warps

    def norm_rope(
        heads: Sequence[tuple[Tensor, Tensor | None]],
        cos_BSD: Tensor,
        sin_BSD: Tensor,
        *,
        eps: float,
        weight_fp32: bool = False,
    ) -> list[Tensor]:
        (batch, tokens, _, width), cos, sin = heads[0][0].shape, cos_BSD.contiguous(), sin_BSD.contiguous()
        out, projections = [], []
        for x_BSHD, weight_D in heads:
            x, stride = _tokens(x_BSHD)
            out.append(x.new_empty(x.shape))
            projections.append((x, weight_D, out[-1], stride))
        _norm_rope[(batch * tokens,)](
            tuple(projections),
            cos,
            sin,
            cos.shape[0] * tokens,
            eps,
            HEADS=tuple(x_BSHD.shape[2] for x_BSHD, _ in heads),
            HALF=width // 2,
            WEIGHT_FP32=weight_fp32,
            num_warps=warps,
        )
        return out

    return norm_rope


def build_gate(table: Table) -> Gate:
    """One pass, in place."""
    rows = gate_rows(table)

    def gate(x_MI: Tensor, *, activation: str) -> Tensor:
        return rows(x_MI, activation=activation)

    return gate


def gate_rows(table: Table) -> Callable[..., Any]:
    """As contract.Gate. With a `format` the result is `Rows` in that format. Without one it is written in place, to the
    first half of x, or to all of it: to write it elsewhere is 1% faster, and takes half the memory of the largest
    tensor again. A program that quantizes has a whole row, because the scale is that of its largest element."""
    plain, whole, fp8 = table.launch("gate"), table.launch("gate_rows"), element(table).torch

    def gate(x_MI: Tensor, *, activation: str, format: str = "none") -> Tensor | Rows:
        silu = activation == "silu"
        rows, width = x_MI.shape[0], x_MI.shape[1] // (2 if silu else 1)
        x_MI, block = dense(x_MI), triton.next_power_of_2(width)
        y: Tensor | Rows
        if format == "none":
            y, block, warps = x_MI[:, :width], min(plain.elements, block), plain.warps
        else:
            y, warps = empty_rows(x_MI, width, format, fp8), whole.warps
        y_MI, scale_M1 = _parts(y)
        _gate[(rows * triton.cdiv(width, block),)](
            x_MI,
            y_MI,
            scale_M1,
            x_MI.stride(0),
            y_MI.stride(0),
            WIDTH=width,
            BLOCK=block,
            SILU=silu,
            num_warps=warps,
        )
        return y

    return gate


def build_norm_silu(table: Table) -> NormSilu:
    """Several rows in a program: the VAE's are short and many."""
    launch = table.launch("norm_silu")

    def norm_silu(
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        bias_I: Tensor | None = None,
        residual_MI: Tensor | None = None,
        out_MI: Tensor | None = None,
    ) -> Tensor:
        rows, width = x_MI.shape
        y_MI = x_MI.new_empty(rows, width) if out_MI is None else out_MI
        if residual_MI is None:
            x_MI = dense(x_MI)
        elif x_MI.stride(1) != 1:
            raise ValueError(f"the sum takes x's place, whose rows have to be dense; its strides are {x_MI.stride()}")
        else:
            residual_MI = dense(residual_MI)
        block = triton.next_power_of_2(width)
        together = max(1, launch.elements // block)
        _norm_silu[(triton.cdiv(rows, together),)](
            x_MI,
            weight_I,
            bias_I,
            residual_MI,
            y_MI,
            rows,
            x_MI.stride(0),
            0 if residual_MI is None else residual_MI.stride(0),
            y_MI.stride(0),
            width**0.5,
            WIDTH=width,
            BLOCK=block,
            ROWS=together,
            num_warps=launch.warps,
        )
        return y_MI

    return norm_silu


def _parts(y: Tensor | Rows) -> tuple[Tensor, Tensor | None]:
    """What a kernel writes: the values, and their scales if they have any."""
    return (y.values_MI, y.scale_M1) if isinstance(y, Rows) else (y, None)


def _tokens(x_BSHD: Tensor) -> tuple[Tensor, int]:
    """x and the distance from a token to the next, the same across the batch; copied only where it is not."""
    batch, tokens, heads, width = x_BSHD.shape
    by_batch, by_token, *inner = x_BSHD.stride()
    if inner == [width, 1] and (batch == 1 or by_batch == tokens * by_token):
        return x_BSHD, by_token
    return x_BSHD.contiguous(), heads * width
