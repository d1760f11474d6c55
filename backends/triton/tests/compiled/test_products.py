"""The quantized products, compiled as they are launched: the matrix instruction each architecture has for the format,
asynchronous loads, and no register spilled."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import triton.language as tl
from conftest import SHARED
from cosmos3_cuda import plugin
from cosmos3_triton import activations, patch_embed, products, rounding, weight_only
from cosmos3_triton.tables import Launch, Table, table
from cosmos3_triton.weight_only import Stored

from cosmos3_core.contract import Ask, Device
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack

TENSOR_CORE = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k(16|32)",
    "sm_89": r"mma\.sync\.aligned\.m16n8k(16|32)",
    "sm_90": r"wgmma\.mma_async\.sync\.aligned",
    "sm_100": r"tcgen05\.mma",
    "sm_120": r"mma\.sync\.aligned\.m16n8k(16|32)",
}
ELEMENTS = {"int8": (r"\.s8\.s8", "i8", tl.int32), "fp8": (r"\.e4m3\.e4m3", "fp8e4nv", tl.float32)}
LAYOUTS = {
    "w4a16_asym": tuple(SHARED),
    "nvfp4a16": ("sm_80", "sm_90", "sm_100"),
    "mxfp8": ("sm_80", "sm_90", "sm_100"),
    "int8a16": ("sm_90",),
    "nf4": ("sm_90",),
}
"""Weights of every kind of code and of scale, and what they are compiled for."""
COMPILED = [(format, arch) for format, archs in LAYOUTS.items() for arch in archs]


def matrix(of: Table, element: str, block: list[int]) -> str:
    """The type of an operand, as `scaled_mm` and `a16_mm` hand it over."""
    return f"tensordesc<{element}[{block[0]},{block[1]}]>" if of.tma else f"*{element}:16"


def loads_ahead(of: Table, ptx: str) -> bool:
    return ("cp.async.bulk.tensor" if of.tma else "cp.async.cg.shared.global") in ptx


def product(compiled, of: Table, kernel: str, run: Launch, element: str, accumulator: tl.dtype):
    """The kernel as it is launched, with scales where the operands have 8 bits."""
    types = {
        "a": matrix(of, element, [run.block_m, run.block_k]),
        "b": matrix(of, element, [run.block_n, run.block_k]),
        "y": matrix(of, "bf16", [run.block_m, run.block_n // 2]),
        "bias_ptr": "*bf16:16",
        "M": "i32",
        "N": "i32:16",
        "K": "i32:16",
    }
    scales = ("scale_a_ptr", "scale_b_ptr")
    types |= {} if element == "bf16" else dict.fromkeys(scales, "*fp32:16")
    constants = dict.fromkeys(scales) if element == "bf16" else {}
    constants |= {
        "BLOCK_M": run.block_m,
        "BLOCK_N": run.block_n,
        "BLOCK_K": run.block_k,
        "GROUP_M": products.GROUP_M,
        "TMA": of.tma,
        "ACCUMULATOR": accumulator,
        "DTYPE": tl.bfloat16,
        "GATED": kernel.startswith("gated"),
        "ADDS": kernel == products.ADDING,
    }
    options = {"num_warps": run.warps, "num_stages": run.stages}
    return compiled(products._scaled_mm, of.arch, types, constants, **options)


@pytest.mark.parametrize("format", ELEMENTS)
def test_scaled_product(compiled, arch, format):
    instruction, element, accumulator = ELEMENTS[format]
    row = next(row for row in plugin.ROWS if row.name == "triton-scaled-mm")
    device = Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False)
    if reason := row.refuse(Ask(op=row.op, device=device, dtype="bfloat16", format=format)):
        pytest.skip(reason)
    core = TENSOR_CORE[arch]
    if arch == "sm_100" and format == "fp8":
        instruction = r"kind::f8f6f4"
    elif arch == "sm_100":  # its tensor memory takes no int8: Ampere's instruction
        core = TENSOR_CORE["sm_80"]
    of = table(arch)
    for kernel in ("scaled_mm", products.ADDING, "gated_mm_8bit"):
        for run in of.launches.get(kernel, ()):
            found = product(compiled, of, kernel, run, element, accumulator)
            assert re.search(rf"{core}\S*{instruction}", found.ptx)
            assert loads_ahead(of, found.ptx) and not found.spilled


def test_product_in_16_bits_that_applies_the_gate(compiled):
    of, kernel = table("sm_90"), "gated_mm_16bit"
    found = product(compiled, of, kernel, of.launch(kernel), "bf16", tl.float32)
    assert re.search(TENSOR_CORE["sm_90"] + r"\S*bf16", found.ptx)
    assert loads_ahead(of, found.ptx) and not found.spilled


@pytest.mark.parametrize(("format", "arch"), COMPILED)
def test_product_in_16_bits_with_packed_weights(compiled, arch, format):
    """As many launches as an architecture has for numbers of rows; of some layouts only the last."""
    of, weight = table(arch), stored(format)
    runs = of.launches["a16_mm"]
    for run in runs if format == "w4a16_asym" else runs[-1:]:
        types, constants = read_by(weight)
        types |= {
            "x": matrix(of, "bf16", [run.block_m, 64]),
            "bias_ptr": "*bf16:16",
            "y_ptr": "*fp32:16" if run.split > 1 else "*bf16:16",
            "M": "i32",
            "stride_x": "i32:16",
        }
        constants |= {
            "BLOCK_M": run.block_m,
            "BLOCK_N": run.block_n,
            "SPLIT": run.split,
            "DTYPE": tl.bfloat16,
            "TMA": of.tma,
        }
        found = compiled(weight_only._a16_mm, arch, types, constants, num_warps=run.warps, num_stages=run.stages)
        assert re.search(TENSOR_CORE[arch], found.ptx) and loads_ahead(of, found.ptx) and not found.spilled


def test_sum_of_parts(compiled):
    types = {"parts_ptr": "*fp32:16", "by_row_ptr": "*fp32:16", "bias_ptr": "*bf16:16", "y_ptr": "*bf16:16"}
    constants = {"SPLIT": 4, "BLOCK": weight_only.SUMMED}
    found = compiled(weight_only._sum_parts, "sm_90", types | {"M": "i32", "N": "i32:16"}, constants, num_warps=4)
    assert "ld.global.v4.b32" in found.ptx and not found.spilled


@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "first_clean"])
def test_patch_embed(compiled, arch, clean):
    """At Nano's size: accesses of 16 bytes, but to the latent."""
    run = table(arch).launch("patch_embed")
    types = dict.fromkeys(("weight_ptr", "bias_ptr", "timestep_ptr", "y_ptr"), "*bf16:16")
    types |= {"latent_ptr": "*fp32:16"} | ({"noisy_ptr": "*i1"} if clean else {})
    constants = dict(OUT=4096, CHANNELS=48, PATCH=2, BLOCK_M=run.block_m, BLOCK_N=run.block_n, BLOCK_K=run.block_k)
    constants |= {"by_column": 1} | ({} if clean else {"noisy_ptr": None})
    options = dict(num_warps=run.warps, num_stages=run.stages)
    found = compiled(
        patch_embed._patch_embed, arch, types | dict.fromkeys(patch_embed.SIZES, "i32"), constants, **options
    )
    assert re.search(TENSOR_CORE[arch], found.ptx) and not found.spilled
    assert set(re.findall(r"\bst\.global\S*", found.ptx)) == {"st.global.v4.b32"}
    assert "cp.async.cg.shared.global" in found.ptx  # of the weight


