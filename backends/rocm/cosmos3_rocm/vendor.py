"""Rows of AMD's libraries: AITER with Composable Kernel behind it, what is in torch's build for ROCm (AOTriton,
hipBLASLt), and HIP graphs. Loads neither torch nor a library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cosmos3_triton.rows import IN_FINISH, IN_PROJECT, PROJECT, SIXTEEN_BITS, refuse_unscaled, uneven
from cosmos3_triton.tables import Find

from cosmos3_core.contract import Ask, Device, Kernel

from .flavours import FNUZ, MX_SINCE, OCP, rocm
from .signatures import refuse

INSTINCT = ("gfx942", "gfx950")
"""Those that AITER's wheel has assembly and tuned shapes for."""
# As AOTriton's isArchExperimentallySupported has it: 0.11 in torch 2.11 and 2.12, 0.12 or newer since.
AOTRITON = ("gfx90a", "gfx942", "gfx950", "gfx1201")
AOTRITON_SINCE_TORCH_2_13 = ("gfx1100", "gfx1151")
AOTRITON_EXPERIMENTAL = ("gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1152", "gfx1153", "gfx1200")
EXPERIMENTAL_SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
REHEARSED = "rehearsed, not run on a device yet"
AITER = ("aiter",)
WIDEST_NORM = 8192
"""The widest rows that AITER's norm with rounding before the weight is written for."""


@dataclass(frozen=True)
class Build:
    """A row's `build`: what `name` in a module of this package makes for the device, or where it is not `made`, is."""

    module: str
    name: str
    made: bool = True

    def __call__(self, device: Device) -> Any:
        found = getattr(import_module(f".{self.module}", __package__), self.name)
        return found(device) if self.made else found


@dataclass(frozen=True)
class BuildFor:
    """The same, for what is made with kernels of ours, launched as `find` says."""

    module: str
    name: str
    find: Find

    def __call__(self, device: Device) -> Any:
        return getattr(import_module(f".{self.module}", __package__), self.name)(device, self.find)


def first(*reasons: Callable[[Ask], str | None]) -> Callable[[Ask], str | None]:
    """The first reason that there is."""
    return lambda ask: next((said for reason in reasons if (said := reason(ask))), None)


def refuse_heads(ask: Ask) -> str | None:
    if ask.head_dim > 256 or ask.head_dim % 8:
        return f"takes head dims up to 256 that are multiples of 8, not {ask.head_dim}"
    return None


def refuse_fp8_heads(ask: Ask) -> str | None:
    return None if ask.head_dim == 128 else f"its FP8 is for head dim 128, not {ask.head_dim}"


def experimental(device: Device) -> bool:
    """Whether torch's AOTriton wants its switch set for this architecture."""
    torch = tuple(int(part) for part in device.versions["torch"].split(".")[:2])
    return device.arch in AOTRITON_EXPERIMENTAL or (device.arch in AOTRITON_SINCE_TORCH_2_13 and torch < (2, 13))


def refuse_experimental(ask: Ask) -> str | None:
    import os

    if experimental(ask.device) and os.environ.get(EXPERIMENTAL_SWITCH) != "1":
        return f"AOTriton calls its kernels for {ask.device.arch} experimental; {EXPERIMENTAL_SWITCH}=1 allows them"
    return None


def refuse_wide_norm(ask: Ask) -> str | None:
    return f"norms rows of up to {WIDEST_NORM}, not {ask.hidden}" if ask.hidden > WIDEST_NORM else None


def refuse_rows(ask: Ask) -> str | None:
    return refuse_unscaled(ask) or uneven(ask, 16, 16)


def refuse_blocks(ask: Ask) -> str | None:
    return uneven(ask, 128, 128)


def refuse_mx(ask: Ask) -> str | None:
    if rocm(ask.device) < MX_SINCE:
        return f"hipBLASLt multiplies blocks with scales from ROCm 7.0 on, not in {ask.device.versions.get('hip')}"
    return uneven(ask, 128, 32)


ATTENTION = (
    Kernel(
        op="attention",
        name="aiter-fa",
        build=Build("attention", "build_aiter_fa"),
        arch=INSTINCT,
        dtypes=SIXTEEN_BITS,
        needs=AITER,
        refuse=first(refuse_heads, refuse("flash_attn_func")),
        notes="AITER's FlashAttention (package amd-aiter), compiled at first use: assembly for bfloat16 at head dim "
        f"128, else Composable Kernel's; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="aiter-varlen",
        build=Build("attention", "build_aiter_varlen"),
        arch=INSTINCT,
        dtypes=SIXTEEN_BITS,
        needs=AITER,
        refuse=first(refuse_heads, refuse("flash_attn_varlen_func", "flash_attn_func")),
        notes="AITER's FlashAttention for ragged sequences; on gfx942 calls with 65536 rows or more are aiter-fa's; "
        f"{REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="aiter-fp8",
        build=Build("attention", "build_aiter_fp8"),
        arch=("gfx950",),
        dtypes=("bfloat16",),
        formats=("fp8",),
        needs=AITER,
        refuse=first(refuse_fp8_heads, refuse("flash_attn_fp8_pertensor_func", "flash_attn_func")),
        notes="AITER's FlashAttention in FP8, a scale for a tensor; causal calls in 16 bits, and a log-sum-exp is made "
        f"beside; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="sdpa-flash",
        build=Build("attention", "sdpa_flash", made=False),
        arch=AOTRITON + AOTRITON_SINCE_TORCH_2_13 + AOTRITON_EXPERIMENTAL,
        dtypes=SIXTEEN_BITS,
        refuse=first(refuse_heads, refuse_experimental),
        notes=f"AOTriton's FlashAttention, inside torch; {REHEARSED}",
    ),
)

