"""The MLP's activation."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import OpCase, check
from .marks import over


def _use(op: contract.Gate, formats: tuple[str, ...], dtype: str, device: str) -> list[Tensor]:
    x, _, _ = cases.norm_inputs(dtype, device)
    asked = product(("silu", "relu2"), formats)
    results = [op(x.clone(), activation=name, format=format) for name, format in asked]
    return [part for result in results for part in cases.parts(result)]


GATE = OpCase("gate", contract.Gate, _use, overwrites=True, quantizes=True)


@over("gate")
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_parity(kernel, dtype, format, op, device, activation):
    """For rows of every size, in each format in which the row can return them: as the plain result would be, row by
    row."""
    x, _, _ = cases.norm_inputs(dtype, scale=cases.sizes(-1, 1))
    found, plain = (op(x.to(device, copy=True), activation=activation, format=name) for name in (format, "none"))
    exact, eager = (reference.gate(given, activation=activation) for given in (x.double(), x.clone()))
    check(cases.dequantized(found), exact, cases.rounded(eager, format), dtype)
    if format != "none":
        cases.check_quantized(found, plain, format)


@over("gate")
def test_silu_is_on_the_first_half(kernel, dtype, op, device):
    """silu(20) · 1 is 20, silu(1) · 20 is 14.6."""
    x = torch.cat((torch.full((3, 64), 20.0), torch.ones(3, 64)), dim=1).to(device, getattr(torch, dtype))
    found = float(op(x, activation="silu").float().mean())
    assert abs(found - 20) < 0.1, f"gate 20 and up 1 give {found:.2f}"
