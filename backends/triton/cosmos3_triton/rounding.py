"""Activations after a round trip through a format, in 16 bits: what products in 16 bits take where a device has none in
the format itself.

Elements are rounded by arithmetic alone, so that a device needs no floats of 8 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cosmos3_core.quant import Format
from cosmos3_core.quant.scales import of_tensor

from .activations import ROUND, dense

TILE_ROWS, TILE_WIDTH = 32, 256
"""Of what programs take, or rows of so many elements together."""


@triton.jit
def _rounded(x, ELEMENT: tl.constexpr):
    """The element's number nearest to each of x, ties to even; what is larger saturates."""
    if ELEMENT == "int8":
        number = tl.clamp(x, -127.0, 127.0) + ROUND - ROUND
    else:
        MOST: tl.constexpr = 448.0 if ELEMENT == "e4m3" else (57344.0 if ELEMENT == "e5m2" else 6.0)
        MANTISSA: tl.constexpr = 3 if ELEMENT == "e4m3" else (2 if ELEMENT == "e5m2" else 1)
        LEAST: tl.constexpr = 121 if ELEMENT == "e4m3" else (113 if ELEMENT == "e5m2" else 127)
        x = tl.clamp(x, -MOST, MOST)
        # fp32's exponent, at least that of the smallest normal number: the step is 2^-MANTISSA of that power of two.
        exponent = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, LEAST)
        step = ((exponent - MANTISSA) << 23).to(tl.float32, bitcast=True)
        steps = ((254 + MANTISSA - exponent) << 23).to(tl.float32, bitcast=True)
        number = (x * steps + ROUND - ROUND) * step
    return number


@triton.jit(do_not_specialize=["M"])
def _round_trip(
    x_ptr,
    y_ptr,
    whole_ptr,  # the scale of the tensor, None where there is none
    M,
    K,
    stride_x,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,  # 0: the tensor's scale is the only one
    ELEMENT: tl.constexpr,
    SCALE: tl.constexpr,
    MOST: tl.constexpr,
    TOP: tl.constexpr,
):
    SHARED: tl.constexpr = GROUP if GROUP > 0 else WIDTH
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row[:, None] < M) & (column[None, :] < K)
    x = tl.load(x_ptr + row[:, None] * stride_x + column[None, :], mask=inside, other=0.0).to(tl.float32)
    x = x.reshape(ROWS, WIDTH // SHARED, SHARED)
    # Bits order magnitudes as the numbers do, with infinity and then NaN above them.
    bits = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 2)
    largest = bits.to(tl.float32, bitcast=True)
    broken = bits >= 0x7F800000
    if GROUP == 0:
        factor = tl.zeros_like(largest) + tl.load(whole_ptr)
        broken = bits > 0x7F800000  # by a stored scale an infinity saturates
    elif SCALE == "e8m0":
        factor = (tl.maximum((bits >> 23) - TOP, 0) << 23).to(tl.float32, bitcast=True)
    elif SCALE == "e4m3":
        whole = tl.load(whole_ptr)
        factor = _rounded(tl.minimum(largest / MOST / whole, 448.0), "e4m3") * whole
    else:
        factor = largest / MOST
    # A factor of 0 belongs to a block of zeros, or of numbers too small for its scale.
    factor = tl.where(broken, float("nan"), factor)[:, :, None]
    y = tl.where(factor == 0, 0.0, _rounded(x / tl.where(factor == 0, 1.0, factor), ELEMENT) * factor)
    y = y.reshape(ROWS, WIDTH).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * K + column[None, :], y, mask=inside)


def round_trip(x_MI: Tensor, format: Format, input_scale: Tensor | None = None) -> Tensor:
    """`quant.numerics.fake_quant_input`, but for values within fp32 rounding of a tie; of a stored scale a NaN makes
    its own part of the row NaN instead of the tensor. Scales in e8m0 are by the rule "floor". Rows may lie at any
    distance. x itself where the format leaves activations as they are."""
    inputs = format.of_inputs
    if inputs is None:
        return x_MI
    x_MI, (M, K) = dense(x_MI), x_MI.shape
    y_MI = torch.empty(M, K, dtype=x_MI.dtype, device=x_MI.device)
    whole, group, tile = None, inputs.group, (TILE_ROWS, TILE_WIDTH)
    if inputs.static or inputs.tensor_scale:
        whole = of_tensor(x_MI, inputs) if input_scale is None else input_scale
    elif not group:
        group = triton.next_power_of_2(K)
        tile = (max(1, TILE_ROWS * TILE_WIDTH // group), group)
    element = inputs.of_elements
    _round_trip[(triton.cdiv(M, tile[0]), triton.cdiv(K, tile[1]))](
        x_MI,
        y_MI,
        whole,
        M,
        K,
        x_MI.stride(0),
        ROWS=tile[0],
        WIDTH=tile[1],
        GROUP=group,
        ELEMENT=inputs.element,
        SCALE=inputs.scale,
        MOST=float(element.most),
        TOP=element.top,
        num_warps=min(max(tile[0] * tile[1] // 1024, 1), 16),
    )
    return y_MI
