"""Every row that rocm builds of our kernels, compiled for every architecture that it names: the code object that a
driver loads, the architecture's matrix instruction, no register spilled, and no more shared memory or threads than it
has. No GPU of AMD's has run them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cosmos3_rocm import plugin
from cosmos3_triton import row_wise
from cosmos3_triton.patch_embed import build_patch_embed
from cosmos3_triton.tables import table
from launched import MOST_THREADS, SHARED, Launched, launched

from cosmos3_core.contract import Device, Kernel, Segment

OURS = [row for row in plugin.ROWS if "triton" in row.needs]
CASES = [(row, arch) for row in OURS for arch in row.arch]
PRODUCT = {
    "gfx90a": "v_mfma_f32_32x32x8bf16_1k",
    "gfx942": "v_mfma_f32_32x32x8_bf16",
    "gfx950": "v_mfma_f32_32x32x16_bf16",
    "gfx1100": "v_wmma_f32_16x16x16_bf16",
    "gfx1151": "v_wmma_f32_16x16x16_bf16",
    "gfx1201": "v_wmma_f32_16x16x16_bf16",
}
"""What multiplies bf16."""
WITH_PRODUCTS = ("attention", "patch_embed")
WIDE = r"(global|buffer)_store_(dwordx4|b128)"
KEYS = r"(global|buffer)_store_(dwordx[24]|b64|b128)"
"""Of 8 key heads a thread has fewer elements than of 32 query heads."""


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def attention(op: Any) -> None:
    """The media's call, and the text's."""
    q, (text, media) = empty(1, 300, 32, 128), (empty(1, 40, 8, 128), empty(1, 300, 8, 128))
    op(q, [Segment(text, text), Segment(media, media)])
    op(q, [Segment(media, media)], causal=True)


def norm_rope(op: Any) -> None:
    qkv, angles, weight = empty(1, 16, 48, 128), empty(1, 16, 128), empty(128)
    q, k, _ = qkv.split([32, 8, 8], dim=2)
    op([(q, weight), (k, weight)], angles, angles, eps=1e-6)


def patch_embed(op: Any) -> None:
    noisy = torch.tensor([False, True, True])
    op(empty(48, 3, 30, 52).float(), empty(4096, 192), empty(4096), empty(1, 4096), patch=2, noisy_T=noisy)


CALLS: dict[str, Callable[[Any], Any]] = {
    "attention": attention,
    "rms_norm": lambda op: op(empty(16, 4096), empty(4096), eps=1e-6, residual_MI=empty(16, 4096)),
    "norm_rope": norm_rope,
    "gate": lambda op: op(empty(16, 24576), activation="silu"),
    "patch_embed": patch_embed,
    "norm_silu": lambda op: op(empty(64, 256), empty(256), bias_I=empty(256), residual_MI=empty(64, 256)),
}
"""As Nano calls them, with fewer tokens: kernels are not compiled for how many there are."""


def kernels_of(monkeypatch: pytest.MonkeyPatch, row: Kernel, arch: str) -> list[Launched]:
    op = row.build(Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False))
    return launched(monkeypatch, arch, lambda: CALLS[row.op](op))


def test_every_architecture_of_a_row_is_known():
    assert {arch for row in OURS for arch in row.arch} == set(PRODUCT) == set(SHARED)
    assert {row.op for row in OURS} == set(CALLS)


@pytest.mark.parametrize(("row", "arch"), CASES, ids=[f"{row.op}-{arch}" for row, arch in CASES])
def test_a_row_is_compiled_as_it_is_launched(monkeypatch, row, arch):
    found = kernels_of(monkeypatch, row, arch)
    assert len(found) == (2 if row.op == "attention" else 1)
    for kernel in found:
        assert kernel.elf.startswith(b"\x7fELF") and f"amdgcn-amd-amdhsa--{arch}" in kernel.assembly
        assert (kernel.spilled, kernel.scratch) == (0, 0), "registers are spilled"
        assert kernel.shared <= SHARED[arch] * 1024 and kernel.threads <= MOST_THREADS
        if row.op in WITH_PRODUCTS:
            assert PRODUCT[arch] in kernel.assembly
        else:
            wide = KEYS if row.op == "norm_rope" else WIDE
            assert kernel.stores and all(re.fullmatch(wide, store) for store in kernel.stores)


def test_the_default_launches_would_not_do(monkeypatch):
    """Why rocm ships tables, and that the numbers above are those of the compiled code: the default's spill registers,
    store 8 bytes at a time where warps have 64 threads, and ask for more threads than there can be."""
    (patches,) = launched(monkeypatch, "gfx1100", lambda: patch_embed(build_patch_embed(table("gfx1100"))))
    (gate,) = launched(monkeypatch, "gfx942", lambda: CALLS["gate"](row_wise.build_gate(table("gfx942"))))
    whole = partial(row_wise.gate_rows(table("gfx942")), empty(16, 24576), activation="silu", format="int8")
    (rows,) = launched(monkeypatch, "gfx942", whole)
    assert patches.spilled and patches.scratch
    assert not any(re.fullmatch(WIDE, store) for store in gate.stores)
    assert rows.threads == 2 * MOST_THREADS