@pytest.mark.parametrize(("format", "arch"), COMPILED)
def test_copy_in_16_bits(compiled, arch, format):
    types, constants = read_by(stored(format))
    types, constants = types | {"w_ptr": "*bf16:16"}, constants | {"ROWS": weight_only.DEQUANTIZED_ROWS}
    found = compiled(weight_only._dequantize, arch, types, constants | {"order_ptr": None}, num_warps=4)
    assert "st.global.v4.b32" in found.ptx and not found.spilled


@pytest.mark.parametrize(
    ("format", "arch"), [(name, "sm_90") for name in ("nvfp4", "int8")] + [("mxfp8", arch) for arch in list(SHARED)[:4]]
)
def test_activations_after_a_round_trip(compiled, arch, format):
    """Also where there are no floats of 8 bits; whole rows are as wide as any."""
    meaning = FORMATS[format]
    group, rows, width = (meaning.group, 32, 256) if meaning.group else (32768, 1, 32768)
    types = {"x_ptr": "*bf16:16", "y_ptr": "*bf16:16", "M": "i32", "K": "i32:16", "stride_x": "i32:16"}
    constants = {"ROWS": rows, "WIDTH": width, "GROUP": group, "ELEMENT": meaning.element, "SCALE": meaning.scale}
    constants |= {"MOST": float(meaning.of_elements.most), "TOP": meaning.of_elements.top}
    whole = {"types": {"whole_ptr": "*fp32:16"}} if meaning.tensor_scale else {"constants": {"whole_ptr": None}}
    types, constants = types | whole.get("types", {}), constants | whole.get("constants", {})
    found = compiled(rounding._round_trip, arch, types, constants, num_warps=8 if meaning.group else 16)
    assert re.search(r"ld\.global\.v[48]\.b32", found.ptx) and not found.spilled


