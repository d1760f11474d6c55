"""The RMS norm of rows, and the norm of heads with their rotation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import HEAD_DIM, Here, OpCase, check, normal, wider
from .marks import over


def rope_inputs(
    dtype: str, device: str = "cpu", *, tables: int = 2, batch: int = 2, scale: float = 1.0
) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor, Tensor]:
    """(heads, cos_BSD, sin_BSD): 32 query heads, 8 key heads, and the key heads again without a weight. The tables are
    views of one."""
    cast, tokens = dict(device=device, dtype=getattr(torch, dtype)), 37
    q, k, _ = (scale * normal(batch, tokens, 48, HEAD_DIM, seed=1)).to(**cast).split([32, 8, 8], dim=2)
    weights = [(1 + 0.5 * normal(HEAD_DIM, seed=seed)).to(**cast) for seed in (2, 3)]
    angles = 3 * normal(tables, tokens, HEAD_DIM // 2, seed=4)
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(**cast).split(HEAD_DIM, dim=-1)
    return [(q, weights[0]), (k, weights[1]), (k, None)], cos, sin


def _use_rms_norm(op: contract.RmsNorm, here: Here) -> list[Tensor]:
    x, residual, weight = cases.norm_inputs(here.dtype, here.device)
    return list(op(x, weight, eps=1e-6, residual_MI=residual))


def _use_norm_rope(op: contract.NormRope, here: Here) -> list[Tensor]:
    """Heads with weights, and the same without any, by themselves: only those of the first kind are a row's own after
    its norm."""
    heads, *tables = rope_inputs(here.dtype, here.device)
    bare = [(x.contiguous(), None) for x, _ in heads[:2]]
    return [*op(heads, *tables, eps=1e-6), *op(bare, *tables, eps=1e-6)]


RMS_NORM = OpCase(op="rms_norm", protocol=contract.RmsNorm, use=_use_rms_norm)
NORM_ROPE = OpCase(op="norm_rope", protocol=contract.NormRope, use=_use_norm_rope)

RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
ORDER = pytest.mark.parametrize("weight_fp32", [False, True], ids=["round_first", "round_once"])


@over("rms_norm")
@ORDER
@RESIDUAL
def test_rms_norm_parity(kernel, dtype, op, device, residual, weight_fp32):
    x, added, weight = cases.norm_inputs(dtype, device)
    options = dict(eps=1e-6, weight_fp32=weight_fp32)
    found, z = op(x, weight, residual_MI=added if residual else None, **options)
    x, added, weight = (t.cpu() for t in (x, added, weight))
    sum_MI = x + added if residual else x
    eager, _ = reference.rms_norm(sum_MI, weight, **options)
    exact, _ = reference.rms_norm(sum_MI.float(), weight.float(), **options)
    check(found, exact, eager, dtype)
    assert z.dtype == sum_MI.dtype and torch.equal(z.cpu(), sum_MI), "the second result is not x + residual"


@over("rms_norm")
@RESIDUAL
def test_rms_norm_of_views(kernel, dtype, op, device, residual):
    """Rows that lie within wider ones."""
    x, added, weight = cases.norm_inputs(dtype)
    wide = torch.cat((x, added), dim=1).to(device)
    (found, z), (expected, summed) = (
        op(*rows, eps=1e-6, residual_MI=rest if residual else None)
        for rows, rest in (
            ((wide[:, :512], weight.to(device)), wide[:, 512:]),
            ((x.to(device), weight.to(device)), added.to(device)),
        )
    )
    assert cases.same_bits((found, z), (expected, summed)), "a view gives another result than a copy of it"


@over("rms_norm")
def test_rms_norm_of_rows_of_every_size(kernel, dtype, op, device):
    """An eps of 1 keeps small rows small, and zeros zeros."""
    x, _, weight = cases.norm_inputs(dtype, scale=cases.sizes(-2, 2))
    found, _ = op(x.to(device), weight.to(device), eps=1.0)
    exact, eager = (reference.rms_norm(*given, eps=1.0)[0] for given in (wider((x, weight)), (x, weight)))
    check(found, exact, eager, dtype)


@over("rms_norm")
def test_rms_norm_eps(kernel, dtype, op, device):
    """Inputs so small that eps is most of the mean square."""
    x, _, weight = cases.norm_inputs(dtype, device, scale=1e-3)
    for eps in (1e-6, 1e-5):
        found, _ = op(x, weight, eps=eps)
        eager, _ = reference.rms_norm(x.cpu(), weight.cpu(), eps=eps)
        exact, _ = reference.rms_norm(x.cpu().float(), weight.cpu().float(), eps=eps)
        check(found, exact, eager, dtype)


def _share_unequal(found, expected) -> float:
    return (found.cpu() != expected).double().mean().item()


@over("rms_norm")
@ORDER
def test_rms_norm_rounds_in_the_order_asked(kernel, dtype, op, device, weight_fp32):
    """Two orders of rounding differ in every fourth element or so; the same order in hardly any. A kernel that adds
    the residual may be another than the one that does not."""
    if dtype == "float32":
        pytest.skip("nothing is rounded in between")
    x, added, weight = cases.norm_inputs(dtype, device)
    for residual, told in ((None, "no residual"), (added, "a residual")):
        found, z = op(x.clone(), weight, eps=1e-6, residual_MI=residual, weight_fp32=weight_fp32)
        eager, _ = reference.rms_norm(z.cpu(), weight.cpu(), eps=1e-6, weight_fp32=weight_fp32)
        share = _share_unequal(found, eager)
        said = f"{share:.0%} of the elements differ from eager with weight_fp32={weight_fp32} and {told}"
        assert share < 0.02, said


@over("norm_rope")
@ORDER
@pytest.mark.parametrize(("batch", "tables"), [(1, 1), (2, 1), (2, 2)], ids=["b1", "b2_one_table", "b2_two_tables"])
def test_norm_rope_parity(kernel, dtype, op, device, batch, tables, weight_fp32):
    """Query heads, key heads, and heads without a weight, in one call."""
    options = dict(eps=1e-6, weight_fp32=weight_fp32)
    found = op(*rope_inputs(dtype, device, tables=tables, batch=batch), **options)
    inputs = rope_inputs(dtype, tables=tables, batch=batch)
    assert len(found) == len(inputs[0]), f"{len(found)} results for {len(inputs[0])} projections"
    exact, eager = reference.norm_rope(*wider(inputs), **options), reference.norm_rope(*inputs, **options)
    for ours, truth, theirs in zip(found, exact, eager, strict=True):
        check(ours, truth, theirs, dtype)


@over("norm_rope")
@ORDER
def test_norm_rope_rounds_in_the_order_asked(kernel, dtype, op, device, weight_fp32):
    """Seen where nothing is rotated."""
    if dtype == "float32":
        pytest.skip("nothing is rounded in between")
    heads, cos, sin = rope_inputs(dtype)
    given = heads[:2], torch.ones_like(cos), torch.zeros_like(sin)
    found = op(*cases.moved(given, device=device), eps=1e-6, weight_fp32=weight_fp32)
    for ours, theirs in zip(found, reference.norm_rope(*given, eps=1e-6, weight_fp32=weight_fp32), strict=True):
        share = _share_unequal(ours, theirs)
        assert share < 0.02, f"{share:.0%} of the elements differ from eager with weight_fp32={weight_fp32}"


@over("norm_rope")
def test_norm_rope_eps(kernel, dtype, op, device):
    found = op(*rope_inputs(dtype, device, scale=1e-3), eps=1e-5)
    inputs = rope_inputs(dtype, scale=1e-3)
    exact, eager = reference.norm_rope(*wider(inputs), eps=1e-5), reference.norm_rope(*inputs, eps=1e-5)
    for ours, truth, theirs in zip(found, exact, eager, strict=True):
        check(ours, truth, theirs, dtype)


@over("norm_rope")
def test_rope_rotates_halves(kernel, dtype, op, device):
    """A quarter turn sends the first half to the second and minus the second to the first: halves, not pairs."""
    cast = dict(device=device, dtype=getattr(torch, dtype))
    x, quarter = torch.arange(128.0).view(1, 1, 1, 128).to(**cast), torch.ones(1, 1, 128, **cast)
    (found,) = op([(x, None)], torch.zeros_like(quarter), quarter, eps=1e-6)
    expected = [*range(-64, -128, -1), *range(64)]
    assert found.flatten().tolist() == expected, f"a quarter turn of 0 to 127 is {found.flatten().tolist()}"
