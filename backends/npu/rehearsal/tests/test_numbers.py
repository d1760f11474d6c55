"""Emulated quantization against what others publish: AutoRound's files, and the vendor's golden of two levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch_npu
from conftest import CHIP
from cosmos3_npu.linears import MxLinear
from cosmos3_npu.quantized import FP4, FP8

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import Packed, unpack

pytestmark = pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
GOLDENS = Path(__file__).parents[4] / "tests" / "goldens" / "quant"


SCHEMES = pytest.mark.parametrize(("name", "scheme"), [("mxfp4", FP4), ("mxfp8", FP8)])
ROWS = pytest.mark.parametrize("rows", ["ordinary", "extreme"])


def golden(package: str, name: str) -> torch.Tensor:
    with np.load(GOLDENS / f"{package}.npz") as held:
        return torch.from_numpy(held[name])


def made(scheme, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values as bytes, and a scale for each block."""
    found = scheme.rows(x.to("npu"))
    return found.values_MI.cpu().view(torch.uint8), found.scales.cpu().flatten(1)[:, : x.shape[1] // 32]


@SCHEMES
@ROWS
def test_mx_is_torchao_s_to_the_bit(name, scheme, rows):
    x = golden("inputs", rows)[:: 4 if rows == "ordinary" else 1].bfloat16()
    values, scales = made(scheme, x)
    assert torch.equal(scales, golden("torchao", f"{name}_floor_{rows}_scale").view(torch.uint8).view(scales.shape))
    assert torch.equal(values, golden("torchao", f"{name}_floor_{rows}").view(torch.uint8).view(values.shape))


@SCHEMES
@ROWS
def test_mx_is_auto_round_s_to_the_bit(name, scheme, rows):
    """A block of zeros has no exponent."""
    x = golden("inputs", rows)
    values, scales = made(scheme, x)
    used = scales != 0
    assert torch.equal((scales.int() - 127)[used], golden("auto-round", f"{name}_{rows}_exponent").int()[used])
    held = values if name == "mxfp4" else values.view(torch.float8_e4m3fn)
    assert torch.equal(unpack(Packed(FORMATS[name], held, scales)), golden("auto-round", f"{name}_{rows}_values"))


def test_two_levels_are_the_vendor_s_golden():
    """Rows of eights: CANN's test of the operator has 0x77, 4/3 and 127."""
    x = torch.full((1, 512), 8.0, dtype=torch.bfloat16, device="npu")
    values, outer, inner = (part.cpu() for part in torch_npu.npu_dynamic_dual_level_mx_quant(x))
    assert values.unique().tolist() == [0x77] and inner.unique().tolist() == [127]
    assert outer.item() == pytest.approx(4 / 3, abs=1e-6)


def test_scales_of_a_width_that_is_no_multiple_of_64():
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(1)).to("npu", torch.bfloat16)
    linear = MxLinear(weight, None, "mxfp8")
    assert linear.scales.shape == (16, 2, 2)
    y = linear(torch.eye(96, dtype=torch.bfloat16, device="npu")).cpu().float()
    torch.testing.assert_close(y.T, weight.cpu().float(), rtol=0.13, atol=1e-3)  # 448 in place of 512
