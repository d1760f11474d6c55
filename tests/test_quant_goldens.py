"""Formats to the bit as public packages have them: scales, codes, zero points and what they mean. The files are made by
scripts/quant_goldens.py, and no package is needed here.

Where a package differs on purpose, the test says what from and why: the smallest scale that it stores, or the scale of
a block of zeros.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos3_core.quant import FORMATS, layouts
from cosmos3_core.quant.codes import from_bytes
from cosmos3_core.quant.numerics import Packed, pack, unpack

GOLDENS = Path(__file__).parent / "goldens" / "quant"
GROUP = 32  # of integer weights in the files
INT4, INT4_ASYM = (replace(FORMATS[name], group=GROUP) for name in ("w4a16", "w4a16_asym"))
ROWS = pytest.mark.parametrize("rows", ["ordinary", "extreme"])


@cache
def golden(package: str) -> dict[str, Tensor]:
    with np.load(GOLDENS / f"{package}.npz") as held:
        return {name: torch.from_numpy(held[name]) for name in held.files if name != "version"}


def inputs(rows: str, every: int = 1) -> Tensor:
    return golden("inputs")[rows][:: every if rows == "ordinary" else 1]


def same(found: Tensor, expected: Tensor) -> None:
    """Bit for bit, whatever the dtype is called."""
    if found.dtype.itemsize == 1:
        found, expected = found.view(torch.uint8), expected.contiguous().view(torch.uint8)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert torch.equal(found, expected), f"{int((found != expected).sum())} of {found.numel()} differ"


# gguf --------------------------------------------------------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q8_0"])
def test_gguf_packs_the_same_blocks(name, rows):
    held, found = golden("gguf"), pack(inputs(rows, 4), FORMATS[name], weight=True)
    read = layouts.llama(FORMATS[name], held[f"{name}_{rows}"])
    assert found.tensors().keys() == read.tensors().keys()
    for part, expected in read.tensors().items():
        same(getattr(found, part), expected)
    same(unpack(found), held[f"{name}_{rows}_values"])


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_gguf_super_blocks_mean_the_same(name):
    held = golden("gguf")
    read = layouts.llama(FORMATS[name], held[name])
    assert read.shape == (4, 512)
    same(unpack(read), held[f"{name}_values"])


def test_gguf_blocks_that_are_cut():
    with pytest.raises(ValueError, match="q4_k has blocks of 144 bytes, which do not divide 143"):
        layouts.llama(FORMATS["q4_k"], torch.zeros(2, 143, dtype=torch.uint8))


# auto-round, GPTQ and AWQ --------------------------------------------------------------------------------------------


@ROWS
@pytest.mark.parametrize(("kind", "format"), [("sym", INT4), ("asym", INT4_ASYM)])
def test_auto_round_int4(kind, format, rows):
    """It stores no scale below 1e-5: a block of zeros means the same, and tiny numbers become zeros there."""
    held, found = golden("auto-round"), pack(inputs(rows), format, weight=True)
    usual = found.scales.abs() >= 1e-5
    assert bool(usual.all()) == (rows == "ordinary")
    same(found.scales[usual], held[f"{kind}_{rows}_scale"][usual])
    if kind == "asym":
        same(found.zeros.float()[usual], held[f"{kind}_{rows}_zero"][usual])
    values, expected = (t.unflatten(-1, (-1, GROUP)) for t in (unpack(found), held[f"{kind}_{rows}_values"]))
    same(values[usual], expected[usual])
    zero = found.scales == 0
    assert not values[zero].any() and not expected[zero].any() and bool(zero.any()) == (rows == "extreme")


@ROWS
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_auto_round_mx(name, rows):
    """The exponent of a block of zeros has no meaning; there it is that of 1."""
    held, found = golden("auto-round"), pack(inputs(rows), FORMATS[name], weight=True)
    used = found.scales != 0
    same((found.scales.int() - 127)[used], held[f"{name}_{rows}_exponent"].int()[used])
    same(unpack(found), held[f"{name}_{rows}_values"])


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("kind", "format"), [("sym", INT4), ("asym", INT4_ASYM)])
def test_gptq_words(kind, format, layout):
    """Codes, scales and zero points of layers that auto-round packed; there they are multiplied in fp16. The zero
    points of "gptq" are stored less one."""
    held = {name.removeprefix(f"{kind}_{layout}_"): value for name, value in golden("auto-round").items()}
    words = held["qweight"], held["scales"], held["qzeros"]
    read = layouts.gptq(format, *words, less_one=layout == "gptq")
    found = pack(inputs("ordinary"), replace(format, scale="fp16"), weight=True)
    same(found.values, read.values)
    same(found.scales.float(), read.scales)
    assert (read.zeros is None) == (kind == "sym")
    if kind == "asym":
        same(found.zeros, read.zeros)
        wrong = layouts.gptq(format, *words, less_one=layout != "gptq")
        assert not torch.equal(unpack(wrong), unpack(read))
    else:
        with pytest.raises(ValueError, match="zero points of 8 alone, and there are [79]"):
            layouts.gptq(format, *words, less_one=layout != "gptq")
    same(unpack(read).half().float(), held["values"])


def test_awq_words():
    held = golden("auto-round")
    read = layouts.awq(INT4_ASYM, held["awq_qweight"], held["awq_scales"], held["awq_qzeros"])
    found = pack(inputs("ordinary"), replace(INT4_ASYM, scale="fp16"), weight=True)
    same(found.values, read.values)
    same(found.zeros, read.zeros)
    same(unpack(read).half().float(), held["awq_values"])


def test_gptq_act_order():
    """Features whose groups are mixed: each has the scale and the zero point of its own group."""
    held = golden("auto-round")
    words = (held["asym_gptq_qweight"], held["asym_gptq_scales"], held["asym_gptq_qzeros"])
    plain = layouts.gptq(INT4_ASYM, *words)
    g_idx = (torch.arange(64) // GROUP)[torch.randperm(64, generator=torch.Generator().manual_seed(1))].int()
    read = layouts.gptq(INT4_ASYM, *words, g_idx=g_idx)
    codes = from_bytes(plain.values, 4).float()
    exact = (codes - plain.zeros.float()[:, g_idx]) * plain.scales[:, g_idx]
    same(unpack(read), exact)
    in_order = layouts.gptq(INT4_ASYM, *words, g_idx=(torch.arange(64) // GROUP).int())
    assert read.order is not None and in_order.order is None
    with pytest.raises(ValueError, match="its groups do not all have 32 features"):
        layouts.gptq(INT4_ASYM, *words, g_idx=torch.zeros(64, dtype=torch.int32))


# compressed-tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp8", "fp8_tensor"])
def test_compressed_tensors_fp8(name):
    held, found = golden("compressed-tensors"), pack(inputs("ordinary"), FORMATS[name], weight=True)
    same(found.values, held[name])
    same(found.scales.flatten(), held[f"{name}_scale"].flatten())
    same(unpack(found), held[f"{name}_values"])


def test_compressed_tensors_int4_with_zero_points():
    """Zero points are packed along the outputs; codes and zero points have both an offset of 8 there."""
    held, found = golden("compressed-tensors"), pack(inputs("ordinary"), INT4_ASYM, weight=True)
    same(found.values, held["int4_asym"].view(torch.uint8))
    same(found.scales, held["int4_asym_scale"])
    same(found.zeros, from_bytes(held["int4_asym_zero"].t().contiguous().view(torch.uint8), 4).t().contiguous())
    same(unpack(found), held["int4_asym_values"])


@pytest.mark.parametrize(("name", "format"), [("int8", FORMATS["int8"]), ("int4", INT4)])
def test_compressed_tensors_integers_are_read(name, format):
    """Its scale puts the largest magnitude between two codes, 127.5 or 7.5: other codes than ours, read exactly."""
    held = golden("compressed-tensors")
    same(unpack(Packed(format, held[name].view(torch.int8 if name == "int8" else torch.uint8), held[f"{name}_scale"])),
         held[f"{name}_values"])  # fmt: skip


def test_compressed_tensors_mxfp4_has_even_exponents():
    held, found = golden("compressed-tensors"), pack(inputs("ordinary"), replace(FORMATS["mxfp4"], exponent="even"))
    same(found.values, held["mxfp4"])
    same(torch.exp2(found.scales.float() - 127), held["mxfp4_scale"])
    same(unpack(found), held["mxfp4_values"])


# The others --------------------------------------------------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("name", ["mxfp8", "mxe5m2", "mxfp4"])
def test_torchao_mx_by_every_rule(name, rule, rows):
    format = replace(FORMATS["mxfp8"], element="e5m2") if name == "mxe5m2" else FORMATS[name]
    held, found = golden("torchao"), pack(inputs(rows, 4).bfloat16(), replace(format, exponent=rule))
    same(found.scales, held[f"{name}_{rule}_{rows}_scale"].view(found.scales.shape))
    same(found.values, held[f"{name}_{rule}_{rows}"].view(found.values.shape))


@ROWS
def test_bitsandbytes_nf4(rows):
    """The even index is in the high nibble there."""
    held, found = golden("bitsandbytes"), pack(inputs(rows, 4), FORMATS["nf4"], weight=True)
    same(layouts.swapped_nibbles(found.values).flatten(), held[f"nf4_{rows}"].flatten())
    same(found.scales.flatten(), held[f"nf4_{rows}_absmax"])
    same(unpack(found), held[f"nf4_{rows}_values"])


@ROWS
def test_bitsandbytes_int8(rows):
    held, found = golden("bitsandbytes"), pack(inputs(rows, 4).half(), FORMATS["int8"])
    same(found.values, held[f"int8_{rows}"])
    same(found.scales.flatten(), held[f"int8_{rows}_absmax"] / 127)


@ROWS
def test_modelopt_nvfp4(rows):
    """It stores no scale below 2^-9, and 1 for a block of zeros; so it keeps numbers 2^-18 times the largest."""
    held, found = golden("nvidia-modelopt"), pack(inputs(rows, 4), FORMATS["nvfp4"], weight=True)
    codes, scales, whole, values = (held[f"nvfp4_{rows}{part}"] for part in ("", "_scale", "_tensor_scale", "_values"))
    same(found.tensor_scale, whole)
    usual = found.scales.float() > 0
    assert bool(usual.all()) == (rows == "ordinary")
    same(found.scales.view(torch.uint8)[usual], scales.view(torch.uint8)[usual])
    same(found.values.unflatten(-1, (-1, 8))[usual], codes.unflatten(-1, (-1, 8))[usual])
    same(unpack(Packed(FORMATS["nvfp4"], codes, scales.view(torch.float8_e4m3fn), tensor_scale=whole)), values)


@ROWS
def test_modelopt_mxfp8_is_rounded_up(rows):
    held, found = golden("nvidia-modelopt"), pack(inputs(rows, 4), replace(FORMATS["mxfp8"], exponent="rceil"))
    same(found.values, held[f"mxfp8_{rows}"])
    same(found.scales, held[f"mxfp8_{rows}_scale"])


def test_modelopt_fp8():
    held, found = golden("nvidia-modelopt"), pack(inputs("ordinary", 4), FORMATS["fp8_static"], weight=True)
    same(found.values, held["fp8_tensor"])
    same(found.scales.flatten(), held["fp8_tensor_scale"].flatten())


def test_the_files_are_of_the_versions_that_the_script_asks_for():
    script = (Path(__file__).parents[1] / "scripts" / "quant_goldens.py").read_text()
    asked, found = dict(re.findall(r"([\w-]+)==([\d.]+)", script)), {}
    for path in GOLDENS.glob("*.npz"):
        with np.load(path) as held:
            found |= {path.stem: str(held["version"])} if "version" in held else {}
    assert found == asked and len(found) == 6
