"""Intel GPUs, as data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cosmos3_triton.rows import attention_rows, origin, row_wise_rows
from cosmos3_triton.tables import Table, table

from cosmos3_core.contract import RECIPES, Ask, Attention, Backend, Ceiling, Device, Kernel, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible

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
LAUNCHES = Path(__file__).parent / "launches" / "xe.toml"
INTERPRETED = "interpreted, never compiled for or run on a device yet"


def find_table(arch: str, device: str | None = None) -> Table:
    """As cosmos3_triton.tables.table, with this package's launches."""
    return table(arch, device, LAUNCHES)


def chip(architecture: int) -> str:
    """The name behind SYCL's architecture number: the IP version (10 bits major, 8 minor, 14 revision), then 8 bits."""
    version = architecture >> 30 & 0x3FF, architecture >> 22 & 0xFF
    return CHIPS.get(version, f"xe-{version[0]}.{version[1]}")


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.xpu is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without XPU; "
            "install an XPU build of torch, see pytorch.org/get-started"
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
        | origin(arch, first.name, find_table),
    )


def build_sdpa(device: Device) -> Attention:
    from .attention import sdpa

    return sdpa


def refuse_wide(ask: Ask) -> str | None:
    return f"takes head dims up to 576, not {ask.head_dim}" if ask.head_dim > 576 else None


ROWS = (
    Kernel(
        op="attention",
        name="sdpa",
        build=build_sdpa,
        refuse=refuse_wide,
        notes="oneDNN's fused attention, inside torch; rehearsed, not run on a device yet",
    ),
    *(
        replace(row, notes=f"reads two segments where they lie; {INTERPRETED}")
        for row in attention_rows(WITH_MATRICES, find=find_table)
    ),
    *(replace(row, notes=f"{row.notes}; {INTERPRETED}") for row in row_wise_rows(WITH_MATRICES, find=find_table)),
)

CEILINGS = {
    "B580 Graphics": Ceiling(
        tflops={"bfloat16": 116.5, "int8": 233},
        bandwidth=4.56e11,
        source="Intel's data sheet of the Arc B580: 233 TOPS in int8, half of that in bfloat16",
    ),
    "B60 Graphics": Ceiling(
        tflops={"bfloat16": 98.5, "int8": 197},
        bandwidth=4.56e11,
        source="Intel's data sheet of the Arc Pro B60: 197 TOPS in int8, half of that in bfloat16",
    ),
}


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(
        name="xpu",
        torch_device="xpu",
        collectives="xccl",
        probe=probe,
        kernels=ROWS,
        ceilings=CEILINGS,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
