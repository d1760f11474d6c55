"""Tiles of matrices, which products load and store.

On NVIDIA's from sm_90 on the tensor memory accelerator (TMA) moves them, and kernels are given tensor descriptors;
elsewhere they are given pointers. Only these two functions tell one from the other. What a tile holds for a row beyond
the last is not stored.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(matrix, row, column, rows, columns, stride, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
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
def store_tile(matrix, row, column, block, rows, columns, TMA: tl.constexpr):
    """Write a tile to (row, column), but for its rows and columns beyond the last."""
    if TMA:
        matrix.store([row, column], block)
    else:
        at_row = row + tl.arange(0, block.shape[0]).to(tl.int64)
        at_column = column + tl.arange(0, block.shape[1])
        inside = (at_row[:, None] < rows) & (at_column[None, :] < columns)
        tl.store(matrix + at_row[:, None] * columns + at_column[None, :], block, mask=inside)
