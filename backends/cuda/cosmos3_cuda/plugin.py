"""NVIDIA GPUs, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cosmos3_triton.rows import (
    FINISH,
    IN_FINISH,
    IN_PROJECT,
    PROJECT,
    SIXTEEN_BITS,
    attention_rows,
    layer_rows,
    linear_rows,
    origin,
    refuse_8_bits,
    refuse_unscaled,
    row_wise_rows,
    sixteen_bit_rows,
    uneven,
)
from cosmos3_triton.tables import table

from cosmos3_core.contract import (
    RECIPES,
    Ask,
    Attention,
    Backend,
    Capture,
    Delegate,
    Device,
    Kernel,
    PackFinish,
    PackLinear,
    PackProject,
    Unavailable,
    hookimpl,
)
from cosmos3_core.contract.probing import alike, check_visible, versions

from .devices import CEILINGS, KNOWN, TUNING

AMPERE_ON = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121")
ADA_ON = AMPERE_ON[3:]
WITHOUT_INT8 = ("sm_100", "sm_103", "sm_110")
"""Their tensor cores multiply integers slowly, or only through the instructions of older ones."""
WITH_INT8 = tuple(arch for arch in AMPERE_ON if arch not in WITHOUT_INT8)
FA3_FROM = 2048
"""Queries from which on FlashAttention-3 is faster than cuDNN on an H100. It takes the host 0.25 ms to call and cuDNN
0.1 ms; in a CUDA graph the two are equally fast at 1,024 queries."""
FIRST_RIGHT_CUDNN = (9, 15, 1)
"""Older versions are wrong where a sequence length is no multiple of 128 (pytorch/pytorch#169849)."""


def probe() -> Device:
    """The first GPU that torch sees, and how many there are of its kind. Raises Unavailable."""
    import torch

    if torch.version.cuda is None:
        raise Unavailable(
            f"torch {torch.__version__} was built without CUDA; "
            "install a CUDA build of torch, see pytorch.org/get-started"
        )
    check_visible(torch.cuda.is_available(), "GPU", "NVIDIA", "nvidia-smi")
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    arch = f"sm_{gpus[0].major}{gpus[0].minor}"
    return Device(
        arch=arch,
        name=gpus[0].name,
        count=alike([(gpu.major, gpu.minor, gpu.name) for gpu in gpus]),
        memory=gpus[0].total_memory,
        unified=bool(gpus[0].is_integrated),
        versions=_versions() | origin(arch, gpus[0].name),
    )


def _versions() -> dict[str, str]:
    import torch

    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    if driver := driver_version():
        found["driver"] = driver
    cudnn = torch.backends.cudnn.version()
    if cudnn is not None:
        found["cudnn"] = f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"
    return found | versions("fa3-fwd")


def driver_version() -> str | None:
    """The driver's version as nvidia-smi tells it; None where there is none (Jetson). Torch does not know it."""
    import shutil
    import subprocess

    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def build_sdpa_cudnn(device: Device) -> Attention:
    from .attention import sdpa_cudnn

    return sdpa_cudnn


def build_sdpa_flash(device: Device) -> Attention:
    from .attention import sdpa_flash

    return sdpa_flash


def build_fa3(device: Device) -> Attention:
    from .fa3 import FlashAttention3

    return FlashAttention3()


def build_fa3_fp8(device: Device) -> Attention:
    from .fa3 import FlashAttention3InFP8

    return FlashAttention3InFP8(table(device.arch, device.name))


def build_fa4(device: Device) -> Attention:
    from . import attention

    return attention.build_fa4()


def build_scaled_mm(device: Device) -> PackLinear:
    from . import linear

    return linear.build_scaled_mm(table(device.arch, device.name))


def build_cublas_finish(device: Device) -> PackFinish:
    from cosmos3_triton import layers

    return layers.build_finish(table(device.arch, device.name))


def build_scaled_mm_project(device: Device) -> PackProject:
    from cosmos3_triton import layers

    from .linear import torch_scaled_mm

    return layers.build_project(table(device.arch, device.name), torch_scaled_mm)


def build_scaled_mm_finish(device: Device) -> PackFinish:
    from cosmos3_triton import layers

    from .linear import torch_scaled_mm

    return layers.build_finish(table(device.arch, device.name), torch_scaled_mm)


def build_block_scaled_mm(device: Device) -> PackLinear:
    from . import linear

    return linear.build_block_scaled_mm()


def refuse_scaled_mm(ask: Ask) -> str | None:
    if ask.format != "fp8_block":
        return refuse_unscaled(ask) or uneven(ask, 16, 16)
    if ask.device.arch != "sm_90":
        return (
            f"torch multiplies blocks of 128 x 128 on sm_90 only, and this device is {ask.device.arch}; fp8 is served"
        )
    return uneven(ask, 128, 128)


def refuse_block_scaled_mm(ask: Ask) -> str | None:
    return uneven(ask, 32, 16)


def build_cuda_graph(device: Device) -> Capture:
    from .capture import build_capture

    return build_capture()


def refuse_fa3_fp8(ask: Ask) -> str | None:
    if ask.head_dim not in (64, 128, 256):
        return f"takes head dims 64, 128 and 256 in FP8, not {ask.head_dim}"
    return None


def refuse_fa3(ask: Ask) -> str | None:
    if ask.head_dim not in (64, 96, 128, 192, 256):
        return f"built for head dims 64, 96, 128, 192 and 256, not {ask.head_dim}"
    return None


def refuse_fa4(ask: Ask) -> str | None:
    if ask.head_dim > 128 or ask.head_dim % 8:
        return f"takes head dims up to 128 that are multiples of 8, not {ask.head_dim}"
    return None


def cudnn_fault(device: Device) -> str | None:
    """Why torch's cuDNN is not to be used for attention."""
    found = device.versions.get("cudnn")
    if found is None:
        return "torch was built without cuDNN"
    if tuple(int(part) for part in found.split(".")) < FIRST_RIGHT_CUDNN:
        return f"cuDNN {found} is wrong at some sequence lengths (pytorch#169849); 9.15.1 or newer is needed"
    return None


def refuse_cudnn(ask: Ask) -> str | None:
    if fault := cudnn_fault(ask.device):
        return fault
    if ask.head_dim > 128 or ask.head_dim % 8:
        return f"takes head dims up to 128 that are multiples of 8, not {ask.head_dim}"
    if ask.device.arch == "sm_100" and ask.kv_heads < 8:
        return f"wrong on sm_100 with fewer than 8 key heads (pytorch#193893), and this model has {ask.kv_heads}"
    return None


def refuse_flash(ask: Ask) -> str | None:
    if ask.head_dim > 256 or ask.head_dim % 8:
        return f"takes head dims up to 256 that are multiples of 8, not {ask.head_dim}"
    return None


SCALED_MM: dict[str, Any] = {
    "arch": ("sm_89", "sm_90", "sm_100", "sm_103"),
    "dtypes": ("bfloat16",),
    "formats": ("fp8",),
    "needs": ("triton",),
    "refuse": refuse_8_bits(ADA_ON),
}
"""Halves of a layer with torch's products."""

ROWS = (
    Kernel(
        op="attention",
        name="fa3",
        build=build_fa3,
        arch=("sm_90",),
        dtypes=("bfloat16",),
        needs=("fa3_fwd_interface", "triton"),
        refuse=refuse_fa3,
        delegates=(Delegate(to="sdpa-cudnn", below=FA3_FROM),),
        notes="FlashAttention-3 (package fa3-fwd), faster than cuDNN for video",
    ),
    Kernel(
        op="attention",
        name="fa3-fp8",
        build=build_fa3_fp8,
        arch=("sm_90",),
        dtypes=("bfloat16",),
        formats=("fp8",),
        needs=("fa3_fwd_interface", "triton"),
        refuse=refuse_fa3_fp8,
        prepares=True,
        notes="FP8, except the text's values and causal calls; a kernel of ours adds the text's segment to the media's",
    ),
    Kernel(
        op="attention",
        name="fa4",
        build=build_fa4,
        arch=("sm_100", "sm_103"),
        dtypes=SIXTEEN_BITS,
        needs=("flash_attn.cute",),
        refuse=refuse_fa4,
        notes="FlashAttention-4 (package flash-attn-4), written from its signature: never run",
    ),
    Kernel(
        op="attention",
        name="sdpa-cudnn",
        build=build_sdpa_cudnn,
        arch=AMPERE_ON,
        dtypes=SIXTEEN_BITS,
        refuse=refuse_cudnn,
        notes="cuDNN's attention, inside torch",
    ),
    Kernel(
        op="attention",
        name="sdpa-flash",
        build=build_sdpa_flash,
        arch=AMPERE_ON,
        dtypes=SIXTEEN_BITS,
        refuse=refuse_flash,
        notes="FlashAttention-2, inside torch",
    ),
    *attention_rows(AMPERE_ON, int8=WITH_INT8, fp8=ADA_ON),
    *row_wise_rows(AMPERE_ON),
    Kernel(
        op="pack_linear",
        name="scaled-mm",
        build=build_scaled_mm,
        arch=("sm_89", "sm_90", "sm_100", "sm_103"),
        dtypes=("bfloat16",),
        formats=("fp8", "fp8_tensor", "fp8_static", "fp8_block"),
        needs=("triton",),
        refuse=refuse_scaled_mm,
        packed=True,
        notes="inside torch: cuBLASLt on Hopper, CUTLASS elsewhere",
    ),
    *linear_rows(AMPERE_ON, fp8=ADA_ON),
    Kernel(
        op="pack_linear",
        name="block-scaled-mm",
        build=build_block_scaled_mm,
        arch=("sm_100", "sm_103", "sm_120", "sm_121"),
        dtypes=("bfloat16",),
        formats=("mxfp8", "nvfp4"),
        needs=("triton",),
        refuse=refuse_block_scaled_mm,
        packed=True,
        notes="inside torch: Blackwell's own block-scaled products; never run",
    ),
    *sixteen_bit_rows(AMPERE_ON),
    Kernel(
        op="project",
        name="scaled-mm",
        build=build_scaled_mm_project,
        fuses=IN_PROJECT,
        notes=f"{PROJECT}; the product is torch's",
        **SCALED_MM,
    ),
    Kernel(
        op="finish",
        name="cublas",
        build=build_cublas_finish,
        arch=("sm_90",),
        dtypes=SIXTEEN_BITS,
        needs=("triton",),
        fuses=("pack_linear", "gate"),
        notes="cuBLAS adds to the residual stream; the MLP's first product and its gate in one, by our own",
    ),
    Kernel(
        op="finish",
        name="scaled-mm",
        build=build_scaled_mm_finish,
        fuses=IN_FINISH,
        notes=f"{FINISH}; these are our own, other products torch's",
        **SCALED_MM,
    ),
    *layer_rows(AMPERE_ON, fp8=ADA_ON),
    Kernel(
        op="capture",
        name="cuda-graph",
        build=build_cuda_graph,
        fresh=False,
        notes="a CUDA graph with memory of its own: the second call is recorded, later ones are replayed",
    ),
)


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(
        name="cuda",
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
