"""Activations in the formats that products take: rows in int8 or e4m3, runs of 128 in e4m3, blocks in MXFP8 and NVFP4.

Kernels are not specialized for the number of rows, M: another size of video compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from cosmos3_core.quant import ELEMENTS, FORMATS, Format

from .tables import Table
from .targets import FNUZ

INT8_MOST, E4M3_MOST = (tl.constexpr(ELEMENTS[element].most) for element in ("int8", "e4m3"))
FNUZ_MOST = tl.constexpr(E4M3_MOST.value / 2)
"""Not e4m3fnuz's own largest, 240: up to here the codes are those of e4m3, each for half of what it means there."""
BLOCK_VALUES = {"e4m3": torch.float8_e4m3fn, "e2m1": torch.uint8}
ROUND = tl.constexpr(1.5 * 2**23)
"""A small number plus this is a float whose last bits are that number, rounded to nearest even."""


@dataclass(frozen=True)
class Element:
    """A number of 8 bits, for torch and for Triton, and the largest that is used."""

    torch: torch.dtype
    triton: tl.dtype
    most: float


INT8 = Element(torch.int8, tl.int8, INT8_MOST.value)
E4M3 = Element(torch.float8_e4m3fn, tl.float8e4nv, E4M3_MOST.value)
E4M3_FNUZ = Element(torch.float8_e4m3fnuz, tl.float8e4b8, FNUZ_MOST.value)


def element(table: Table) -> Element:
    """The numbers of e4m3 that the architecture multiplies."""
    return E4M3_FNUZ if table.target and table.target.fp8 == FNUZ else E4M3


# Rows to 8 bits ---------------------------------------------------------------------------------------------------


@triton.jit
def eight_bits(x, dtype: tl.constexpr, given_ptr):
    """(values in int8 or e4m3, scale) of a whole row in fp32; what is beyond its end is 0. The scale is the row's own,
    or where one is `given` that: then what is larger saturates, and a NaN makes the scale NaN."""
    MOST: tl.constexpr = INT8_MOST if dtype == tl.int8 else (FNUZ_MOST if dtype == tl.float8e4b8 else E4M3_MOST)
    if given_ptr is None:
        largest = tl.maximum(tl.max(tl.abs(x), 0), 1e-30)  # a row of zeros needs a scale, too
        x = x * (MOST / largest)
        scale = largest / MOST
    else:
        given = tl.load(given_ptr)
        scale = tl.where(tl.max((x != x).to(tl.int32), 0) == 0, given, float("nan"))
        x = tl.clamp(x / given, -MOST, MOST)
    if dtype == tl.int8:
        x = x + ROUND - ROUND
    return x.to(dtype), scale


@triton.jit
def _quantize_rows(x_ptr, values_ptr, scales_ptr, given_ptr, stride_x, K, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + at, mask=at < K, other=0.0).to(tl.float32)
    values, scale = eight_bits(x, values_ptr.dtype.element_ty, given_ptr)
    tl.store(values_ptr + row * K + at, values, mask=at < K)
    tl.store(scales_ptr + row, scale)


def dense(x_MI: Tensor) -> Tensor:
    """x with the elements of a row side by side, copied only where they are not."""
    return x_MI if x_MI.stride(1) == 1 else x_MI.contiguous()


@dataclass(frozen=True)
class Rows:
    """Rows in int8 or e4m3: x_MI = values_MI · scale_M1, with fp32 scales. `dtype` is what x had, and what a product of
    it will have."""

    values_MI: Tensor
    scale_M1: Tensor
    dtype: torch.dtype


def empty_rows(x: Tensor, width: int, format: str, fp8: torch.dtype = torch.float8_e4m3fn) -> Rows:
    """As many rows as x has, of a width of their own, to be written in a format with elements of int8, or of e4m3 as
    the device has it, `fp8`."""
    dtype = torch.int8 if FORMATS[format].element == "int8" else fp8
    values_MI = torch.empty(x.shape[0], width, dtype=dtype, device=x.device)
    return Rows(values_MI, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device), x.dtype)


