"""AMD GPUs, as data. torch calls them "cuda" in its ROCm build, so torch.version tells the two apart."""

from __future__ import annotations

from pathlib import Path

from cosmos3_triton.rows import origin

from cosmos3_core.contract import RECIPES, Ask, Attention, Backend, Device, Kernel, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible, versions

from .devices import CEILINGS, KNOWN
from .kernels import OURS, find_table

# As AOTriton's isArchExperimentallySupported has it: 0.11 in torch 2.11 and 2.12, 0.12 or newer since.
AOTRITON = ("gfx90a", "gfx942", "gfx950", "gfx1201")
AOTRITON_SINCE_TORCH_2_13 = ("gfx1100", "gfx1151")
AOTRITON_EXPERIMENTAL = ("gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1152", "gfx1153", "gfx1200")
EXPERIMENTAL_SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


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


def build_aiter_fa(device: Device) -> Attention:
    from . import attention

    return attention.build_aiter_fa()


def build_sdpa_flash(device: Device) -> Attention:
    from .attention import sdpa_flash

    return sdpa_flash


def refuse_aiter_fa(ask: Ask) -> str | None:
    if ask.head_dim != 128:
        return f"its assembly is for head dim 128, not {ask.head_dim}"
    return None


def experimental(device: Device) -> bool:
    """Whether torch's AOTriton wants its switch set for this architecture."""
    torch = tuple(int(part) for part in device.versions["torch"].split(".")[:2])
    return device.arch in AOTRITON_EXPERIMENTAL or (device.arch in AOTRITON_SINCE_TORCH_2_13 and torch < (2, 13))


def refuse_flash(ask: Ask) -> str | None:
    import os

    if ask.head_dim > 256 or ask.head_dim % 8:
        return f"takes head dims up to 256 that are multiples of 8, not {ask.head_dim}"
    if experimental(ask.device) and os.environ.get(EXPERIMENTAL_SWITCH) != "1":
        return f"AOTriton calls its kernels for {ask.device.arch} experimental; {EXPERIMENTAL_SWITCH}=1 allows them"
    return None


ROWS = (
    Kernel(
        op="attention",
        name="aiter-fa",
        build=build_aiter_fa,
        arch=("gfx942", "gfx950"),
        dtypes=("bfloat16",),
        needs=("aiter",),
        refuse=refuse_aiter_fa,
        notes="AITER's FlashAttention (package amd-aiter), compiled at first use; rehearsed, not run on a device yet",
    ),
    Kernel(
        op="attention",
        name="sdpa-flash",
        build=build_sdpa_flash,
        arch=AOTRITON + AOTRITON_SINCE_TORCH_2_13 + AOTRITON_EXPERIMENTAL,
        dtypes=("bfloat16", "float16"),
        refuse=refuse_flash,
        notes="AOTriton's FlashAttention, inside torch; rehearsed, not run on a device yet",
    ),
    *OURS.attention,
    *OURS.row_wise,
    *OURS.linears,
    *OURS.layers,
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
        known=KNOWN,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
