"""Packed weights."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ... import contract
from ...quant import Format, bytes_per_weight, error_bound
from ...quant.numerics import Packed, fake_quant_input, multiply, pack, unpack
from ...reference import ops as reference
from .. import cases
from ..cases import Here, Made, OpCase, check, handed, moved, normal, nudged, packed, worst_of
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
TALL = Weight("o2304_i1280-bias", 2304, 1280, bias=True)
ROWS = (1, 77, 130)
TIES = 4
"""How often ties are decided anew. A row whose largest element is 1.75, or 448 of anything, is full of them in fp8."""


def _make(op: contract.PackLinear, here: Here, format: str) -> Made:
    weight, bias = BIASED.weights(here.dtype, here.device)
    linear = op(handed(weight, here.meaning(format)), bias, format=format)
    return Made(linear, lambda: [linear(BIASED.input(77, here.dtype, here.device))])


PACK_LINEAR = OpCase(
    op="pack_linear",
    protocol=contract.PackLinear,
    makes=contract.Linear,
    make=_make,
    matrices=((BIASED.out, BIASED.width),),
)


def check_linear(
    linear: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: str,
    meaning: Format | None,
) -> None:
    """Fail unless linear(x) is x Wᵀ + b within the bound: what the reference loses in this format on the same inputs.
    Every output counts alike, however large its weights are."""
    found = linear(x)
    x, weight, bias = x.cpu(), weight.cpu(), None if bias is None else bias.cpu()
    packer = reference.LinearPacker({meaning.name: meaning} if meaning else {})
    eager = packer(handed(weight, meaning), bias, format=meaning.name if meaning else "none")(x)
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    exact = reference.pack_linear(weight.double(), None if bias is None else bias.double())(x.double())
    scale_O, multiple = weight.double().norm(dim=1), cases.LOST if meaning else cases.MULTIPLE
    check(found.cpu().double() / scale_O, exact / scale_O, eager.double() / scale_O, dtype, multiple=multiple)


@over("pack_linear")
@each(*WEIGHTS)
def test_linear_parity(kernel, dtype, format, op, here, device, case):
    """x Wᵀ + b for several numbers of rows; one output's weights are 50 times larger than the others'."""
    weight, bias = case.weights(dtype, device)
    meaning = here.meaning(format)
    linear = op(handed(weight, meaning), None if bias is None else bias.clone(), format=format)
    for rows in ROWS:
        check_linear(linear, case.input(rows, dtype, device), weight, bias, dtype, meaning)


@over("pack_linear")
def test_linear_of_a_packed_weight(kernel, dtype, format, op, here, device):
    """A weight as a checkpoint packed it: a seventh of its bytes are 0, so that its scales are not those that packing
    what it stands for would choose. Integers of 4 bits come in groups of other sizes, too, a whole row among them, and
    with features in another order (`Packed.order`)."""
    meaning = here.meaning(format)
    if meaning is None or not kernel.packed:
        pytest.skip("the row packs plain weights itself")
    weight, bias = BIASED.weights(dtype, device)
    assert bias is not None
    formats = [meaning]
    grouped = meaning.element in ("int4", "uint4") and meaning.group and not meaning.super_group
    if grouped:
        formats += [replace(meaning, group=group) for group in (0, 64)]
    weights = [packed(weight.cpu(), one) for one in formats]
    for given in weights:
        given.values.view(torch.uint8)[..., ::7] = 0
    if grouped:
        order = torch.randperm(BIASED.width, generator=torch.Generator().manual_seed(1))
        weights.append(replace(weights[0], order=order))
    for given in weights:
        linear = op(moved(given, device=device), bias.clone(), format=format)
        for rows in ROWS:
            x, found = BIASED.input(rows, dtype), linear(BIASED.input(rows, dtype, device))
            exact, others = otherwise(x, given, bias.cpu())
            assert found.dtype == exact.dtype, f"the dtype is {found.dtype}, not {exact.dtype}"
            scale_O = unpack(given).double().norm(dim=1).clamp_min(1e-30)
            scaled = [y.cpu().double() / scale_O for y in (found, exact, *others)]
            # Sums in another order round otherwise.
            check(scaled[0], scaled[1], worst_of(scaled[2:], scaled[1]), dtype, torch.finfo(x.dtype).eps)


def otherwise(x_MI: Tensor, weight: Packed, bias_O: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The reference's product, and what other right kernels make of it: activations half way between two codes of
    their format go to either, and products of widened weights are in 16 bits."""
    inputs, dtype = weight.format.of_inputs, x_MI.dtype
    others = [multiply(nudged(x_MI, seed), weight, bias_O.float()) for seed in range(TIES if inputs else 0)]
    taken = fake_quant_input(x_MI.float(), weight.format, weight.input_scale)
    others.append(taken.to(dtype).float() @ unpack(weight).to(dtype).float().T + bias_O.float())
    return multiply(x_MI, weight, bias_O), others


