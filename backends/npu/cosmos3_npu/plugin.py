"""Ascend NPUs, as data. torch knows them once torch_npu is imported."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cosmos3_core.contract import RECIPES, Ask, Backend, Delegate, Device, Kernel, Unavailable, hookimpl
from cosmos3_core.contract.probing import alike, check_visible

from .devices import CEILINGS, KNOWN

FAMILIES = ("Ascend910B", "Ascend910C", "Ascend950")
ASCEND_910, ASCEND_950 = FAMILIES[:2], FAMILIES[2:]
LASER_TOKENS = 2048
"""From as many queries on MindIE-SD takes its laser attention; fewer it hands on, with a warning."""
WIDEST = 65535
"""The vendor's products and attention take no longer sides."""
FIRST_GRAPHS = 8, 1
"""The first CANN whose page of aclmdlRICaptureBegin names the 910B and the 910C; the 950's is 9.0."""


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


@dataclass(frozen=True)
class Build:
    """A row's `build`: the function `name` of a module of this package, or what it makes for the device (`makes`)."""

    module: str
    name: str
    makes: bool = False

    def __call__(self, device: Device) -> Any:
        found = getattr(import_module(f".{self.module}", __package__), self.name)
        return found(device) if self.makes else found


def refuse_wide(ask: Ask) -> str | None:
    return f"takes head dims up to 768, not {ask.head_dim}" if ask.head_dim > 768 else None


def refuse_infer(ask: Ask) -> str | None:
    if ask.head_dim > 512 or ask.head_dim % 16:
        return f"takes head dims up to 512 that are multiples of 16, not {ask.head_dim}"
    if ask.heads * ask.head_dim >= WIDEST:
        return f"takes fewer than {WIDEST} channels of all heads, not {ask.heads * ask.head_dim}"
    if ask.kv_heads and ask.heads > 64 * ask.kv_heads:
        return f"at most 64 heads of queries share one of keys, not {ask.heads} of {ask.kv_heads}"
    return None


def refuse_laser(ask: Ask) -> str | None:
    if set_by := os.environ.get("MINDIE_SD_FA_TYPE"):
        return f"MINDIE_SD_FA_TYPE is set, and MindIE-SD would take {set_by} whatever is asked"
    return refuse_wide(ask)


def refuse_mx_attention(ask: Ask) -> str | None:
    return None if ask.head_dim in (64, 128) else f"takes head dims of 64 and 128, not {ask.head_dim}"


def refuse_graphs(ask: Ask) -> str | None:
    cann = ask.device.versions.get("cann", "")
    found = re.match(r"(\d+)\.(\d+)", cann)
    if found and (int(found[1]), int(found[2])) < FIRST_GRAPHS:
        return f"CANN records streams from {FIRST_GRAPHS[0]}.{FIRST_GRAPHS[1]} on, and this is CANN {cann}"
    if ask.device.arch in ASCEND_950:
        return "no graph takes npu_fusion_attention, as torch_npu documents, and it attends in 16 bits on this chip"
    if os.environ.get("TASK_QUEUE_ENABLE") == "2":
        return "TASK_QUEUE_ENABLE is 2, with which torch_npu records nothing"
    return None


def refuse_norm_rope(ask: Ask) -> str | None:
    if ask.head_dim >= 896 or ask.head_dim % 2:
        return f"rotates even head dims below 896, not {ask.head_dim}"
    if ask.heads >= 1000:
        return f"rotates fewer than 1000 heads, not {ask.heads}"
    return None


def refuse_product(ask: Ask) -> str | None:
    """Why a layer's matrices cannot be multiplied in the format."""
    query, both = ask.heads * ask.head_dim, 2 * ask.kv_heads * ask.head_dim
    up = ask.inner * (2 if ask.activation == "silu" else 1)
    outputs = (("hidden", ask.hidden), ("query, key and value", query + both), ("MLP's", up))
    for name, side in outputs:
        if side > WIDEST:
            return f"its products take sides up to {WIDEST}, and this model's {name} width is {side}"
        if ask.format.startswith("w4a16") and side % 8:
            return f"packs outputs by eight, and this model's {name} width is {side}"
    if ask.format == "mxfp4a8":
        for name, side in (("hidden", ask.hidden), ("query", query), ("MLP's", ask.inner)):
            if side % 64:
                return f"multiplies FP8 and FP4 by 64 features, and this model's {name} width is {side}"
    return None