@pytest.mark.parametrize("format", ELEMENTS)
def test_quantized_rows(compiled, arch, format):
    """Loads of 16 bytes, and a row as wide as any stays in registers between its largest element and its rounding."""
    if format == "fp8" and arch == "sm_80":
        pytest.skip("has no fp8")
    element = ELEMENTS[format][1]
    types = {"x_ptr": "*bf16:16", "values_ptr": f"*{element}:16", "scales_ptr": "*fp32:16"}
    types |= {"stride_x": "i32:16", "K": "i32:16"}
    absent, given = {"given_ptr": None}, {"given_ptr": "*fp32:16"}
    for taken, left_out in ((types, absent), *([(types | given, {})] if arch == "sm_90" else [])):
        found = compiled(activations._quantize_rows, arch, taken, left_out | {"BLOCK": 32768}, num_warps=16)
        assert re.search(r"ld\.global\.v[48]\.b32", found.ptx) and not found.spilled


def test_quantized_tiles(compiled):
    types = {"x_ptr": "*bf16:16", "values_ptr": "*fp8e4nv:16", "scales_ptr": "*fp32:16", "M": "i32", "written": "i32"}
    types |= {"K": "i32:16", "stride_x": "i32:16"}
    found = compiled(activations._quantize_tiles, "sm_90", types, {"ROWS": 32, "GROUP": 128}, num_warps=4)
    assert re.search(r"ld\.global\.v[48]\.b32", found.ptx) and not found.spilled


@pytest.mark.parametrize("arch", ["sm_100", "sm_120"])
@pytest.mark.parametrize("format", ["mxfp8", "nvfp4"])
def test_quantized_blocks(compiled, arch, format):
    meaning = FORMATS[format]
    types = {"x_ptr": "*bf16:16", "values_ptr": "*fp8e4nv:16", "scales_ptr": "*u8:16", "M": "i32", "K": "i32:16"}
    types |= {"stride_x": "i32:16", "column_tiles": "i32"}
    constants = {"ROWS": 32, "WIDTH": 256, "GROUP": meaning.group, "SCALE": meaning.scale, "tensor_scale_ptr": None}
    if meaning.tensor_scale:
        types |= {"values_ptr": "*u8:16", "tensor_scale_ptr": "*fp32:16"}
        del constants["tensor_scale_ptr"]
    found = compiled(activations._quantize_blocks, arch, types, constants, num_warps=4)
    assert re.search(r"ld\.global\.v[48]\.b32", found.ptx) and not found.spilled


@functools.cache
def stored(format: str) -> Stored:
    return Stored.of(pack(torch.ones(256, 256), FORMATS[format], weight=True))


def read_by(weight: Stored) -> tuple[dict[str, str], dict]:
    """Types of what the kernels read of a weight of Nano's, and the constants that say how."""
    elements = {torch.float32: "*fp32:16", torch.float16: "*fp16:16", torch.uint8: "*u8:16"}
    parts = {name: getattr(weight, name) for name in ("codes", "scales", "zeros", "by_row")}
    types = {f"{name}_ptr": elements[part.dtype] for name, part in parts.items() if part is not None}
    absent = {f"{name}_ptr": None for name, part in parts.items() if part is None}
    meaning = {name: value for name, value in weight_only._meaning(weight).items() if name != "groups"}
    return types | dict.fromkeys(("N", "K", "width", "groups"), "i32:16"), absent | meaning