@over("pack_linear")
def test_linear_weight_is_not_transposed(kernel, dtype, format, op, here, device):
    """A square weight that moves input i to output i + 1: a transposed one would move it to i - 1."""
    x, meaning = SQUARE.input(5, dtype, device), here.meaning(format)
    moved_by = 15 / 16 if meaning and meaning.zeros else 1  # a step of 1/16: not every row keeps scales in 32 bits
    weight = (moved_by * torch.eye(256).roll(1, dims=0)).to(device, getattr(torch, dtype))
    check_linear(op(handed(weight, meaning), None, format=format), x, weight, None, dtype, meaning)


@over("pack_linear")
def test_linear_adds_its_bias(kernel, dtype, format, op, here, device):
    weight, bias = BIASED.weights(dtype, device)
    assert bias is not None
    linear = op(handed(weight, here.meaning(format)), bias.clone(), format=format)
    y = linear(torch.zeros(3, 256, device=device, dtype=bias.dtype))
    torch.testing.assert_close(y, bias.expand(3, -1), msg=lambda text: f"a row of zeros gives the bias: {text}")


@over("pack_linear")
@each(BIASED, TALL)
def test_linear_packing_is_not_stale(kernel, dtype, format, op, here, device, case):
    """Weights of one shape, packed one after another, some when another has been freed: each keeps its own values, and
    its own scales, as each is three times as large as the one before."""
    x, linears, meaning = case.input(77, dtype, device), {}, here.meaning(format)

    def drawn(number: int) -> tuple[Tensor, Tensor]:
        weight, bias = case.weights(dtype, device, seed=10 * number)
        return weight * 3**number, bias

    for number in range(4):
        weight, bias = drawn(number)
        linears[number] = op(handed(weight, meaning), bias, format=format)
        linears[number](x)
        if number % 2:
            del linears[number]
        del weight, bias
        gc.collect()
    for number, linear in linears.items():
        weight, bias = drawn(number)
        check_linear(linear, x, weight, bias, dtype, meaning)


def test_own_formats_keep_their_bound(subject):
    """Formats that the backend brings: what a round trip loses is within `quant.error_bound`, and a packed weight takes
    what `quant.bytes_per_weight` counts."""
    if not subject.backend.formats:
        pytest.skip("the backend brings no format")
    for format in subject.backend.formats:
        width = 8 * math.lcm(format.group or 64, format.super_group or 1)
        weight = normal(max(128, format.outputs), width, seed=1)
        made = pack(weight, format, weight=True)
        shared = format.super_group or format.group or width
        largest = weight.abs().unflatten(1, (-1, shared)).amax(2).repeat_interleave(shared, 1)
        if format.outputs != 1:
            largest = largest.amax()
        worst, bound = float(((unpack(made) - weight).abs() / largest).max()), error_bound(format) + 1e-6
        assert worst <= bound, f"{format.name}: a round trip loses {worst:.2e} of the largest, bound {bound:.2e}"
        counted = bytes_per_weight(format, width) * weight.numel()
        assert abs(made.bytes - counted) <= 64, f"{format.name}: {made.bytes:,} bytes are packed, {counted:,} counted"
