"""docs/rocm-kernels.md: what the compiler makes of our kernels, by architecture. Reading its digest needs no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compile import Kernel, Result

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "rocm-kernels.md"
KERNELS = (
    "activations",
    "attention",
    "attention_8bit",
    "layers",
    "linears",
    "patch_embed",
    "products",
    "rounding",
    "row_wise",
    "segments",
    "tables",
    "targets",
    "tiles",
    "weight_only",
)
SOURCES = (
    *(f"backends/triton/cosmos3_triton/{name}.py" for name in KERNELS),
    "backends/triton/cosmos3_triton/launches/default.toml",
    "backends/rocm/cosmos3_rocm/launches/*.toml",
    "backends/rocm/rehearsed/calls.py",
    "backends/rocm/rehearsed/gates.py",
)
"""What the page follows from, and from which rows there are."""
DIGEST = re.compile(r"^<!-- sources: ([0-9a-f]{64}) -->$", re.M)
HEAD = """# Our kernels, compiled for AMD's GPUs

<!-- sources: {digest} -->

Written by `make rehearse-rocm`, which compiles every row of cosmos3-rocm's own kernels, in every format, for every
architecture that it names, with Triton {triton} and without a GPU. Each kernel is checked: it is code for that
architecture, multiplies with the matrix instruction of its numbers and no other (FP8 as FP8, not as 16 bits), spills no
register but where a line says why, and takes no more LDS, threads or waves of another size than the architecture has.
None of them has run on a GPU of AMD's, and nothing here says how fast one is.

A kernel is listed once, under the row and format that first launch it. Seconds are those of compiling on a shared CPU.
Registers are a thread's: vector (VGPR), and accumulation (AGPR) where there are any. Waves are those that a SIMD can
hold by its registers. LDS is one program's.
"""
COLUMNS = ("Row", "Kernel", "s", "Registers", "Spills", "LDS, KiB", "Threads", "Waves", "Matrix instruction")


def digest() -> str:
    """Of the sources, by their paths, and of what the rows declare."""
    from cosmos3_rocm import kernels

    rows = [row for place in vars(kernels.OURS).values() for row in place]
    declared = [(row.op, row.name, row.arch, row.formats) for row in rows]
    total = hashlib.sha256(f"{declared} {kernels.FAMILIES}\n".encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            total.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def digest_of(text: str) -> str | None:
    """The one that a page was written for."""
    return match.group(1) if (match := DIGEST.search(text)) else None


def line(kernel: Kernel) -> str:
    found = kernel.found
    registers = f"{found.vector} + {found.accumulation}" if found.accumulation else str(found.vector)
    products = ", ".join(f"`{product}`" for product in found.products) or "–"
    cells = [
        kernel.case,
        f"`{found.kernel}`",
        f"{found.seconds:.1f}",
        registers,
        found.spilled,
        f"{found.shared / 1024:g}" if found.shared % 1024 == 0 else f"{found.shared / 1024:.2f}",
        found.threads,
        found.occupancy,
        products,
    ]
    return f"| {' | '.join(map(str, cells))} |"


def section(result: Result) -> Iterator[str]:
    from cosmos3_triton.targets import TARGETS

    from .gates import JUSTIFIED

    target = TARGETS[result.arch]
    yield f"\n## {result.arch}\n"
    yield (
        f"{len(result.kernels)} kernels of {result.cases} rows in a format; waves of {target.warp} threads, "
        f"{target.shared // 1024} KiB of LDS, e4m3: {target.fp8 or 'none'}.\n"
    )
    for problem in result.failed:
        yield f"**Failed:** {problem}\n"
    spilling = {one.found.kernel for one in result.kernels if one.found.spilled}
    for (kernel, arch), reason in JUSTIFIED.items():
        if arch == result.arch and kernel in spilling:
            yield f"`{kernel}` spills: {reason}.\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{' --- |' * len(COLUMNS)}"
    yield from map(line, result.kernels)


def write(results: Sequence[Result], out: Path) -> None:
    from importlib.metadata import version

    lines = [text for result in results for text in section(result)]
    out.write_text(HEAD.format(digest=digest(), triton=version("triton")) + "\n".join(lines) + "\n", "utf-8")
