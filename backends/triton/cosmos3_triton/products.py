"""Products of 8 bits by 8 bits with scales: plain, added to a residual, or with the MLP's gate applied. The product
with the gate also takes 16 bits by 16 bits.

Kernels are not specialized for the number of rows, M: another size of video compiles nothing.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .tables import Table
from .tiles import load_tile, store_tile

DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
ADDING = "adding_mm_8bit"
"""What tables call the product that is added to a residual. Where they have no launch of it there is none."""
GROUP_M = 8
"""Rows of tiles that are done together, so that L2 keeps the part of the weight that they share."""


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
    GROUP_M: tl.constexpr,
    TMA: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    DTYPE: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
):
    """ADDS: y holds a residual, which the product is added to."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        band = tile // (GROUP_M * tiles_n)
        height = tl.minimum(tiles_m - band * GROUP_M, GROUP_M)
        within = tile % (GROUP_M * tiles_n)
        m, n = (band * GROUP_M + within % height) * BLOCK_M, within // height * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), ACCUMULATOR)
        for k in range(0, K, BLOCK_K):
            a_mk = load_tile(a, m, k, M, K, K, BLOCK_M, BLOCK_K, TMA)
            b_nk = load_tile(b, n, k, N, K, K, BLOCK_N, BLOCK_K, TMA)
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
            store_tile(y, m, n // 2, (left * tl.sigmoid(left) * right).to(DTYPE), M, N // 2, TMA)
        else:  # in two halves: the tile passes through shared memory, and little of that is left beside the operands
            half = n + BLOCK_N // 2
            if ADDS:
                left += load_tile(y, m, n, M, N, N, BLOCK_M, BLOCK_N // 2, TMA).to(tl.float32)
            store_tile(y, m, n, left.to(DTYPE), M, N, TMA)
            if ADDS:
                right += load_tile(y, m, half, M, N, N, BLOCK_M, BLOCK_N // 2, TMA).to(tl.float32)
            store_tile(y, m, half, right.to(DTYPE), M, N, TMA)


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
    """(a bᵀ) scale_a scale_bᵀ + bias as y_MO in `dtype`, of contiguous int8 or e4m3, I a multiple of 16, O of 8.
    int8 is summed exactly; e4m3 as fast as the hardware can. `gated`: the outputs are in `gated_order`, and
    silu(gate)·up is returned, O / 2 wide and rounded once; of 16-bit operands, too, without scales. With a residual
    the sum is returned in its place, rounded once."""
    (M, K), N = a_MI.shape, b_OI.shape[0]
    launch = table.launch(gated_kernel(a_MI) if gated else "scaled_mm" if residual_MO is None else ADDING, M)
    y_MO = (
        torch.empty(M, N // 2 if gated else N, dtype=dtype, device=a_MI.device) if residual_MO is None else residual_MO
    )
    operands = (
        (a_MI, [launch.block_m, launch.block_k]),
        (b_OI, [launch.block_n, launch.block_k]),
        (y_MO, [launch.block_m, launch.block_n // 2]),
    )
    programs = triton.cdiv(M, launch.block_m) * triton.cdiv(N, launch.block_n)
    if launch.persistent:
        programs = min(programs, processors(a_MI.device.index))
    _scaled_mm[(programs,)](
        *(TensorDescriptor.from_tensor(*operand) if table.tma else operand[0] for operand in operands),
        scale_a_M1,
        scale_b_O1,
        bias_O,
        M,
        N,
        K,
        BLOCK_M=launch.block_m,
        BLOCK_N=launch.block_n,
        BLOCK_K=launch.block_k,
        GROUP_M=GROUP_M,
        TMA=table.tma,
        ACCUMULATOR=tl.int32 if a_MI.dtype == torch.int8 else tl.float32,
        DTYPE=DTYPES[dtype],
        GATED=gated,
        ADDS=residual_MO is not None,
        num_warps=launch.warps,
        num_stages=launch.stages,
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
    outputs, launch = weight_OI.shape[0], table.find(gated_kernel(weight_OI))
    if launch is None or outputs % launch.block_n:
        return None
    return torch.arange(outputs, device=weight_OI.device).view(2, -1, launch.block_n // 2).transpose(0, 1).flatten()