def refuse_project(ask: Ask) -> str | None:
    return refuse_product(ask) or refuse_norm_rope(ask)


FLOATS = ("float32", "bfloat16", "float16")
SIXTEEN_BITS = ("bfloat16", "float16")
REHEARSED = "rehearsed, not run on a device yet"
HALF: dict[str, Any] = {
    "op": "project",
    "build": Build("layers", "build_project", makes=True),
    "fuses": ("rms_norm", "norm_rope", "pack_linear"),
}
OTHER_HALF: dict[str, Any] = {
    "op": "finish",
    "build": Build("layers", "build_finish", makes=True),
    "fuses": ("rms_norm", "pack_linear", "gate"),
}
INT8: dict[str, Any] = {"name": "int8", "arch": FAMILIES, "dtypes": SIXTEEN_BITS, "formats": ("int8",)}
MX: dict[str, Any] = {
    "name": "mx",
    "arch": ASCEND_950,
    "dtypes": SIXTEEN_BITS,
    "formats": ("mxfp8", "mxfp4", "mxfp4a8"),
}
DUAL_LEVEL: dict[str, Any] = {
    "name": "dual-level",
    "arch": ASCEND_950,
    "dtypes": SIXTEEN_BITS,
    "formats": ("mxfp4_dual",),
}

