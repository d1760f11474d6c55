"""Rows of our kernels, which a plugin puts among its own in the order in which they are preferred. Loads neither torch
nor triton: a row's `build` does.

What an architecture has is its backend's to know. So each function is told on which the rows serve (`arch`), and of
these, which multiply integers of 8 bits fast (`int8`) and which have floats of 8 bits (`fp8`). A backend that ships
tables of launches gives `find`, which is called as `tables.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cosmos3_core.contract import Ask, Attention, Device, Kernel, Unavailable

from .tables import Find, table

SIXTEEN_BITS = ("bfloat16", "float16")
EIGHT_BITS = ("int8", "int8_static", "fp8", "fp8_tensor", "fp8_static")
"""Formats that are multiplied in 8 bits, with scales of whole rows or tensors."""
WEIGHT_ONLY = (
    "w4a16",
    "w4a16_asym",
    "nvfp4a16",
    "mxfp4a16",
    "fp8a16",
    "int8a16",
    "nf4",
    "q4_0",
    "q8_0",
)
ROUNDED = (
    "mxfp8",
    "mxfp4",
    "mxfp4a8",
    "nvfp4",
    "w4a8",
    "w4afp8",
    "fp8_block",
    "fp8_e5m2",
    *EIGHT_BITS,
)
"""Formats with activations of their own that can be multiplied in 16 bits."""
Refuse = Callable[[Ask], str | None]


@dataclass(frozen=True)
class Build:
    """A row's `build`: what `name` in a module of this package makes of the device's launches."""

    find: Find
    module: str
    name: str

    def __call__(self, device: Device) -> Any:
        made = getattr(import_module(f".{self.module}", __package__), self.name)
        return made(self.find(device.arch, device.name))


def origin(arch: str, device: str, find: Find = table) -> dict[str, str]:
    """What a probe says in `Device.versions` of the launches on the device of that name. Raises Unavailable where what
    was measured on it is damaged."""
    try:
        return {"kernel launches": find(arch, device).origin}
    except ValueError as error:
        raise Unavailable(f"{error}. Delete the file; python -m cosmos3_triton.tune measures it anew") from None


def find_of(rows: Sequence[Kernel]) -> Find:
    """Where the rows that are of this package find their launches."""
    return next((row.build.find for row in rows if isinstance(row.build, Build)), table)


def attention_rows(
    arch: tuple[str, ...], *, int8: tuple[str, ...] = (), fp8: tuple[str, ...] = (), find: Find = table
) -> tuple[Kernel, ...]:
    """Attention in 16 bits, in int8, and in FP8, with keys in int8 where that is fast; no row that serves nowhere."""

    def build_fp8(device: Device) -> Attention:
        from . import attention_8bit

        return attention_8bit.build_fp8(find(device.arch, device.name), int8=device.arch in int8)

    common: dict[str, Any] = {
        "op": "attention",
        "dtypes": SIXTEEN_BITS,
        "needs": ("triton",),
        "refuse": refuse_head_dim,
    }
    rows = (
        Kernel(
            name="triton",
            build=Build(find, "attention", "Flash"),
            arch=arch,
            notes="reads two segments where they lie; slower than cuDNN and FlashAttention-3 for video on an H100",
            **common,
        ),
        Kernel(
            name="triton-int8",
            build=Build(find, "attention_8bit", "build_int8"),
            arch=int8,
            formats=("int8",),
            notes="the last segment (the media's) in int8, the others and causal calls in 16 bits; relative error "
            "2.3e-2 on normally distributed inputs",
            **common,
        ),
        Kernel(
            name="triton-fp8",
            build=build_fp8,
            arch=fp8,
            formats=("fp8",),
            notes="as triton-int8, with values and weights in FP8, and keys too where integers are slow: faster, and a "
            "relative error of 3.8e-2",
            **common,
        ),
    )
    return tuple(row for row in rows if row.arch)


def row_wise_rows(arch: tuple[str, ...], *, find: Find = table) -> tuple[Kernel, ...]:
    """The ops that go over rows once: norms, rotation, gate, and the embedding of patches."""
    common: dict[str, Any] = {"name": "triton", "arch": arch, "needs": ("triton",)}
    return (
        Kernel(
            op="rms_norm",
            build=Build(find, "row_wise", "build_rms_norm"),
            notes="residual, norm and both results in one pass",
            **common,
        ),
        Kernel(
            op="norm_rope",
            build=Build(find, "row_wise", "build_norm_rope"),
            refuse=refuse_norm_rope,
            notes="all projections in one launch",
            **common,
        ),
        Kernel(
            op="gate",
            build=Build(find, "row_wise", "build_gate"),
            notes="one pass, in place",
            **common,
        ),
        Kernel(
            op="patch_embed",
            build=Build(find, "patch_embed", "build_patch_embed"),
            dtypes=SIXTEEN_BITS,
            notes="patches are read where they lie, the timestep is added before the result is rounded",
            **common,
        ),
        Kernel(
            op="norm_silu",
            build=Build(find, "row_wise", "build_norm_silu"),
            notes="one pass, several rows to a program",
            **common,
        ),
    )


def linear_rows(arch: tuple[str, ...], *, fp8: tuple[str, ...], find: Find = table) -> tuple[Kernel, ...]:
    """Linears with weights and inputs in 8 bits."""
    return (
        Kernel(
            op="pack_linear",
            name="triton-scaled-mm",
            build=Build(find, "linears", "build_scaled_mm"),
            arch=arch,
            dtypes=SIXTEEN_BITS,
            formats=EIGHT_BITS,
            needs=("triton",),
            refuse=refuse_8_bits(fp8),
            packed=True,
            notes="scales in the epilogue",
        ),
    )


def sixteen_bit_rows(arch: tuple[str, ...], *, fused: bool = True, find: Find = table) -> tuple[Kernel, ...]:
    """Linears with packed weights that are multiplied in 16 bits, for devices without products in the format: `fused`,
    with weights that become numbers in registers, and with a 16-bit copy in every call."""
    common: dict[str, Any] = {
        "op": "pack_linear",
        "arch": arch,
        "dtypes": SIXTEEN_BITS,
        "formats": WEIGHT_ONLY + ROUNDED,
        "needs": ("triton",),
        "packed": True,
        "widens": True,
    }
    rounded = "activations that the format quantizes are rounded to it and multiplied in 16 bits"
    rows = (
        Kernel(
            name="triton-a16",
            build=Build(find, "linears", "build_a16"),
            refuse=refuse_a16,
            notes=f"few rows are multiplied with packed weights as they are, many with a 16-bit copy; {rounded}",
            **common,
        ),
        Kernel(
            name="triton-dequantized",
            build=Build(find, "linears", "build_dequantized"),
            refuse=refuse_unscaled,
            notes=f"a kernel makes a 16-bit copy of the weight in every call, torch multiplies; {rounded}",
            **common,
        ),
    )
    return rows if fused else rows[1:]


def layer_rows(arch: tuple[str, ...], *, fp8: tuple[str, ...], find: Find = table) -> tuple[Kernel, ...]:
    """The two halves of a decoder layer in 8 bits, with our own products."""
    common: dict[str, Any] = {
        "name": "triton-scaled-mm",
        "formats": ("int8", "fp8"),
        "arch": arch,
        "dtypes": SIXTEEN_BITS,
        "needs": ("triton",),
        "refuse": refuse_8_bits(fp8),
    }
    return (
        Kernel(op="project", build=Build(find, "layers", "build_project"), notes=PROJECT, fuses=IN_PROJECT, **common),
        Kernel(op="finish", build=Build(find, "layers", "build_finish"), notes=FINISH, fuses=IN_FINISH, **common),
    )


IN_PROJECT, IN_FINISH = ("rms_norm", "pack_linear"), ("rms_norm", "pack_linear", "gate")
"""What the halves do themselves in 8 bits."""
PROJECT = "the norm's rows come in 8 bits"
FINISH = (
    "rows between the ops are in 8 bits; where the architecture has the kernels, the MLP's first product applies the "
    "gate, and products add to the residual stream"
)


def refuse_8_bits(fp8: tuple[str, ...]) -> Refuse:
    """Why a layer's products cannot be in 8 bits; `fp8` are the architectures with floats of 8 bits."""

    def refuse(ask: Ask) -> str | None:
        if ask.format.startswith("fp8") and ask.device.arch not in fp8:
            return f"{ask.device.arch} has no 8-bit floats; int8 is served"
        return refuse_unscaled(ask) or uneven(ask, 16, 16)

    return refuse