ROW_WISE = (
    Kernel(
        op="rms_norm",
        name="aiter",
        build=Build("row_wise", "build_rms_norm"),
        arch=INSTINCT,
        dtypes=SIXTEEN_BITS,
        needs=AITER,
        refuse=first(refuse_wide_norm, refuse("rmsnorm2d_fwd", "rmsnorm2d_fwd_with_add")),
        notes=f"AITER's norm, with the residual in one pass; {REHEARSED}",
    ),
    Kernel(
        op="norm_rope",
        name="aiter",
        build=Build("row_wise", "build_norm_rope"),
        arch=INSTINCT,
        dtypes=SIXTEEN_BITS,
        needs=AITER,
        refuse=refuse("rmsnorm2d_fwd", "rope_cached_fwd", "rope_cached_2c_fwd"),
        notes=f"AITER's norm for each projection, which is copied for it, and its rotation for every two; {REHEARSED}",
    ),
    Kernel(
        op="gate",
        name="aiter",
        build=Build("row_wise", "build_gate"),
        arch=INSTINCT,
        dtypes=SIXTEEN_BITS,
        needs=AITER,
        refuse=refuse("silu_and_mul"),
        notes=f"AITER's silu_and_mul; squared relu is torch's; {REHEARSED}",
    ),
)

CAPTURE = (
    Kernel(
        op="capture",
        name="hip-graph",
        build=Build("capture", "build_capture"),
        fresh=False,
        notes="a HIP graph with memory of its own: the second call is recorded, later ones are replayed; not run on a "
        "device yet",
    ),
)


LINEAR: dict[str, Any] = {"op": "pack_linear", "packed": True}


def linears(find: Find) -> tuple[Kernel, ...]:
    """Rows of `pack_linear`. Activations in 8 bits are packed by a kernel of ours, launched as `find` says."""
    return (
        Kernel(
            name="aiter-a8w8",
            build=BuildFor("linears", "build_aiter_a8w8", find),
            arch=INSTINCT,
            dtypes=SIXTEEN_BITS,
            formats=("int8", "int8_static", "fp8", "fp8_tensor", "fp8_static"),
            needs=("aiter", "triton"),
            refuse=first(refuse_rows, refuse("gemm_a8w8")),
            notes=f"Composable Kernel's product, by AITER, with scales of rows and outputs; {REHEARSED}",
            **LINEAR,
        ),
        Kernel(
            name="aiter-block",
            build=BuildFor("linears", "build_aiter_block", find),
            arch=INSTINCT,
            dtypes=SIXTEEN_BITS,
            formats=("fp8_block",),
            needs=("aiter", "triton"),
            refuse=first(refuse_blocks, refuse("gemm_a8w8_blockscale")),
            notes=f"Composable Kernel's product, by AITER, with scales of 128 x 128 and 1 x 128; {REHEARSED}",
            **LINEAR,
        ),
        Kernel(
            name="aiter-a4w4",
            build=BuildFor("linears", "build_aiter_a4w4", find),
            arch=("gfx950",),
            dtypes=("bfloat16",),
            formats=("mxfp4",),
            needs=("aiter", "triton"),
            refuse=first(refuse_blocks, refuse("gemm_a4w4", "per_1x32_f4_quant_hip", "shuffle_weight", "e8m0_shuffle")),
            notes=f"AITER's product of MXFP4 by MXFP4; it packs the activations, too; {REHEARSED}",
            **LINEAR,
        ),
        Kernel(
            name="scaled-mm",
            build=BuildFor("linears", "build_scaled_mm", find),
            arch=FNUZ + OCP,
            dtypes=("bfloat16",),
            formats=("fp8", "fp8_tensor", "fp8_static"),
            needs=("triton",),
            refuse=refuse_rows,
            notes=f"hipBLASLt's product, inside torch; in e4m3fnuz on gfx942, whose weights are brought into it; "
            f"{REHEARSED}",
            **LINEAR,
        ),
        Kernel(
            name="block-scaled-mm",
            build=BuildFor("linears", "build_mx", find),
            arch=("gfx950",),
            dtypes=SIXTEEN_BITS,
            formats=("mxfp8", "mxfp4"),
            needs=("triton",),
            refuse=refuse_mx,
            notes=f"hipBLASLt's product, inside torch, from ROCm 7.0 on; torch packs the activations; {REHEARSED}",
            **LINEAR,
        ),
    )


def layers(find: Find) -> tuple[Kernel, ...]:
    """The two halves of a decoder layer in 8 bits, with the vendor's products between kernels of ours."""
    ways: dict[str, dict[str, Any]] = {
        "aiter": {
            "name": "aiter-a8w8",
            "arch": INSTINCT,
            "dtypes": SIXTEEN_BITS,
            "formats": ("int8", "fp8"),
            "needs": ("aiter", "triton"),
            "refuse": first(refuse_rows, refuse("gemm_a8w8")),
        },
        "scaled_mm": {
            "name": "scaled-mm",
            "arch": FNUZ + OCP,
            "dtypes": ("bfloat16",),
            "formats": ("fp8",),
            "needs": ("triton",),
            "refuse": refuse_rows,
        },
    }
    halves = {
        "project": (IN_PROJECT, PROJECT),
        "finish": (IN_FINISH, "rows between the ops are in 8 bits, packed by the norm and the gate"),
    }
    return tuple(
        Kernel(
            op=op,
            build=BuildFor("linears", f"build_{way}_{op}", find),
            fuses=fuses,
            notes=f"{notes}; {'AITER' if way == 'aiter' else 'hipBLASLt'} multiplies; {REHEARSED}",
            **row,
        )
        for way, row in ways.items()
        for op, (fuses, notes) in halves.items()
    )
