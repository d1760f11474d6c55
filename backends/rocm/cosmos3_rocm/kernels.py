"""The rows of our own kernels, and how they are launched on AMD's GPUs. Loads neither torch nor triton."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cosmos3_triton.rows import attention_rows, layer_rows, linear_rows, row_wise_rows, sixteen_bit_rows
from cosmos3_triton.tables import Table, table
from cosmos3_triton.targets import TARGETS

from cosmos3_core.contract import Ask, Kernel

FAMILIES = {
    "gfx90a": "cdna2",
    "gfx942": "cdna3",
    "gfx950": "cdna4",
    "gfx1100": "rdna3",
    "gfx1151": "rdna3",
    "gfx1200": "rdna4",
    "gfx1201": "rdna4",
}
"""Which file in LAUNCHES has the launches of our kernels, by architecture: those that `make rehearse-rocm` compiles
them for."""
LAUNCHES = Path(__file__).parent / "launches"
REHEARSED = "compiled and interpreted, not run on a device yet"


def find_table(arch: str, device: str | None = None) -> Table:
    """As cosmos3_triton.tables.table, with what this package knows of the architecture."""
    return table(arch, device, LAUNCHES / f"{FAMILIES[arch]}.toml" if arch in FAMILIES else None)


ALL = tuple(FAMILIES)
WITH_FP8 = tuple(arch for arch in ALL if TARGETS[arch].fp8)
"""All of them multiply integers of 8 bits."""


def _rehearsed(rows: Iterable[Kernel], **notes: str) -> tuple[Kernel, ...]:
    """The rows, with notes of their own by name where those of the shared library speak of other devices."""
    return tuple(replace(row, notes=f"{notes.get(row.name, row.notes)}; {REHEARSED}") for row in rows)


SLOW = {("triton-a16", "nf4", "gfx1100"), ("triton-a16", "nf4", "gfx1151")}
"""Rows that the compiler takes minutes for, in a format on an architecture."""


def _refuse_slow(row: Kernel) -> Kernel:
    def refuse(ask: Ask) -> str | None:
        if (row.name, ask.format, ask.device.arch) in SLOW:
            return f"takes minutes to compile in {ask.format} for {ask.device.arch}; triton-dequantized serves"
        return row.refuse(ask)

    return replace(row, refuse=refuse) if row.name in {name for name, _, _ in SLOW} else row


@dataclass(frozen=True)
class Rows:
    """Those of our kernels, by the place that they have among the backend's."""

    attention: tuple[Kernel, ...]
    row_wise: tuple[Kernel, ...]
    linears: tuple[Kernel, ...]
    layers: tuple[Kernel, ...]


def rows(arch: tuple[str, ...], fp8: tuple[str, ...]) -> Rows:
    """For these architectures, of which `fp8` have floats of 8 bits."""
    find = find_table
    linears = *linear_rows(arch, fp8=fp8, find=find), *sixteen_bit_rows(arch, find=find)
    rounded = "multiplied in 16 bits, activations rounded to the format"
    return Rows(
        attention=_rehearsed(
            attention_rows(arch, int8=arch, fp8=fp8, find=find), triton="reads two segments where they lie"
        ),
        row_wise=_rehearsed(row_wise_rows(arch, find=find)),
        linears=_rehearsed(map(_refuse_slow, linears), **dict.fromkeys(("triton-a16", "triton-dequantized"), rounded)),
        layers=_rehearsed(layer_rows(arch, fp8=fp8, find=find)),
    )


OURS = rows(ALL, WITH_FP8)
