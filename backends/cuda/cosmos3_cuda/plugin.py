"""NVIDIA GPUs, as data."""

from __future__ import annotations

from cosmos3_core.contract import Ask, Attention, Backend, Ceiling, Device, Kernel, Unavailable, hookimpl

AMPERE_ON = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121")
HALF = ("bfloat16", "float16")
FIRST_RIGHT_CUDNN = (9, 15, 1)
"""Older ones are wrong where a sequence length is no multiple of 128 (pytorch/pytorch#169849)."""


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.cuda is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without CUDA; "
            "install a CUDA build of torch, see pytorch.org/get-started"
        )
    if not torch.cuda.is_available():
        raise Unavailable("no GPU is visible to the NVIDIA driver; nvidia-smi says what the driver sees")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    archs = [f"sm_{gpu.major}{gpu.minor}" for gpu in gpus]
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

    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if driver := _driver():
        versions["driver"] = driver
    cudnn = torch.backends.cudnn.version()
    if cudnn is not None:
        versions["cudnn"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    try:
        versions["fa3-fwd"] = version("fa3-fwd")
    except PackageNotFoundError:
        pass
    return versions


def _driver() -> str | None:
    """The driver's version as nvidia-smi tells it; None where there is none (Jetson). Torch does not know it."""
    import shutil
    import subprocess

    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def build_sdpa_cudnn(device: Device) -> Attention:
    from .attention import sdpa_cudnn

    return sdpa_cudnn


def build_sdpa_flash(device: Device) -> Attention:
    from .attention import sdpa_flash

    return sdpa_flash


def build_fa3(device: Device) -> Attention:
    from . import attention

    return attention.build_fa3()


def refuse_fa3(ask: Ask) -> str | None:
    if ask.head_dim not in (64, 96, 128, 192, 256):
        return f"built for head dims 64, 96, 128, 192 and 256, not {ask.head_dim}"
    return None


def refuse_cudnn(ask: Ask) -> str | None:
    found = ask.device.versions.get("cudnn")
    if found is None:
        return "torch was built without cuDNN"
    if tuple(int(part) for part in found.split(".")) < FIRST_RIGHT_CUDNN:
        return f"cuDNN {found} is wrong at some sequence lengths (pytorch#169849); 9.15.1 or newer is needed"
    if ask.head_dim > 128 or ask.head_dim % 8:
        return f"takes head dims up to 128 that are multiples of 8, not {ask.head_dim}"
    if ask.device.arch == "sm_100" and ask.kv_heads < 8:
        return f"wrong on sm_100 with fewer than 8 key heads (pytorch#193893), and this model has {ask.kv_heads}"
    return None


def refuse_flash(ask: Ask) -> str | None:
    if ask.head_dim > 256 or ask.head_dim % 8:
        return f"takes head dims up to 256 that are multiples of 8, not {ask.head_dim}"
    return None


ROWS = (
    Kernel(
        op="attention",
        name="fa3",
        build=build_fa3,
        arch=("sm_90",),
        dtypes=("bfloat16",),
        needs=("fa3_fwd_interface",),
        refuse=refuse_fa3,
        notes="FlashAttention-3 (package fa3-fwd), faster than cuDNN for video; passes the kit on one H100",
    ),
    Kernel(
        op="attention",
        name="sdpa-cudnn",
        build=build_sdpa_cudnn,
        arch=AMPERE_ON,
        dtypes=HALF,
        refuse=refuse_cudnn,
        notes="cuDNN's attention, inside torch; passes the kit on one H100",
    ),
    Kernel(
        op="attention",
        name="sdpa-flash",
        build=build_sdpa_flash,
        arch=AMPERE_ON,
        dtypes=HALF,
        refuse=refuse_flash,
        notes="FlashAttention-2, inside torch; passes the kit on one H100",
    ),
)

CEILINGS = {
    "A100": Ceiling(tflops={"bfloat16": 312}, bandwidth=2.039e12, source="NVIDIA's data sheet of the A100 80GB SXM"),
    "H100": Ceiling(
        tflops={"bfloat16": 799, "float8": 1979},
        bandwidth=3.35e12,
        source="bfloat16: a GEMM measured on one H100 80GB SXM with torch 2.11; the rest: NVIDIA's data sheet of it",
    ),
    "B200": Ceiling(
        tflops={"bfloat16": 2250, "float8": 4500},
        bandwidth=8e12,
        source="NVIDIA's data sheet of the DGX B200, an eighth of it, without sparsity",
    ),
    "RTX 5090": Ceiling(
        tflops={"bfloat16": 209.5, "float8": 419},
        bandwidth=1.792e12,
        source="NVIDIA's RTX Blackwell white paper: GeForce RTX 5090, accumulating in fp32, without sparsity",
    ),
    "GB10": Ceiling(
        tflops={"bfloat16": 96.9},
        bandwidth=2.73e11,
        source="bfloat16: a GEMM measured on one GB10 by kabayan/Cosmos3-Nano-gfx1151-benchmark; "
        "bandwidth: NVIDIA's data sheet of the DGX Spark",
    ),
}


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(name="cuda", torch_device="cuda", collectives="nccl", probe=probe, kernels=ROWS, ceilings=CEILINGS)
