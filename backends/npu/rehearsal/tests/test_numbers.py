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

pytestmark = pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
GOLDENS = Path(__file__).parents[4] / "tests" / "goldens" / "quant"


@pytest.mark.parametrize(("name", "scheme"), [("mxfp4", FP4), ("mxfp8", FP8)])
@pytest.mark.parametrize("rows", ["ordinary", "extreme"])
def test_mx_is_auto_round_s_to_the_bit(name, scheme, rows):
    with np.load(GOLDENS / "inputs.npz") as held, np.load(GOLDENS / "auto_round.npz") as theirs:
        x = torch.from_numpy(held[rows])
        stem = f"{name}_{rows}"
        print(sorted(key for key in theirs.files if key.startswith(name)))
        values, scales = (torch.from_numpy(theirs[f"{stem}_{part}"]) for part in ("values", "scales"))
    found = scheme.rows(x.to("npu"))
    assert torch.equal(found.values_MI.cpu().view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(found.scales.cpu().flatten(1)[:, : scales.shape[1]], scales)


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
    torch.testing.assert_close(y.T, weight.cpu().float(), rtol=0.07, atol=1e-3)
