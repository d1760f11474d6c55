"""Patches of a latent, their projection and the timestep in one kernel: a product whose rows are read where they lie in
the latent, and whose result is written once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cosmos3_core.contract import PatchEmbed

from .tables import Table

SIZES = ["tokens", "height", "width", "rows_of_patches", "columns_of_patches", "by_channel", "by_frame", "by_row"]
"""Arguments whose value the kernel is not compiled for: another size of video compiles nothing."""


@triton.jit(do_not_specialize=SIZES)
def _patch_embed(
    latent_ptr,
    weight_ptr,
    bias_ptr,
    timestep_ptr,
    noisy_ptr,  # None: every frame is
    y_ptr,
    tokens,
    height,
    width,
    rows_of_patches,
    columns_of_patches,
    by_channel,
    by_frame,
    by_row,
    by_column,
    OUT: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    FEATURES: tl.constexpr = PATCH * PATCH * CHANNELS
    BLOCKS_N: tl.constexpr = triton.cdiv(OUT, BLOCK_N)
    dtype: tl.constexpr = weight_ptr.dtype.element_ty
    token = tl.program_id(0) // BLOCKS_N * BLOCK_M + tl.arange(0, BLOCK_M)
    out = tl.program_id(0) % BLOCKS_N * BLOCK_N + tl.arange(0, BLOCK_N)
    patch_row = token // columns_of_patches
    frame = patch_row // rows_of_patches
    row = patch_row % rows_of_patches * PATCH
    column = token % columns_of_patches * PATCH
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, FEATURES, BLOCK_K):
        feature = start + tl.arange(0, BLOCK_K)
        # Tokens along the last axis: neighbouring threads then read neighbouring positions of one channel.
        y = row[None, :] + (feature // (CHANNELS * PATCH))[:, None]
        x = column[None, :] + (feature // CHANNELS % PATCH)[:, None]
        at = (frame * by_frame)[None, :] + (feature % CHANNELS * by_channel)[:, None] + y * by_row + x * by_column
        inside = (feature < FEATURES)[:, None] & (token < tokens)[None, :] & (y < height) & (x < width)
        patches = tl.load(latent_ptr + at, inside, other=0.0).to(dtype)
        there = (out < OUT)[None, :] & (feature < FEATURES)[:, None]
        weight = tl.load(weight_ptr + out[None, :] * FEATURES + feature[:, None], there, other=0.0)
        total = tl.dot(patches.T, weight, total)
    total += tl.load(bias_ptr + out, out < OUT, other=0.0).to(tl.float32)[None, :]
    timestep = tl.load(timestep_ptr + out, out < OUT, other=0.0).to(tl.float32)[None, :]
    if noisy_ptr is not None:
        noisy = tl.load(noisy_ptr + frame, token < tokens, other=0)
        timestep = tl.where(noisy[:, None], timestep, 0.0)
    y_ptr += token.to(tl.int64)[:, None] * OUT + out[None, :]
    tl.store(y_ptr, (total + timestep).to(dtype), (token < tokens)[:, None] & (out < OUT)[None, :])


def build_patch_embed(table: Table) -> PatchEmbed:
    launch = table.launch("patch_embed")

    def patch_embed(
        latent_CThw: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor,
        timestep_1O: Tensor,
        *,
        patch: int,
        noisy_T: Tensor | None = None,
    ) -> Tensor:
        (channels, frames, height, width), out = latent_CThw.shape, len(weight_OI)
        rows, columns = triton.cdiv(height, patch), triton.cdiv(width, patch)
        y = weight_OI.new_empty(frames * rows * columns, out)
        _patch_embed[(triton.cdiv(len(y), launch.block_m) * triton.cdiv(out, launch.block_n),)](
            latent_CThw,
            weight_OI.contiguous(),
            bias_O,
            timestep_1O,
            noisy_T,
            y,
            len(y),
            height,
            width,
            rows,
            columns,
            *latent_CThw.stride(),
            OUT=out,
            CHANNELS=channels,
            PATCH=patch,
            BLOCK_M=launch.block_m,
            BLOCK_N=launch.block_n,
            BLOCK_K=launch.block_k,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        return y

    return patch_embed
