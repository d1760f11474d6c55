"""Intel GPUs, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from cosmos3_triton.rows import (
    SIXTEEN_BITS,
    attention_rows,
    origin,
    refuse_unscaled,
    row_wise_rows,
    sixteen_bit_rows,
    uneven,
)
from cosmos3_triton.tables import Table, table

from cosmos3_core.contract import RECIPES, Ask, Backend, Device, Kernel, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible, versions

from .devices import CEILINGS, KNOWN

# Intel's names for the GPUs of an IP version (major, minor).
CHIPS = {
    (12, 55): "acm-g10",
    (12, 56): "acm-g11",
    (12, 57): "acm-g12",
    (12, 60): "pvc",
    (12, 61): "pvc-vg",
    (12, 70): "mtl-u",
    (12, 71): "mtl-h",
    (12, 74): "arl-h",
    (20, 1): "bmg-g21",
    (20, 2): "bmg-g31",
    (20, 4): "lnl-m",
    (30, 0): "ptl-h",
    (30, 1): "ptl-u",
}
INTEGRATED = ("mtl", "arl", "lnl", "ptl")
"""How the names of the chips start that share the host's memory. Torch tells it itself from 2.13 on."""
WITH_MATRICES = ("pvc", "bmg-g21", "bmg-g31", "lnl-m")
"""Xe-HPC and Xe2, whose matrix units and loads of blocks Intel's Triton uses."""
XE2_ON = ("bmg-g21", "bmg-g31", "lnl-m", "ptl-h", "ptl-u")
"""Xe2 and Xe3, for which the wheels of vllm-xpu-kernels have attention."""
LAUNCHES = Path(__file__).parent / "launches" / "xe.toml"
INTERPRETED = "interpreted, never compiled for or run on a device yet"
REHEARSED = "rehearsed on a CPU, not run on a device yet"
VLLM, ARK = "vllm_xpu_kernels", "auto_round_kernel"
"""The modules of the packages vllm-xpu-kernels and auto-round-lib."""
IPEX = "intel-extension-for-pytorch"
FIRST_GRAPHS = (2, 13)
"""The torch whose XPUGraph this package is written for."""


def find_table(arch: str, device: str | None = None) -> Table:
    """As cosmos3_triton.tables.table, with this package's launches."""
    return table(arch, device, LAUNCHES)


def chip(architecture: int) -> str:
    """The name behind SYCL's architecture number: the IP version (10 bits major, 8 minor, 14 revision), then 8 bits."""
    version = architecture >> 30 & 0x3FF, architecture >> 22 & 0xFF
    return CHIPS.get(version, f"xe-{version[0]}.{version[1]}")


def _ended() -> str:
    """What to know of IPEX, where it is installed."""
    if (found := versions(IPEX).get(IPEX)) is None:
        return ""
    return (
        f"; {IPEX} {found}, which is installed, is not what is missing: it ended at torch 2.8, and torch itself has "
        f"what it brought; pip uninstall {IPEX}"
    )


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.xpu is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without XPU; "
            f"install an XPU build of torch, see pytorch.org/get-started{_ended()}"
        )
    check_visible(torch.xpu.is_available(), "GPU", "Intel", "sycl-ls")
    gpus = [torch.xpu.get_device_properties(index) for index in range(torch.xpu.device_count())]
    first, arch = gpus[0], chip(gpus[0].architecture)
    return Device(
        arch=arch,
        name=first.name,
        count=alike([(gpu.architecture, gpu.name) for gpu in gpus]),
        memory=first.total_memory,
        unified=getattr(first, "is_integrated_gpu", arch.startswith(INTEGRATED)),
        versions={"driver": first.driver_version, "torch": torch.__version__, "oneapi": torch.version.xpu}
        | versions("vllm-xpu-kernels", "auto-round-lib", IPEX)
        | origin(arch, first.name, find_table),
    )


