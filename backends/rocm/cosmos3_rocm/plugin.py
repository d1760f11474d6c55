"""AMD GPUs, as data. torch calls them "cuda" in its ROCm build, so torch.version tells the two apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cosmos3_triton.rows import attention_rows, origin, row_wise_rows
from cosmos3_triton.tables import Table, table

from cosmos3_core.contract import RECIPES, Backend, Device, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible, versions

from . import vendor
from .devices import CEILINGS, KNOWN, TUNING

FAMILIES = {
    "gfx90a": "cdna",
    "gfx942": "cdna",
    "gfx950": "cdna",
    "gfx1100": "rdna3",
    "gfx1151": "rdna3",
    "gfx1201": "rdna4",
}
"""Which file in LAUNCHES has the launches of our kernels, by architecture: those for which the tests compile them."""
LAUNCHES = Path(__file__).parent / "launches"
REHEARSED = "compiled and interpreted, not run on a device yet"


def find_table(arch: str, device: str | None = None) -> Table:
    """As cosmos3_triton.tables.table, with what this package knows of the architecture."""
    return table(arch, device, LAUNCHES / f"{FAMILIES[arch]}.toml" if arch in FAMILIES else None)


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.hip is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without HIP; "
            "install a ROCm build of torch, see pytorch.org/get-started"
        )
    check_visible(torch.cuda.is_available(), "GPU", "AMD", "rocminfo")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    archs = [gpu.gcnArchName.split(":")[0] for gpu in gpus]  # without the feature flags of "gfx942:sramecc+:xnack-"
    return Device(
        arch=archs[0],
        name=gpus[0].name,
        count=alike([(arch, gpu.name) for arch, gpu in zip(archs, gpus, strict=True)]),
        memory=gpus[0].total_memory,
        unified=bool(gpus[0].is_integrated),
        versions={"torch": torch.__version__, "hip": torch.version.hip}
        | versions("amd-aiter")
        | origin(archs[0], gpus[0].name, find_table),
    )


ROWS = (
    *vendor.ATTENTION,
    *(
        replace(row, notes=f"reads two segments where they lie; {REHEARSED}")
        for row in attention_rows(tuple(FAMILIES), find=find_table)
    ),
    *(replace(row, notes=f"{row.notes}; {REHEARSED}") for row in row_wise_rows(tuple(FAMILIES), find=find_table)),
    *vendor.ROW_WISE,
    *vendor.linears(find_table),
    *vendor.CAPTURE,
)


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(
        name="rocm",
        torch_device="cuda",
        collectives="nccl",
        probe=probe,
        kernels=ROWS,
        ceilings=CEILINGS,
        tuning=TUNING,
        known=KNOWN,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