ROWS = (
    Kernel(
        op="attention",
        name="infer",
        build=Build("attention", "infer"),
        arch=ASCEND_910,
        dtypes=SIXTEEN_BITS,
        refuse=refuse_infer,
        notes=f"npu_fused_infer_attention_score; the text of one branch is its shared prefix; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="fusion",
        build=Build("attention", "fusion"),
        arch=FAMILIES,
        dtypes=SIXTEEN_BITS,
        refuse=refuse_wide,
        notes=f"npu_fusion_attention without transposes; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="sdpa",
        build=Build("attention", "sdpa"),
        arch=FAMILIES,
        dtypes=SIXTEEN_BITS,
        refuse=refuse_wide,
        notes="torch's scaled_dot_product_attention, which torch_npu fuses; causal calls and those with a log-sum-exp "
        f"are fusion's; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="laser",
        build=Build("attention", "build_laser", makes=True),
        arch=ASCEND_910,
        dtypes=SIXTEEN_BITS,
        needs=("mindiesd",),
        refuse=refuse_laser,
        delegates=(Delegate("infer", LASER_TOKENS),),
        notes="MindIE-SD's, in fp16 inside, with keys copied for heads that share them; causal calls and those with "
        f"a log-sum-exp are fusion's; {REHEARSED}",
    ),
    Kernel(
        op="attention",
        name="mx",
        build=Build("attention", "mx"),
        arch=ASCEND_950,
        dtypes=SIXTEEN_BITS,
        formats=("mxfp8",),
        refuse=refuse_mx_attention,
        notes="npu_dynamic_mx_quant and npu_fused_infer_attention_score_v2; causal calls and those with a log-sum-exp "
        f"are fusion's, in 16 bits; {REHEARSED}",
    ),
    Kernel(
        op="rms_norm",
        name="fused",
        build=Build("rows", "build_rms_norm", makes=True),
        arch=FAMILIES,
        dtypes=FLOATS,
        notes=f"npu_rms_norm and npu_add_rms_norm; {REHEARSED}",
    ),
    Kernel(
        op="norm_rope",
        name="fused",
        build=Build("rows", "build_norm_rope", makes=True),
        arch=FAMILIES,
        dtypes=FLOATS,
        refuse=refuse_norm_rope,
        notes=f"npu_rms_norm; npu_apply_rotary_pos_emb for two at once, else npu_rotary_mul; {REHEARSED}",
    ),
    Kernel(
        op="gate",
        name="swiglu",
        build=Build("rows", "gate"),
        arch=FAMILIES,
        dtypes=FLOATS,
        notes=f"npu_swiglu; squared relu is torch's; {REHEARSED}",
    ),
    Kernel(
        op="norm_silu",
        name="fused",
        build=Build("rows", "norm_silu"),
        arch=FAMILIES,
        dtypes=FLOATS,
        notes=f"npu_rms_norm, then silu; {REHEARSED}",
    ),
    Kernel(
        op="pack_linear",
        name="matmul",
        build=Build("linears", "pack_linear"),
        arch=FAMILIES,
        dtypes=FLOATS,
        notes=f"torch's linear, which torch_npu hands to the vendor's product; {REHEARSED}",
    ),
    Kernel(
        op="pack_linear",
        name="int8",
        build=Build("linears", "pack_linear"),
        arch=FAMILIES,
        dtypes=SIXTEEN_BITS,
        formats=("int8",),
        refuse=refuse_product,
        packed=True,
        notes=f"npu_dynamic_quant and npu_quant_matmul; {REHEARSED}",
    ),
    Kernel(
        op="pack_linear",
        name="mx",
        build=Build("linears", "pack_linear"),
        arch=ASCEND_950,
        dtypes=SIXTEEN_BITS,
        formats=MX["formats"],
        refuse=refuse_product,
        packed=True,
        notes=f"npu_dynamic_mx_quant and npu_quant_matmul; {REHEARSED}",
    ),
    Kernel(
        op="pack_linear",
        name="dual-level",
        build=Build("linears", "pack_linear"),
        arch=ASCEND_950,
        dtypes=SIXTEEN_BITS,
        formats=("mxfp4_dual",),
        refuse=refuse_product,
        packed=True,
        notes=f"npu_dual_level_quant_matmul; weights lie in FRACTAL_NZ and cannot be moved; {REHEARSED}",
    ),
    Kernel(
        op="pack_linear",
        name="weight-only",
        build=Build("linears", "pack_linear"),
        arch=ASCEND_910,
        dtypes=("bfloat16",),
        formats=("w4a16", "w4a16_asym", "int8a16"),
        refuse=refuse_product,
        packed=True,
        notes=f"npu_weight_quant_batchmatmul, scales in bf16; {REHEARSED}",
    ),
    Kernel(
        op="project",
        name="folded",
        build=Build("layers", "build_folded_project", makes=True),
        arch=ASCEND_950,
        dtypes=SIXTEEN_BITS,
        fuses=HALF["fuses"],
        refuse=refuse_norm_rope,
        notes=f"the norm's weight lies in the matrix; q and k are normed and rotated as one; {REHEARSED}",
    ),
    Kernel(
        op="finish",
        name="folded",
        build=Build("layers", "build_folded_finish", makes=True),
        arch=ASCEND_950,
        dtypes=SIXTEEN_BITS,
        fuses=("rms_norm", "pack_linear"),
        notes=f"the norm's weight lies in the matrix; {REHEARSED}",
    ),
    Kernel(
        refuse=refuse_project,
        packed=True,
        notes=f"norms round once; {REHEARSED}",
        **HALF | DUAL_LEVEL,
    ),
    Kernel(
        refuse=refuse_product,
        packed=True,
        notes=f"the norm rounds once; {REHEARSED}",
        **OTHER_HALF | DUAL_LEVEL | {"fuses": ("rms_norm", "pack_linear")},
    ),
    Kernel(refuse=refuse_project, packed=True, notes=f"the norm's rows come in int8; {REHEARSED}", **HALF | INT8),
    Kernel(
        refuse=refuse_product,
        packed=True,
        notes=f"norm and gate hand rows in int8 to the products; {REHEARSED}",
        **OTHER_HALF | INT8,
    ),
    Kernel(refuse=refuse_project, packed=True, notes=f"the norm's rows come in the format; {REHEARSED}", **HALF | MX),
    Kernel(
        refuse=refuse_product,
        packed=True,
        notes=f"norm and gate hand rows in the format to the products; {REHEARSED}",
        **OTHER_HALF | MX,
    ),
    Kernel(
        op="capture",
        name="npu-graph",
        build=Build("capture", "build_capture", makes=True),
        arch=FAMILIES,
        refuse=refuse_graphs,
        fresh=False,
        notes="an NPUGraph with memory of its own: the second call is recorded, later ones are replayed; collectives "
        f"and npu_fusion_attention inside are an error; {REHEARSED}: no device has replayed one",
    ),
    Kernel(
        op="memory",
        name="npu",
        build=Build("memory", "memory", makes=True),
        notes="torch.npu's allocator; events are torch's, and where processes share a run a copy waits for the stream "
        f"before it; {REHEARSED}",
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
        ceilings=CEILINGS,
        recipes=Path(__file__).parent / RECIPES,
        api=2,
    )
