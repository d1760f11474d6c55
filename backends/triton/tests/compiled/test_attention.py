"""Attention, compiled as it is launched: the matrix instruction each architecture has, asynchronous loads, and main
loops in which no register is spilled and no weight changes threads."""

from __future__ import annotations

import math
import re

import pytest
import triton.language as tl
from cosmos3_cuda import plugin
from cosmos3_triton import attention, attention_8bit
from cosmos3_triton.attention_8bit import EightBit
from cosmos3_triton.tables import BEFORE_TMA, table

from cosmos3_core.contract import Device

D = 128
ROWS = ("triton-int8", "triton-fp8")
NAMES = {tl.int8: "i8", tl.float8e4nv: "fp8e4nv"}
POINTER = ("*bf16:16", "i32:16", "i32:16", "i32:16")
MMA = r"mma\.sync\.aligned\.m16n8k\d+"
BF16 = {"sm_80": MMA, "sm_89": MMA, "sm_90": r"wgmma\.mma_async", "sm_100": r"tcgen05\.mma", "sm_120": MMA}
SASS = {
    ("sm_80", tl.int8): "IMMA",
    ("sm_89", tl.int8): "IMMA",
    ("sm_90", tl.int8): "IGMMA",
    ("sm_120", tl.int8): "IMMA",
}
SASS |= {("sm_89", tl.float8e4nv): "QMMA", ("sm_90", tl.float8e4nv): "QGMMA", ("sm_120", tl.float8e4nv): "QMMA"}
SASS |= {("sm_100", tl.float8e4nv): "UTCQMMA", ("sm_90", tl.bfloat16): "HGMMA", ("sm_100", tl.bfloat16): "UTCHMMA"}
SASS |= {(arch, tl.bfloat16): "HMMA" for arch in ("sm_80", "sm_89", "sm_120")}
REDUCTIONS = 8
"""Two rows a thread, a largest and a sum of each over four threads."""


def of_row(name: str, arch: str) -> EightBit:
    """What cuda's row of that name is on the architecture; skips the test where there is none."""
    row = next(row for row in plugin.ROWS if row.name == name)
    if arch not in row.arch:
        pytest.skip(f"{name} is not for {arch}")
    return row.build(Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False))


def rows(arch: str, block: int):
    return POINTER if arch in BEFORE_TMA else f"tensordesc<bf16[1,{block},1,{D}]>"


def matrix(arch: str, element: tl.dtype, block: tuple[int, int]) -> str:
    name = NAMES[element]
    return f"*{name}:16" if arch in BEFORE_TMA else f"tensordesc<{name}[{block[0]},{block[1]}]>"


def loads_ahead(arch: str, ptx: str) -> bool:
    return ("cp.async.cg.shared.global" if arch in BEFORE_TMA else "cp.async.bulk.tensor") in ptx


def loops(sass: str) -> list[list[str]]:
    """The instructions between a label and a branch back to it, shortest first."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)]
    back = [(int(to.group(1), 16), at) for at, text in lines if (to := re.search(r"\bBRA\b.*(0x[0-9a-f]+)", text))]
    found = [[text for at, text in lines if first <= at <= last] for first, last in back if first < last]
    return sorted(found, key=len)


def main_loop(sass: str, instruction: str) -> list[str]:
    """The shortest loop with products and exponentials."""
    return next(loop for loop in loops(sass) if all(any(word in t for t in loop) for word in (instruction, "MUFU.EX2")))


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
def test_flash(compiled, arch, causal):
    run = table(arch).launch("flash")
    keys = rows(arch, run.block_n)
    types = {"q_x": rows(arch, run.block_m), "k0_x": keys, "v0_x": keys, "k1_x": keys, "v1_x": keys}
    types |= {"out_x": rows(arch, run.block_m), "lse_ptr": "*fp32:16"}
    types |= dict.fromkeys(("queries", "length0", "length1", "groups"), "i32") | {"scale": "fp32"}
    constants = dict(M=run.block_m, N=run.block_n, D=D, CAUSAL=causal)
    constants["TMA"] = arch not in BEFORE_TMA
    built = compiled(attention._flash, arch, types, constants, num_warps=run.warps, num_stages=run.stages)
    assert re.search(BF16[arch], built.ptx)
    assert loads_ahead(arch, built.ptx)
    loop = main_loop(built.sass, SASS[arch, tl.bfloat16])
    assert causal or not any(re.search(r"\b(LDL|STL)\b", text) for text in loop), "registers are spilled"


@pytest.mark.parametrize("name", ROWS)
def test_eight_bit(compiled, arch, name):
    op = of_row(name, arch)
    run, keys, values, text = op.launch, op.keys.triton, op.values.triton, rows(arch, op.launch.text)
    types = {"q_x": rows(arch, run.block_m), "k_x": text, "v_x": text, "out_x": rows(arch, run.block_m)}
    types |= {"k8_x": matrix(arch, keys, (run.block_n, D)), "v8_x": matrix(arch, values, (D, run.block_n))}
    types |= {"channel_ptr": "*fp32:16", "rotation_ptr": "*bf16:16", "lse_ptr": "*fp32:16"}
    types |= dict.fromkeys(("queries", "length0", "length1", "groups"), "i32") | {"scale": "fp32"}
    constants = dict(M=run.block_m, N0=run.text, N1=run.block_n, D=D)
    constants |= dict(K_TYPE=keys, K_MOST=op.keys.most, V_TYPE=values, V_TOP=math.log2(op.values.most))
    constants["TMA"] = arch not in BEFORE_TMA
    launch = dict(num_warps=run.warps, num_stages=run.stages)
    built = compiled(attention_8bit._flash_8bit, arch, types, constants, **launch)
    assert loads_ahead(arch, built.ptx)
    loop = main_loop(built.sass, SASS[arch, keys])
    assert any(SASS[arch, values] in text for text in loop)
    assert not any(re.search(r"\b(LDL|STL)\b", text) for text in loop), "registers are spilled"
    shuffles = sum("SHFL" in text for text in loop)
    assert shuffles <= REDUCTIONS, "more than a row's largest score and its sum are passed between threads"


def check_traffic(built):
    """Elements are read and written 16 bytes at a time."""
    assert re.search(r"LDG\.E\.128|LDGSTS\.E\.BYPASS\.128", built.sass)
    assert not re.search(r"(LDG|STG)\.E\.U(8|16)\b", built.sass)


INPUTS = {"k_x": POINTER, "v_x": POINTER, "rotation_ptr": "*bf16:16", "ranges_ptr": "*fp32:16", "length": "i32"}


def test_ranges(compiled, arch):
    run = table(arch).launch("ranges")
    constants, launch = dict(N=run.block_n, D=D), dict(num_warps=run.warps, num_stages=2)
    built = compiled(attention_8bit._ranges, arch, INPUTS | {"chunk": "i32"}, constants, **launch)
    check_traffic(built)


@pytest.mark.parametrize("name", ROWS)
def test_quantize(compiled, arch, name):
    op = of_row(name, arch)
    types = INPUTS | {"k8_ptr": f"*{NAMES[op.keys.triton]}:16", "v8_ptr": f"*{NAMES[op.values.triton]}:16"}
    types |= {"channel_ptr": "*fp32:16", "blocks": "i32"}
    constants = dict(N=op.launch.block_n, D=D, CHUNKS=attention_8bit.CHUNKS, RUN=attention_8bit.RUN)
    constants |= dict(K_MOST=op.keys.most, V_MOST=op.values.most)
    built = compiled(attention_8bit._quantize, arch, types, constants, num_warps=8, num_stages=2)
    check_traffic(built)
    assert not built.spilled
