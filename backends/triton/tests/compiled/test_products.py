"""The quantized products, compiled as they are launched: the matrix instruction each architecture has for the format,
asynchronous loads, and no register spilled."""

from __future__ import annotations

import re

import pytest
import triton.language as tl
from cosmos3_cuda import plugin
from cosmos3_triton import activations, patch_embed, products, weight_only
from cosmos3_triton.tables import Launch, Table, table

from cosmos3_core.contract import Ask, Device
from cosmos3_core.quant import FORMATS

TENSOR_CORE = {
    "sm_80": r"mma\.sync\.aligned\.m16n8k(16|32)",
    "sm_89": r"mma\.sync\.aligned\.m16n8k(16|32)",
    "sm_90": r"wgmma\.mma_async\.sync\.aligned",
    "sm_100": r"tcgen05\.mma",
    "sm_120": r"mma\.sync\.aligned\.m16n8k(16|32)",
}
ELEMENTS = {"int8": (r"\.s8\.s8", "i8", tl.int32), "fp8": (r"\.e4m3\.e4m3", "fp8e4nv", tl.float32)}
A16 = ("w4a16", "mxfp4a16", "nvfp4a16")


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


@pytest.mark.parametrize("format", A16)
def test_weight_only_product(compiled, arch, format):
    of = table(arch)
    for run in of.launches["a16_mm"]:
        types = weight_types(format) | {
            "x": matrix(of, "bf16", [run.block_m, 64]),
            "bias_ptr": "*bf16:16",
            "y_ptr": "*bf16:16",
            "M": "i32",
            "stride_x": "i32:16",
        }
        constants = weight_constants(format) | {
            "BLOCK_M": run.block_m,
            "BLOCK_N": run.block_n,
            "TMA": of.tma,
        }
        found = compiled(weight_only._a16_mm, arch, types, constants, num_warps=run.warps, num_stages=run.stages)
        assert re.search(TENSOR_CORE[arch], found.ptx) and loads_ahead(of, found.ptx) and not found.spilled


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


def test_dequantize(compiled, arch):
    """Of the format whose scales take most to decode."""
    types = weight_types("nvfp4a16") | {"w_ptr": "*bf16:16"}
    constants = weight_constants("nvfp4a16") | {"ROWS": weight_only.DEQUANTIZED_ROWS}
    found = compiled(weight_only._dequantize, arch, types, constants, num_warps=4)
    assert "st.global.v4.b32" in found.ptx and not found.spilled


@pytest.mark.parametrize("format", ELEMENTS)
def test_quantized_rows(compiled, arch, format):
    """Loads of 16 bytes, and a row as wide as any stays in registers between its largest element and its rounding."""
    if format == "fp8" and arch == "sm_80":
        pytest.skip("has no fp8")
    element = ELEMENTS[format][1]
    types = {"x_ptr": "*bf16:16", "values_ptr": f"*{element}:16", "scales_ptr": "*fp32:16"}
    types |= {"stride_x": "i32:16", "K": "i32:16"}
    found = compiled(activations._quantize_rows, arch, types, {"BLOCK": 32768}, num_warps=16)
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


def weight_types(format: str) -> dict[str, str]:
    types = {"codes_ptr": "*u8:16", "scales_ptr": "*fp32:16" if FORMATS[format].scale == "fp32" else "*u8:16"}
    if FORMATS[format].tensor_scale:
        types["tensor_scale_ptr"] = "*fp32:16"
    return types | {"N": "i32:16", "K": "i32:16"}


def weight_constants(format: str) -> dict:
    absent = {} if FORMATS[format].tensor_scale else {"tensor_scale_ptr": None}
    return absent | weight_only._meaning(FORMATS[format])
