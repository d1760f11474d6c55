"""4-bit weights: products of them by 16-bit inputs, and their 16-bit copies.

Kernels are not specialized for the number of rows, M: another size of video compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cosmos3_core.quant import Format
from cosmos3_core.quant.numerics import Packed

from .tables import Launch
from .tiles import load_tile

DEQUANTIZED_ROWS = 32
CHUNK = tl.constexpr(128)
HALF = tl.constexpr(64)
"""A byte holds the 4-bit codes of features j and j + 64 of a chunk of 128, so that the low codes of a run of bytes are
a run of features, and the high ones another."""


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
        acc = tl.dot(low, load_tile(x, m, k, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
        acc = tl.dot(high, load_tile(x, m, k + HALF, M, K, stride_x, BLOCK_M, HALF, TMA).T, acc)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + rows).to(tl.float32)[:, None]
    inside = (at_m[None, :] < M) & (at_n[:, None] < N)
    tl.store(y_ptr + at_m[None, :] * N + at_n[:, None], acc.to(dtype), mask=inside)


def a16_mm(x_MI: Tensor, weight: Paired, bias_O: Tensor | None, launch: Launch, tma: bool) -> Tensor:
    """x Wᵀ + bias as y_MO in x's dtype, bfloat16 or float16. Rows of x may lie at any distance of 16-byte multiples."""
    (M, K), N = x_MI.shape, weight.codes.shape[0]
    y_MO = torch.empty(M, N, dtype=x_MI.dtype, device=x_MI.device)
    _a16_mm[(triton.cdiv(M, launch.block_m) * triton.cdiv(N, launch.block_n),)](
        TensorDescriptor.from_tensor(x_MI, [launch.block_m, HALF.value]) if tma else x_MI,
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
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        TMA=tma,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return y_MO


def _meaning(format: Format) -> dict[str, int | str]:
    """A 4-bit format as the kernels' constants."""
    return {"GROUP": format.group, "ELEMENT": format.element, "SCALE": format.scale}
