"""Packed weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import Here, Made, OpCase, check, normal
from .marks import each, over


@dataclass(frozen=True)
class Weight:
    """One weight. Each has an output 50 times larger than the others, as trained weights do: a scale for the whole
    matrix would leave nothing of the rest in 8 bits."""

    id: str
    out: int
    width: int
    bias: bool = False

    def weights(self, dtype: str, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor | None]:
        weight = normal(self.out, self.width, seed=seed + 1) / self.width**0.5
        weight[3] *= 50
        bias = normal(self.out, seed=seed + 2) if self.bias else None
        return weight.to(device, getattr(torch, dtype)), bias if bias is None else bias.to(
            device, getattr(torch, dtype)
        )

    def input(self, rows: int, dtype: str, device: str = "cpu") -> Tensor:
        return normal(rows, self.width, seed=rows).to(device, getattr(torch, dtype))


WEIGHTS = (
    Weight("o384_i128", 384, 128),
    Weight("o128_i384-bias", 128, 384, bias=True),
    Weight("o256_i256", 256, 256),
    Weight("o256_i256-bias", 256, 256, bias=True),
)
SQUARE, BIASED = WEIGHTS[2], WEIGHTS[3]
ROWS = (1, 77, 130)


def _make(op: contract.PackLinear, here: Here, format: str) -> Made:
    linear = op(*BIASED.weights(here.dtype, here.device), format=format)
    return Made(linear, lambda: [linear(BIASED.input(77, here.dtype, here.device))])


PACK_LINEAR = OpCase(
    op="pack_linear",
    protocol=contract.PackLinear,
    makes=contract.Linear,
    make=_make,
    matrices=((BIASED.out, BIASED.width),),
)


def check_linear(
    linear: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, format: str
) -> None:
    """Fail unless linear(x) is x Wᵀ + b within the bound. Every output counts alike, however large its weights are."""
    found = linear(x)
    x, weight, bias = x.cpu(), weight.cpu(), None if bias is None else bias.cpu()
    eager = reference.pack_linear(weight, bias)(x)
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    exact = reference.pack_linear(weight.double(), None if bias is None else bias.double())(x.double())
    scale_O = weight.double().norm(dim=1)
    check(found.cpu().double() / scale_O, exact / scale_O, eager.double() / scale_O, dtype, cases.FORMATS[format])


@over("pack_linear")
@each(*WEIGHTS)
def test_linear_parity(kernel, dtype, format, op, device, case):
    """x Wᵀ + b for several numbers of rows; one output's weights are 50 times larger than the others'."""
    weight, bias = case.weights(dtype, device)
    linear = op(weight.clone(), None if bias is None else bias.clone(), format=format)
    for rows in ROWS:
        check_linear(linear, case.input(rows, dtype, device), weight, bias, dtype, format)


@over("pack_linear")
def test_linear_weight_is_not_transposed(kernel, dtype, format, op, device):
    """A square weight that moves input i to output i + 1: a transposed one would move it to i - 1."""
    weight = torch.eye(256).roll(1, dims=0).to(device, getattr(torch, dtype))
    x = SQUARE.input(5, dtype, device)
    check_linear(op(weight.clone(), None, format=format), x, weight, None, dtype, format)


@over("pack_linear")
def test_linear_adds_its_bias(kernel, dtype, format, op, device):
    weight, bias = BIASED.weights(dtype, device)
    assert bias is not None
    y = op(weight.clone(), bias.clone(), format=format)(torch.zeros(3, 256, device=device, dtype=bias.dtype))
    torch.testing.assert_close(y, bias.expand(3, -1), msg=lambda text: f"a row of zeros gives the bias: {text}")


@over("pack_linear")
def test_linear_packing_is_not_stale(kernel, dtype, format, op, device):
    """Weights of one shape, packed one after another, some when another has been freed: each keeps its own values."""
    x, linears = BIASED.input(77, dtype, device), {}
    for seed in range(4):
        weight, bias = BIASED.weights(dtype, device, seed=10 * seed)
        linears[seed] = op(weight, bias, format=format)
        linears[seed](x)
        if seed % 2:
            del linears[seed]
        del weight, bias
        gc.collect()
    for seed, linear in linears.items():
        check_linear(linear, x, *BIASED.weights(dtype, device, seed=10 * seed), dtype, format)