@dataclass(frozen=True)
class Build:
    """A row's `build`: what `name` in a module of this package is, or where it is a function to call, `made`, makes."""

    module: str
    name: str
    made: bool = False

    def __call__(self, device: Device) -> Any:
        found = getattr(import_module(f".{self.module}", __package__), self.name)
        return found() if self.made else found


def refuse_wide(ask: Ask) -> str | None:
    return f"takes head dims up to 576, not {ask.head_dim}" if ask.head_dim > 576 else None


def refuse_vllm_fa(ask: Ask) -> str | None:
    if ask.head_dim not in (128, 256):
        return f"its wheels have a log-sum-exp for head dims 128 and 256, not {ask.head_dim}"
    return None


def refuse_ark(ask: Ask) -> str | None:
    return None if ask.head_dim in (64, 96, 128, 192) else f"takes head dims 64, 96, 128 and 192, not {ask.head_dim}"


def refuse_groups(ask: Ask) -> str | None:
    return uneven(ask, 32)


def refuse_8_bits(ask: Ask) -> str | None:
    return refuse_unscaled(ask) or uneven(ask, 16, 16)


def refuse_blocks(ask: Ask) -> str | None:
    return uneven(ask, 128, 128) if ask.format == "fp8_block" else uneven(ask, 32, 16)


def refuse_graphs(ask: Ask) -> str | None:
    torch = ask.device.versions.get("torch")
    if torch and tuple(int(part) for part in torch.split(".")[:2]) < FIRST_GRAPHS:
        return f"written for the XPUGraph of torch {FIRST_GRAPHS[0]}.{FIRST_GRAPHS[1]}, and this is torch {torch}"
    return None


# Matrix units of Xe2 have no floats of 8 bits or fewer: oneDNN makes 16-bit ones of them.
LINEAR: dict[str, Any] = {"op": "pack_linear", "dtypes": SIXTEEN_BITS, "packed": True}

