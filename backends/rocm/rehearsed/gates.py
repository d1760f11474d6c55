"""What a compiled kernel has to be: for the architecture, with the matrix instruction of its numbers and no other, no
register spilled, and no more shared memory or threads than the architecture has."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cosmos3_triton.targets import TARGETS

from .launched import Launched

CDNA, RDNA = r"v_mfma_{}_\d+x\d+x\d+", "v_wmma_{}_16x16x16"
PRODUCTS = {
    "gfx90a": {"bf16": CDNA.format("f32") + "bf16_1k", "int8": CDNA.format("i32") + "i8"},
    "gfx942": {
        "bf16": CDNA.format("f32") + "_bf16",
        "int8": CDNA.format("i32") + "_i8",
        "fp8": CDNA.format("f32") + "_fp8_fp8",
    },
    "gfx950": {
        "bf16": CDNA.format("f32") + "_bf16",
        "int8": CDNA.format("i32") + "_i8",
        "fp8": CDNA.format("f32") + "_(f8f6f4|fp8_fp8)",
    },
    **dict.fromkeys(
        ("gfx1100", "gfx1151"), {"bf16": RDNA.format("f32") + "_bf16", "int8": RDNA.format("i32") + "_iu8"}
    ),
    **dict.fromkeys(
        ("gfx1200", "gfx1201"),
        {
            "bf16": RDNA.format("f32") + "_bf16",
            "int8": RDNA.format("i32") + "_iu8",
            "fp8": RDNA.format("f32") + "_fp8_fp8",
        },
    ),
}
"""What multiplies numbers of a kind."""
WIDE = r"(global|buffer)_store_(dwordx4|b128)"
NARROWER = {"_norm_rope": r"(global|buffer)_store_(dwordx[24]|b64|b128)"}
"""Of 8 key heads a thread has fewer elements than of 32 query heads."""
ROW_WISE = ("_rms_norm", "_norm_rope", "_gate", "_norm_silu", "_dequantize", "_round_trip")
"""Kernels without products, which in 16 bits store as much as a thread can at a time."""
JUSTIFIED: dict[tuple[str, str], str] = {
    ("_quantize", "gfx90a"): "5 registers, in a kernel that reads keys and values once; of 32 keys at a time it is 361",
}
"""Why a kernel spills registers on an architecture, by both their names; no other may."""


def kinds(kernel: str, format: str) -> frozenset[str]:
    """Of the numbers that a kernel of a row in this format multiplies. Attention's keys are in int8 in every format of
    8 bits."""
    if kernel == "_flash_8bit":
        return frozenset({"bf16", "int8", format})
    if kernel == "_scaled_mm":
        return frozenset({format.partition("_")[0]})
    products = ("_flash", "_ranges", "_quantize", "_a16_mm", "_patch_embed")
    return frozenset({"bf16"} if kernel in products else ())


def faults(found: Launched, arch: str, format: str) -> Iterator[str]:
    """Why the kernel of a row in this format will not do on the architecture."""
    target, expected = TARGETS[arch], {kind: PRODUCTS[arch].get(kind) for kind in kinds(found.kernel, format)}
    if found.target != arch:
        yield f"is for {found.target or 'nothing'}"
    if found.wave != target.warp:
        yield f"has waves of {found.wave} threads, and the architecture {target.warp}"
    if found.threads > target.threads:
        yield f"asks for {found.threads} threads of {target.threads}"
    if found.shared > target.shared:
        yield f"takes {found.shared:,} bytes of LDS of {target.shared:,}"
    if (found.spilled or found.scratch) and (found.kernel, arch) not in JUSTIFIED:
        yield f"spills {found.spilled} registers and takes {found.scratch} bytes of memory a thread"
    for kind, pattern in expected.items():
        if pattern is None or not any(re.fullmatch(pattern, product) for product in found.products):
            yield f"does not multiply {kind} as such"
    for product in found.products:
        if not any(pattern and re.fullmatch(pattern, product) for pattern in expected.values()):
            yield f"multiplies with {product}"
    if found.kernel in ROW_WISE and format == "none":
        narrow = [one for one in found.stores if not re.fullmatch(NARROWER.get(found.kernel, WIDE), one)]
        if narrow or not found.stores:
            yield f"stores {', '.join(narrow) or 'nothing'}"
