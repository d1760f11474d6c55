"""AMD GPUs, as data. torch calls them "cuda" in its ROCm build, so torch.version tells the two apart."""

from __future__ import annotations

from cosmos3_core.contract import Ask, Attention, Backend, Ceiling, Device, Kernel, Unavailable, hookimpl

AOTRITON = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")
AOTRITON_EXPERIMENTAL = ("gfx1101", "gfx1150", "gfx1151", "gfx1200")
EXPERIMENTAL_SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.hip is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without HIP; "
            "install a ROCm build of torch, see pytorch.org/get-started"
        )
    if not torch.cuda.is_available():
        raise Unavailable("no GPU is visible to the AMD driver; rocminfo says what the driver sees")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    archs = [gpu.gcnArchName.split(":")[0] for gpu in gpus]  # without the feature flags of "gfx942:sramecc+:xnack-"
    alike = [(arch, gpu.name) == (archs[0], gpus[0].name) for arch, gpu in zip(archs, gpus, strict=True)]
    return Device(
        arch=archs[0],
        name=gpus[0].name,
        count=sum(alike),
        memory=gpus[0].total_memory,
        unified=bool(gpus[0].is_integrated),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"torch": torch.__version__, "hip": torch.version.hip}
    try:
        versions["amd-aiter"] = version("amd-aiter")
    except PackageNotFoundError:
        pass
    return versions


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


def refuse_flash(ask: Ask) -> str | None:
    import os

    if ask.head_dim > 256 or ask.head_dim % 8:
        return f"takes head dims up to 256 that are multiples of 8, not {ask.head_dim}"
    if ask.device.arch in AOTRITON_EXPERIMENTAL and os.environ.get(EXPERIMENTAL_SWITCH) != "1":
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
        arch=AOTRITON + AOTRITON_EXPERIMENTAL,
        dtypes=("bfloat16", "float16"),
        refuse=refuse_flash,
        notes="AOTriton's FlashAttention, inside torch; rehearsed, not run on a device yet",
    ),
)

CEILINGS = {
    "MI300X": Ceiling(
        tflops={"bfloat16": 1307.4, "float8": 2614.9},
        bandwidth=5.3e12,
        source="AMD's data sheet of the Instinct MI300X, without sparsity",
    ),
    "MI350X": Ceiling(
        tflops={"bfloat16": 2306.9, "float8": 4613.7},
        bandwidth=8e12,
        source="AMD's data sheet of the Instinct MI350X, without sparsity",
    ),
    "gfx1151": Ceiling(
        tflops={"bfloat16": 36.1},
        bandwidth=2.56e11,
        source="bfloat16: the best GEMM of kabayan/Cosmos3-Nano-gfx1151-benchmark on one Ryzen AI Max+; "
        "bandwidth: AMD's data sheet",
    ),
    "RX 9070": Ceiling(
        tflops={"bfloat16": 145, "float8": 289},
        bandwidth=6.4e11,
        source="AMD's data sheet of the Radeon RX 9070, without sparsity",
    ),
}


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(name="rocm", torch_device="cuda", collectives="nccl", probe=probe, kernels=ROWS, ceilings=CEILINGS)
