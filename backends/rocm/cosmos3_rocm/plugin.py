"""AMD GPUs, as data. torch calls them "cuda" in its ROCm build, so torch.version tells the two apart."""

from __future__ import annotations

from pathlib import Path

from cosmos3_triton.rows import origin

from cosmos3_core.contract import RECIPES, Backend, Device, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible, versions

from . import vendor
from .devices import CEILINGS, KNOWN, TUNING
from .kernels import OURS, find_table


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
    *OURS.attention,
    *OURS.row_wise,
    *vendor.ROW_WISE,
    *vendor.linears(find_table),
    *OURS.linears,
    *vendor.layers(find_table),
    *OURS.layers,
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