def quantize_rows(
    x_MI: Tensor, format: str, given: Tensor | None = None, fp8: torch.dtype = torch.float8_e4m3fn
) -> Rows:
    """The activations of formats "int8" and "fp8", or with a `given` scale, fp32 of one element, those of "int8_static"
    and "fp8_static": one read, one write. In float8_e4m3fnuz a given scale is twice the format's.

    Rows may lie at any distance. Equal to `quant.numerics.pack`, but for values within fp32 rounding of a tie; by a
    given scale a NaN makes its own row NaN, not all of them.
    """
    x_MI, (rows, width) = dense(x_MI), x_MI.shape
    y, block = empty_rows(x_MI, width, format, fp8), triton.next_power_of_2(width)
    _quantize_rows[(rows,)](
        x_MI,
        y.values_MI,
        y.scale_M1,
        given,
        x_MI.stride(0),
        width,
        BLOCK=block,
        num_warps=min(max(block // 1024, 1), 16),
    )
    return y


# Blocks of rows ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["M", "written"])
def _quantize_tiles(
    x_ptr, values_ptr, scales_ptr, M, written, K, stride_x, ROWS: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """ROWS runs of GROUP elements, each with its scale; zeros from row M to row `written`."""
    row, block = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    at = row.to(tl.int64)[:, None] * stride_x + (block * GROUP + tl.arange(0, GROUP))[None, :]
    x = tl.load(x_ptr + at, (row < M)[:, None], other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-30) / E4M3_MOST  # a run of zeros needs a scale, too
    values = (x / scale[:, None]).to(values_ptr.dtype.element_ty)
    at = row.to(tl.int64)[:, None] * K + (block * GROUP + tl.arange(0, GROUP))[None, :]
    tl.store(values_ptr + at, values, (row < written)[:, None])
    tl.store(scales_ptr + block * written + row, scale, row < written)


def quantize_tiles(x_MI: Tensor, format: Format) -> tuple[Tensor, Tensor, None]:
    """(values, scales, None), the activations of format "fp8_block". Rows may lie at any distance; they are filled up
    to a multiple of 16, and the scales of a column of tiles follow each other, as cuBLAS asks for. Equal to
    `quant.numerics.pack`, but for values within fp32 rounding of a tie."""
    x_MI, (rows, width) = dense(x_MI), x_MI.shape
    written, blocks, together = triton.cdiv(rows, 16) * 16, width // format.group, 32
    values_MI = torch.empty(written, width, dtype=BLOCK_VALUES[format.element], device=x_MI.device)
    scales = torch.empty(blocks, written, dtype=torch.float32, device=x_MI.device)
    _quantize_tiles[triton.cdiv(written, together), blocks](
        x_MI,
        values_MI,
        scales,
        rows,
        written,
        width,
        x_MI.stride(0),
        ROWS=together,
        GROUP=format.group,
        num_warps=4,
    )
    return values_MI, scales.t(), None


@triton.jit
def _e2m1(x):
    """Codes (int32) of fp32 numbers, ties to even: steps are 0.5 below 2, 1 below 4, then 2."""
    magnitude = tl.minimum(tl.abs(x), 6.0)
    steps = tl.where(magnitude < 2, magnitude * 2, tl.where(magnitude < 4, magnitude, magnitude * 0.5))
    below = tl.where(magnitude < 2, 0, tl.where(magnitude < 4, 2, 4))
    code = (steps + ROUND - ROUND).to(tl.int32) + below
    return code | tl.where(x < 0, 8, 0)


@triton.jit(do_not_specialize=["M"])
def _quantize_blocks(
    x_ptr,
    values_ptr,
    scales_ptr,
    tensor_scale_ptr,
    M,
    K,
    stride_x,
    column_tiles,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
):
    BLOCKS: tl.constexpr = WIDTH // GROUP
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    long_row = row.to(tl.int64)
    inside = (row[:, None] < M) & (at[None, :] < K)
    x = tl.load(x_ptr + long_row[:, None] * stride_x + at[None, :], mask=inside, other=0.0).to(tl.float32)
    x = x.reshape(ROWS, BLOCKS, GROUP)
    largest = tl.max(tl.abs(x), 2)
    if SCALE == "e8m0":
        # fp32's own exponent is floor(log2) + 127; e4m3's largest power of two is 2^8.
        byte = tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 8, 0)
        x = tl.clamp(x * ((254 - byte) << 23).to(tl.float32, bitcast=True)[:, :, None], -448.0, 448.0)
        values = x.to(tl.float8e4nv).reshape(ROWS, WIDTH)
        tl.store(values_ptr + long_row[:, None] * K + at[None, :], values, mask=inside)
    else:
        tensor_scale = tl.load(tensor_scale_ptr)
        scale = tl.minimum(largest / 6.0 / tensor_scale, 448.0).to(tl.float8e4nv)
        factor = scale.to(tl.float32) * tensor_scale
        x = x * (1.0 / tl.where(factor == 0, float("inf"), factor))[:, :, None]
        low, high = _e2m1(x).reshape(ROWS, WIDTH // 2, 2).split()
        at_byte = tl.program_id(1) * (WIDTH // 2) + tl.arange(0, WIDTH // 2)
        inside = (row[:, None] < M) & (at_byte[None, :] < K // 2)
        pairs = (low | high << 4).to(tl.uint8)
        tl.store(values_ptr + long_row[:, None] * (K // 2) + at_byte[None, :], pairs, mask=inside)
        byte = scale.to(tl.uint8, bitcast=True).to(tl.int32)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    tile = (long_row // 128 * column_tiles)[:, None] + block[None, :] // 4
    place = 512 * tile + (16 * (row % 32) + 4 * (row % 128 // 32))[:, None] + block[None, :] % 4
    tl.store(scales_ptr + place, byte.to(tl.uint8), mask=(block < 4 * column_tiles)[None, :])


def quantize_blocks(x_MI: Tensor, format: Format, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(values, scales as `swizzled` lays them out, tensor scale or None), the activations of formats "mxfp8" and
    "nvfp4", the latter's tensor scale its own or `given`. Rows may lie at any distance. Equal to `quant.numerics.pack`,
    but for ties."""
    rows, width = x_MI.shape
    column_tiles = triton.cdiv(width, 4 * format.group)
    padded = triton.cdiv(rows, 128) * 128
    values = torch.empty(rows, width * format.bits // 8, device=x_MI.device, dtype=BLOCK_VALUES[format.element])
    scales = torch.empty(padded * column_tiles * 4, device=x_MI.device, dtype=torch.uint8)
    tensor_scale = given
    if format.tensor_scale and given is None:
        least, most = x_MI.aminmax()
        most = torch.maximum(-least, most).float() / (ELEMENTS[format.element].most * ELEMENTS[format.scale].most)
        tensor_scale = torch.where(most == 0, 1.0, most)
    tile = (32, 256)
    _quantize_blocks[(padded // tile[0], triton.cdiv(width, tile[1]))](
        x_MI,
        values,
        scales,
        tensor_scale,
        rows,
        width,
        x_MI.stride(0),
        column_tiles,
        ROWS=tile[0],
        WIDTH=tile[1],
        GROUP=format.group,
        SCALE=format.scale,
        num_warps=4,
    )
    return values, scales, tensor_scale


def swizzled(scales: Tensor) -> Tensor:
    """Block scales [rows, blocks], bytes, in cuBLAS's "1D block scaling factors layout": tiles of 128 rows by 4 blocks,
    row by row of tiles; in a tile, scale (r, b) lies at 16 (r % 32) + 4 (r // 32) + b. Filled up with zeros."""
    rows, blocks = scales.shape
    padded = F.pad(scales, (0, -blocks % 4, 0, -rows % 128))
    tiles = padded.view(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().flatten()
