"""The MLP's activation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import Here, OpCase, check, normal
from .marks import over


def _use(op: contract.Gate, here: Here) -> list[Tensor]:
    x, _, _ = cases.norm_inputs(here.dtype, here.device)
    return [op(x.clone(), activation=name) for name in ("silu", "relu2")]


GATE = OpCase(op="gate", protocol=contract.Gate, use=_use, overwrites=(0,))


@over("gate")
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_parity(kernel, dtype, op, device, activation):
    """For rows of every size."""
    x, _, _ = cases.norm_inputs(dtype, scale=cases.sizes(-1, 1))
    found = op(x.to(device, copy=True), activation=activation)
    exact, eager = (reference.gate(given, activation=activation) for given in (x.double(), x.clone()))
    check(found, exact, eager, dtype)


@over("gate")
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_of_large_values(kernel, dtype, op, device, activation):
    """Up to 200 either way: the exponential of 89 is beyond fp32."""
    x = torch.linspace(-200, 200, 77).unsqueeze(1).repeat(1, 512)
    x[:, 256:] = normal(77, 256, seed=1)
    x = x.to(getattr(torch, dtype))
    exact, eager = (reference.gate(given, activation=activation) for given in (x.double(), x.clone()))
    check(op(x.to(device, copy=True), activation=activation), exact, eager, dtype)


@over("gate")
def test_silu_is_on_the_first_half(kernel, dtype, op, device):
    """silu(20) · 1 is 20, silu(1) · 20 is 14.6."""
    x = torch.cat((torch.full((3, 64), 20.0), torch.ones(3, 64)), dim=1).to(device, getattr(torch, dtype))
    found = float(op(x, activation="silu").float().mean())
    assert abs(found - 20) < 0.1, f"gate 20 and up 1 give {found:.2f}"
