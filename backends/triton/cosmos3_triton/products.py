"""Matrix products in Triton: rows to 8 bits, 8 bits by 8 bits, also onto a residual, 4-bit weights by 16-bit inputs,
and, in 8 or 16 bits, a product that applies the MLP's gate.

On NVIDIA's from sm_90 on the tensor memory accelerator loads the operands, which are then handed over as tensor
descriptors; elsewhere they are pointers. Only `_rows` and `_store` know which. What they read for a row beyond the last
is not stored. Kernels are not specialized for the number of rows, M: another size of video compiles nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.quant import ELEMENTS, FORMATS, Format
from cosmos3_core.quant.numerics import Packed

from .tables import Launch, Table

VALUES = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
INT8_MOST, E4M3_MOST = (tl.constexpr(ELEMENTS[element].most) for element in VALUES)
BLOCK_VALUES = {"e4m3": torch.float8_e4m3fn, "e2m1": torch.uint8}
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ROUND = tl.constexpr(1.5 * 2**23)
"""A small number plus this is a float whose last bits are that number, rounded to nearest even."""
DEQUANTIZED_ROWS = 32
ADDING = "adding_mm_8bit"
"""What tables call the product that is added to a residual. Where they have no launch of it there is none."""
GROUP_M = 8
"""Rows of tiles that are done together, so that L2 keeps the part of the weight that they share."""
CHUNK = tl.constexpr(128)
HALF = tl.constexpr(64)
"""A byte holds the 4-bit codes of features j and j + 64 of a chunk of 128, so that the low codes of a run of bytes are
a run of features, and the high ones another."""


@triton.jit
def _rows(matrix, row, column, rows, columns, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """[BLOCK, WIDTH] at (row, column); columns beyond the last are 0."""
    if TMA:
        block = matrix.load([row, column])
    else:
        at_row = ((row + tl.arange(0, BLOCK)) % rows).to(tl.int64)
        at_column = column + tl.arange(0, WIDTH)
        at = at_row[:, None] * stride + at_column[None, :]
        block = tl.load(matrix + at, mask=at_column[None, :] < columns, other=0.0)
    return block


@triton.jit
def _store(matrix, row, column, block, rows, columns, TMA: tl.constexpr):
    if TMA:
        matrix.store([row, column], block)
    else:
        at_row = row + tl.arange(0, block.shape[0]).to(tl.int64)
        at_column = column + tl.arange(0, block.shape[1])
        inside = (at_row[:, None] < rows) & (at_column[None, :] < columns)
        tl.store(matrix + at_row[:, None] * columns + at_column[None, :], block, mask=inside)


# Rows to 8 bits ---------------------------------------------------------------------------------------------------


@triton.jit
def eight_bits(x, dtype: tl.constexpr):
    """(values in int8 or e4m3, scale) of a whole row in fp32; what is beyond its end is 0."""
    MOST: tl.constexpr = INT8_MOST if dtype == tl.int8 else E4M3_MOST
    largest = tl.maximum(tl.max(tl.abs(x), 0), 1e-30)  # a row of zeros needs a scale, too
    x = x * (MOST / largest)
    if dtype == tl.int8:
        x = x + ROUND - ROUND
    return x.to(dtype), largest / MOST


@triton.jit
def _quantize_rows(x_ptr, values_ptr, scales_ptr, stride_x, K, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + at, mask=at < K, other=0.0).to(tl.float32)
    values, scale = eight_bits(x, values_ptr.dtype.element_ty)
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


def empty_rows(x: Tensor, width: int, format: str) -> Rows:
    """As many rows as x has, of a width of their own, to be written in format "int8" or "fp8"."""
    values_MI = torch.empty(x.shape[0], width, dtype=VALUES[FORMATS[format].element], device=x.device)
    return Rows(values_MI, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device), x.dtype)


def quantize_rows(x_MI: Tensor, format: str) -> Rows:
    """The activations of formats "int8" and "fp8": one read, one write.

    Rows may lie at any distance. Equal to `quant.numerics.pack`, but for values within fp32 rounding of a tie.
    """
    x_MI, (rows, width) = dense(x_MI), x_MI.shape
    y, block = empty_rows(x_MI, width, format), triton.next_power_of_2(width)
    _quantize_rows[(rows,)](
        x_MI,
        y.values_MI,
        y.scale_M1,
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


def quantize_blocks(x_MI: Tensor, format: Format) -> tuple[Tensor, Tensor, Tensor | None]:
    """(values, scales as `swizzled` lays them out, tensor scale or None), the activations of formats "mxfp8" and
    "nvfp4". Rows may lie at any distance. Equal to `quant.numerics.pack`, but for ties."""
    rows, width = x_MI.shape
    column_tiles = triton.cdiv(width, 4 * format.group)
    padded = triton.cdiv(rows, 128) * 128
    values = torch.empty(rows, width * format.bits // 8, device=x_MI.device, dtype=BLOCK_VALUES[format.element])
    scales = torch.empty(padded * column_tiles * 4, device=x_MI.device, dtype=torch.uint8)
    tensor_scale = None
    if format.tensor_scale:
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


# 8 bits by 8 bits -------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["M"])
def _scaled_mm(
    a,
    b,
    y,
    scale_a_ptr,  # None: the operands are not scaled
    scale_b_ptr,
    bias_ptr,  # or None
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    TMA: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    DTYPE: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
):
    """ADDS: y holds a residual, which the product is added to."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        band = tile // (GROUP * tiles_n)
        height = tl.minimum(tiles_m - band * GROUP, GROUP)
        within = tile % (GROUP * tiles_n)
        m, n = (band * GROUP + within % height) * BLOCK_M, within // height * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        for k in range(0, K, BLOCK_K):
            a_mk = _rows(a, m, k, M, K, K, BLOCK_M, BLOCK_K, TMA)
            b_nk = _rows(b, n, k, N, K, K, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(a_mk, b_nk.T, acc, out_dtype=ACCUMULATOR)
        at_m, at_n = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
        result = acc.to(tl.float32)
        if scale_a_ptr is not None:
            scale_a = tl.load(scale_a_ptr + at_m, mask=at_m < M, other=0.0)
            scale_b = tl.load(scale_b_ptr + at_n, mask=at_n < N, other=0.0)
            result = result * scale_a[:, None] * scale_b[None, :]
        if bias_ptr is not None:
            result += tl.load(bias_ptr + at_n, mask=at_n < N, other=0.0).to(tl.float32)[None, :]
        left, right = result.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
        if GATED:
            _store(y, m, n // 2, (left * tl.sigmoid(left) * right).to(DTYPE), M, N // 2, TMA)
        else:  # in two halves: the tile passes through shared memory, and little of that is left beside the operands
            half = n + BLOCK_N // 2
            if ADDS:
                left += _rows(y, m, n, M, N, N, BLOCK_M, BLOCK_N // 2, TMA).to(tl.float32)
            _store(y, m, n, left.to(DTYPE), M, N, TMA)
            if ADDS:
                right += _rows(y, m, half, M, N, N, BLOCK_M, BLOCK_N // 2, TMA).to(tl.float32)
            _store(y, m, half, right.to(DTYPE), M, N, TMA)


def scaled_mm(
    a_MI: Tensor,
    b_OI: Tensor,
    scale_a_M1: Tensor | None,
    scale_b_O1: Tensor | None,
    bias_O: Tensor | None,
    dtype: torch.dtype,
    table: Table,
    *,
    gated: bool = False,
    residual_MO: Tensor | None = None,
) -> Tensor:
    """(a bᵀ) scale_a scale_bᵀ + bias as y_MO in `dtype`, of contiguous int8 or float8_e4m3fn, I a multiple of 16, O
    of 8. int8 is summed exactly; e4m3 as fast as the hardware can. `gated`: the outputs are in `gated_order`, and
    silu(gate)·up is returned, O / 2 wide and rounded once; of 16-bit operands, too, without scales. With a residual
    the sum is returned in its place, rounded once."""
    (M, K), N = a_MI.shape, b_OI.shape[0]
    run = table.launch(gated_kernel(a_MI) if gated else "scaled_mm" if residual_MO is None else ADDING, M)
    y_MO = (
        torch.empty(M, N // 2 if gated else N, dtype=dtype, device=a_MI.device) if residual_MO is None else residual_MO
    )
    operands = (
        (a_MI, [run.block_m, run.block_k]),
        (b_OI, [run.block_n, run.block_k]),
        (y_MO, [run.block_m, run.block_n // 2]),
    )
    programs = triton.cdiv(M, run.block_m) * triton.cdiv(N, run.block_n)
    if run.persistent:
        programs = min(programs, processors(a_MI.device.index))
    _scaled_mm[(programs,)](
        *(TensorDescriptor.from_tensor(*operand) if table.tma else operand[0] for operand in operands),
        scale_a_M1,
        scale_b_O1,
        bias_O,
        M,
        N,
        K,
        BLOCK_M=run.block_m,
        BLOCK_N=run.block_n,
        BLOCK_K=run.block_k,
        GROUP=GROUP_M,
        TMA=table.tma,
        ACCUMULATOR=tl.int32 if a_MI.dtype == torch.int8 else tl.float32,
        DTYPE=DTYPES[dtype],
        GATED=gated,
        ADDS=residual_MO is not None,
        num_warps=run.warps,
        num_stages=run.stages,
    )
    return y_MO


@functools.cache
def processors(device: int) -> int:
    """How many multiprocessors the device of that number has."""
    return triton.runtime.driver.active.utils.get_device_properties(device)["multiprocessor_count"]


def gated_kernel(values: Tensor) -> str:
    """What tables call a product of such numbers that applies the gate."""
    return f"gated_mm_{8 * values.element_size()}bit"


def gated_order(weight_OI: Tensor, table: Table) -> Tensor | None:
    """Which of the outputs [gate | up] of a packed weight comes where, so that every tile has a run of gates and the
    ups that belong to them; None where the kernel cannot or need not apply the gate."""
    outputs, run = weight_OI.shape[0], table.find(gated_kernel(weight_OI))
    if run is None or outputs % run.block_n:
        return None
    return torch.arange(outputs, device=weight_OI.device).view(2, -1, run.block_n // 2).transpose(0, 1).flatten()


# 4-bit weights by 16-bit inputs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """A packed 4-bit weight as the kernels read it. `codes` [O, I/2]: see HALF. `scales` [O, I/group]: fp32, or the
    bytes of e8m0 or e4m3."""

    format: Format
    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor | None

    @classmethod
    def of(cls, packed: Packed) -> Paired:
        """Raises ValueError where the input features are no multiple of 128."""
        if packed.values.shape[1] * 2 % CHUNK.value:
            raise ValueError(f"4-bit weights need input features in multiples of 128, got {packed.values.shape[1] * 2}")
        codes = torch.stack((packed.values & 15, packed.values >> 4), dim=-1)
        low, high = codes.view(len(codes), -1, 2, HALF.value).unbind(2)
        scales = packed.scales if packed.format.scale == "fp32" else packed.scales.view(torch.uint8)
        return cls(packed.format, (low | high << 4).flatten(1), scales, packed.tensor_scale)


@triton.jit
def _factor(scale, tensor_scale, SCALE: tl.constexpr):
    """A stored scale as fp32; that of e2m1 elements times 2^14, which `_number` leaves out."""
    if SCALE == "e8m0":
        factor = (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True) * 16384.0
    elif SCALE == "e4m3":  # where float16 has it, whose bias is 15, not 7: 2^-8 of the number
        factor = (scale.to(tl.int16) << 7).to(tl.float16, bitcast=True).to(tl.float32) * (4194304.0 * tensor_scale)
    else:
        factor = scale
    return factor


@triton.jit
def _number(code, ELEMENT: tl.constexpr):
    """What a 4-bit code (int32) stands for, in fp32; of e2m1 2^-14 of it."""
    if ELEMENT == "int4":
        number = (code | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0  # 2^23 + code, less 2^23 + 8
    else:  # sign, exponent and mantissa where float16 has them, whose bias is 15, not 1
        bits = ((code & 8) << 12) | ((code & 7) << 9)
        number = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return number


@triton.jit
def _half(
    code,
    scales_ptr,
    tensor_scale,
    rows,
    k,
    K,
    GROUP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The weights [rows, 64] that the codes from feature k on stand for."""
    SHARED: tl.constexpr = GROUP if GROUP < HALF else HALF
    BLOCKS: tl.constexpr = HALF // SHARED
    at = rows[:, None] * (K // GROUP) + k // GROUP + tl.arange(0, BLOCKS)[None, :]
    factor = _factor(tl.load(scales_ptr + at), tensor_scale, SCALE)
    number = _number(code, ELEMENT).reshape(code.shape[0], BLOCKS, SHARED) * factor[:, :, None]
    return number.reshape(code.shape[0], HALF).to(DTYPE)


@triton.jit
def _chunk(
    codes_ptr,
    scales_ptr,
    tensor_scale,
    rows,
    k,
    K,
    GROUP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The weights of `rows` for the two halves of the chunk that begins at feature k: [rows, 64] each."""
    code = tl.load(codes_ptr + rows[:, None] * (K // 2) + k // 2 + tl.arange(0, HALF)[None, :]).to(tl.int32)
    low = _half(code & 15, scales_ptr, tensor_scale, rows, k, K, GROUP, ELEMENT, SCALE, DTYPE)
    high = _half(code >> 4, scales_ptr, tensor_scale, rows, k + HALF, K, GROUP, ELEMENT, SCALE, DTYPE)
    return low, high


@triton.jit
def _dequantize(
    codes_ptr,
    scales_ptr,
    tensor_scale_ptr,
    w_ptr,
    N,
    K,
    GROUP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64) % N
    k = tl.program_id(1) * CHUNK
    tensor_scale = 1.0 if tensor_scale_ptr is None else tl.load(tensor_scale_ptr)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    low, high = _chunk(codes_ptr, scales_ptr, tensor_scale, rows, k, K, GROUP, ELEMENT, SCALE, dtype)
    at = rows[:, None] * K + k + tl.arange(0, HALF)[None, :]
    tl.store(w_ptr + at, low)
    tl.store(w_ptr + at + HALF, high)


def dequantize(weight: Paired, dtype: torch.dtype) -> Tensor:
    """weight_OI in `dtype`: `quant.numerics.unpack`, rounded once."""
    N, K = weight.codes.shape[0], 2 * weight.codes.shape[1]
    w_OI = torch.empty(N, K, dtype=dtype, device=weight.codes.device)
    _dequantize[(triton.cdiv(N, DEQUANTIZED_ROWS), K // CHUNK.value)](
        weight.codes,
        weight.scales,
        weight.tensor_scale,
        w_OI,
        N,
        K,
        **_meaning(weight.format),
        ROWS=DEQUANTIZED_ROWS,
        num_warps=4,
    )
    return w_OI


@triton.jit(do_not_specialize=["M"])
def _a16_mm(
    x,
    codes_ptr,
    scales_ptr,
    tensor_scale_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    stride_x,
    GROUP: tl.constexpr,
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """y = (W xᵀ)ᵀ: the first operand of a product may come from registers, where the weights are made from codes."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    m, n = tl.program_id(0) % tiles_m * BLOCK_M, tl.program_id(0) // tiles_m * BLOCK_N
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    at_m, at_n = m + tl.arange(0, BLOCK_M).to(tl.int64), n + tl.arange(0, BLOCK_N)
    rows = at_n % N
    tensor_scale = 1.0 if tensor_scale_ptr is None else tl.load(tensor_scale_ptr)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for k in range(0, K, CHUNK):
        low, high = _chunk(codes_ptr, scales_ptr, tensor_scale, rows, k, K, GROUP, ELEMENT, SCALE, dtype)
        acc = tl.dot(low, _rows(x, m, k, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
        acc = tl.dot(high, _rows(x, m, k + HALF, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    inside = (at_m[None, :] < M) & (at_n[:, None] < N)
    tl.store(y_ptr + at_m[None, :] * N + at_n[:, None], acc.to(dtype), mask=inside)


def a16_mm(x_MI: Tensor, weight: Paired, bias_O: Tensor | None, run: Launch, tma: bool) -> Tensor:
    """x Wᵀ + bias as y_MO in x's dtype, bfloat16 or float16. Rows of x may lie at any distance of 16-byte multiples."""
    (M, K), N = x_MI.shape, weight.codes.shape[0]
    y_MO = torch.empty(M, N, dtype=x_MI.dtype, device=x_MI.device)
    _a16_mm[(triton.cdiv(M, run.block_m) * triton.cdiv(N, run.block_n),)](
        TensorDescriptor.from_tensor(x_MI, [run.block_m, HALF.value]) if tma else x_MI,
        weight.codes,
        weight.scales,
        weight.tensor_scale,
        bias_O,
        y_MO,
        M,
        N,
        K,
        x_MI.stride(0),
        **_meaning(weight.format),
        BLOCK_M=run.block_m,
        BLOCK_N=run.block_n,
        TMA=tma,
        num_warps=run.warps,
        num_stages=run.stages,
    )
    return y_MO


def _meaning(format: Format) -> dict[str, int | str]:
    """A 4-bit format as the kernels' constants."""
    return {"GROUP": format.group, "ELEMENT": format.element, "SCALE": format.scale}