ROWS = (
    Kernel(
        op="attention",
        name="vllm-fa",
        build=Build("attention", "build_vllm_fa", made=True),
        arch=XE2_ON,
        dtypes=SIXTEEN_BITS,
        needs=(VLLM,),
        refuse=refuse_vllm_fa,
        notes=f"flash attention of vllm-xpu-kernels, with its own log-sum-exp; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="sdpa",
        build=Build("attention", "sdpa"),
        refuse=refuse_wide,
        notes=f"oneDNN's fused attention, inside torch, which gives no log-sum-exp in inference: one is made beside; "
        f"{REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="ark",
        build=Build("attention", "build_ark", made=True),
        arch=XE2_ON,
        dtypes=SIXTEEN_BITS,
        needs=(ARK,),
        refuse=refuse_ark,
        notes=f"attention of auto-round-lib, with its own log-sum-exp; {REHEARSED}",
    ),
    *(
        replace(row, notes=f"reads two segments where they lie; {INTERPRETED}")
        for row in attention_rows(WITH_MATRICES, find=find_table)
    ),
    Kernel(
        op="gate",
        name="vllm",
        build=Build("vllm", "build_gate", made=True),
        arch=XE2_ON,
        dtypes=SIXTEEN_BITS,
        needs=(VLLM,),
        notes=f"silu_and_mul of vllm-xpu-kernels, one pass; {REHEARSED}",
    ),
    *(replace(row, notes=f"{row.notes}; {INTERPRETED}") for row in row_wise_rows(WITH_MATRICES, find=find_table)),
    Kernel(
        op="rms_norm",
        name="vllm",
        build=Build("vllm", "build_rms_norm", made=True),
        arch=XE2_ON,
        dtypes=SIXTEEN_BITS,
        needs=(VLLM,),
        notes=f"rms_norm of vllm-xpu-kernels after torch's addition; torch's where the weight multiplies before the "
        f"result is rounded; {REHEARSED}",
    ),
    Kernel(
        op="norm_rope",
        name="vllm",
        build=Build("vllm", "build_norm_rope", made=True),
        arch=XE2_ON,
        dtypes=SIXTEEN_BITS,
        needs=(VLLM,),
        notes=f"rms_norm and apply_rotary_emb of vllm-xpu-kernels, two launches for a projection; {REHEARSED}",
    ),
    Kernel(
        op="rms_norm",
        name="torch",
        build=Build("row_wise", "rms_norm"),
        notes=f"torch's rms_norm, one kernel where torch has one; {REHEARSED}",
    ),
    Kernel(
        name="vllm-fp8",
        build=Build("vllm", "build_fp8", made=True),
        arch=XE2_ON,
        formats=("fp8", "fp8a16", "fp8_block", "mxfp8"),
        needs=(VLLM,),
        refuse=refuse_blocks,
        widens=True,
        notes=f"fp8_gemm of vllm-xpu-kernels; in blocks, torch packs the activations; {REHEARSED}",
        **LINEAR,
    ),
    Kernel(
        name="vllm-fp4",
        build=Build("vllm", "build_fp4", made=True),
        arch=XE2_ON,
        formats=("mxfp4",),
        needs=(VLLM,),
        refuse=refuse_blocks,
        widens=True,
        notes=f"fp4_gemm of vllm-xpu-kernels; torch packs the activations; {REHEARSED}",
        **LINEAR,
    ),
    Kernel(
        name="torch-int4",
        build=Build("linear", "INT4"),
        formats=("w4a16", "w4a16_asym", "q4_0"),
        refuse=refuse_groups,
        notes=f"oneDNN's product with int4, inside torch, for groups of multiples of 32; {REHEARSED}",
        **LINEAR,
    ),
    Kernel(
        name="torch-int8",
        build=Build("linear", "INT8"),
        formats=("int8", "int8_static", "int8a16"),
        refuse=refuse_8_bits,
        notes=f"oneDNN's products with int8, inside torch; torch packs the activations; {REHEARSED}",
        **LINEAR,
    ),
    Kernel(
        name="scaled-mm",
        build=Build("linear", "FP8"),
        formats=("fp8", "fp8_tensor", "fp8_static"),
        refuse=refuse_8_bits,
        widens=True,
        notes=f"torch._scaled_mm, which is oneDNN's; torch packs the activations; {REHEARSED}",
        **LINEAR,
    ),
    Kernel(
        op="pack_linear",
        name="ark",
        build=Build("ark", "build", made=True),
        dtypes=("float16",),
        formats=("w4a16", "w4a16_asym", "int8a16"),
        needs=(ARK,),
        refuse=refuse_groups,
        packed=True,
        notes=f"weight-only products of auto-round-lib, which multiplies in fp16; {REHEARSED}",
    ),
    *(
        replace(row, notes=f"{row.notes.split('; ')[0]}; {INTERPRETED}")
        for row in sixteen_bit_rows(WITH_MATRICES, find=find_table)
    ),
    Kernel(
        op="capture",
        name="xpu-graph",
        build=Build("capture", "build_capture", made=True),
        refuse=refuse_graphs,
        fresh=False,
        notes=f"an XPUGraph with memory of its own: the second call is recorded, later ones are replayed; {REHEARSED}",
    ),
    Kernel(
        op="memory",
        name="xpu",
        build=Build("memory", "XpuMemory", made=True),
        notes=f"torch.xpu's allocator; copies are waited for by torch.Event; {REHEARSED}",
    ),
    Kernel(
        op="comm",
        name="xccl",
        build=Build("comm", "XcclComm", made=True),
        notes="oneCCL: sends are posted before receives, uneven parts as one group of them; not run on a device yet",
    ),
)


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(
        name="xpu",
        torch_device="xpu",
        collectives="xccl",
        probe=probe,
        kernels=ROWS,
        ceilings=CEILINGS,
        known=KNOWN,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
