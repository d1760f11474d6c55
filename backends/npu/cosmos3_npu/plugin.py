"""Ascend NPUs, as data. torch knows them once torch_npu is imported."""

from __future__ import annotations

from pathlib import Path

from cosmos3_core.contract import RECIPES, Ask, Attention, Backend, Device, Kernel, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible

from .devices import KNOWN

FAMILIES = ("Ascend910B", "Ascend910C", "Ascend950")


def family(soc: str) -> str:
    """The architecture of a chip as CANN names it: Ascend910B3 is an Ascend910B, Ascend910_9391 an Ascend910C. With no
    number behind it, Ascend910B is a chip of the first generation, which has no bfloat16."""
    if soc == "Ascend910B":
        return "Ascend910"
    if soc.startswith("Ascend910_93"):
        return "Ascend910C"
    return next((name for name in FAMILIES if soc.startswith(name)), soc)


def probe() -> Device:
    """The first NPU that torch_npu sees, and how many there are of its kind. Raises Unavailable."""
    from importlib.util import find_spec

    if find_spec("torch_npu") is None:
        raise Unavailable("torch_npu is not installed; pip install the torch-npu that matches your torch and CANN")
    try:
        import torch
        import torch_npu
    except (ImportError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise Unavailable(f"torch_npu does not load ({said}); install CANN and source its set_env.sh") from error
    npu = torch.get_device_module("npu")
    check_visible(npu.is_available(), "NPU", "Ascend", "npu-smi info")
    socs = [npu.get_device_name(index) for index in range(npu.device_count())]
    return Device(
        arch=family(socs[0]),
        name=socs[0],
        count=alike(socs),
        memory=npu.get_device_properties(0).total_memory,
        unified=False,
        versions={
            "driver": torch_npu.npu.utils.get_cann_version("DRIVER"),
            "torch": torch.__version__,
            "torch-npu": torch_npu.__version__,
            "cann": torch_npu.npu.utils.get_cann_version("CANN"),
        },
    )


def build_sdpa(device: Device) -> Attention:
    from .attention import sdpa

    return sdpa


def build_fusion(device: Device) -> Attention:
    from .attention import fusion

    return fusion


def refuse_wide(ask: Ask) -> str | None:
    return f"takes head dims up to 768, not {ask.head_dim}" if ask.head_dim > 768 else None


ROWS = (
    Kernel(
        op="attention",
        name="sdpa",
        build=build_sdpa,
        arch=FAMILIES,
        dtypes=("bfloat16", "float16"),
        refuse=refuse_wide,
        notes="torch's scaled_dot_product_attention; rehearsed, not run on a device yet",
    ),
    Kernel(
        op="attention",
        name="fusion",
        build=build_fusion,
        arch=FAMILIES,
        dtypes=("bfloat16", "float16"),
        refuse=refuse_wide,
        notes="torch_npu.npu_fusion_attention without transposes; rehearsed, not run on a device yet",
    ),
)


@hookimpl
def cosmos3_backend() -> Backend:
    return Backend(
        name="npu",
        torch_device="npu",
        collectives="hccl",
        probe=probe,
        kernels=ROWS,
        known=KNOWN,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