def uneven(ask: Ask, inputs: int, outputs: int = 1) -> str | None:
    """Why the matrices of this model's layers cannot be packed, where their inputs have to be multiples of one number
    and their outputs of another, which divides it."""
    query, both = ask.heads * ask.head_dim, 2 * ask.kv_heads * ask.head_dim
    widths = (("hidden", ask.hidden), ("inner", ask.inner), ("query", query))
    sides = [(*width, inputs) for width in widths] + [("query, key and value", query + both, outputs)]
    for name, side, multiple in sides:
        if side % multiple:
            return f"packs features in multiples of {multiple} in {ask.format}, and this model's {name} width is {side}"
    return None


def refuse_head_dim(ask: Ask) -> str | None:
    if ask.head_dim not in (32, 64, 128):
        return f"written for head dims 32, 64 and 128, not {ask.head_dim}"
    return None


def refuse_norm_rope(ask: Ask) -> str | None:
    if ask.head_dim < 16 or ask.head_dim & (ask.head_dim - 1):
        return f"takes head dims that are powers of two from 16 on, not {ask.head_dim}"
    return None


def refuse_a16(ask: Ask) -> str | None:
    return refuse_unscaled(ask) or uneven(ask, 8)


def refuse_unscaled(ask: Ask) -> str | None:
    """Why there is no product with activations by a stored scale."""
    from cosmos3_core.quant import FORMATS

    known = FORMATS.get(ask.format)
    if known and known.static and not ask.packed:
        return f"{ask.format} takes the activations' scales from a quantized checkpoint, and this is none"
    return None
