"""What the VAE has between two convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import Here, Loss, OpCase, check, normal
from .marks import over


def silu_inputs(dtype: str, device: str = "cpu", width: int = 256) -> tuple[Tensor, Tensor]:
    """x_MI, weight_I: 77 rows as a convolution leaves them, from small to large, the third all zeros."""
    x = normal(77, width, seed=1) * cases.sizes(-3, 2)
    x, weight = (t.to(device, getattr(torch, dtype)) for t in (x, 1 + 0.5 * normal(width, seed=2)))
    return x, weight


def _use(op: contract.NormSilu, here: Here) -> list[Tensor]:
    return [op(*silu_inputs(here.dtype, here.device))]


TERMS = ["bias", "both", "residual"]
NORM_SILU = OpCase(op="norm_silu", protocol=contract.NormSilu, use=_use)


@over("norm_silu")
@pytest.mark.parametrize("width", [1024, 256, 96])
def test_norm_silu_parity(kernel, dtype, op, device, width):
    """Rows over five orders of magnitude, and one of zeros, which stays one."""
    x, weight = silu_inputs(dtype, width=width)
    found = op(x.to(device), weight.to(device))
    check(found, reference.norm_silu(x.float(), weight.float()), reference.norm_silu(x, weight), dtype)
    assert not found[2].any(), "a row of zeros does not give zeros"


@over("norm_silu")
@pytest.mark.parametrize("large", ["rows", "channel"])
def test_norm_silu_of_large_values(kernel, dtype, op, device, large):
    """Rows up to ten thousand, and rows of which one channel is all, so that it is sqrt(I) when it is normed."""
    x, weight = normal(77, 256, seed=1), 1 + 0.5 * normal(256, seed=2)
    x *= cases.sizes(0, 4) if large == "rows" else 1e-3
    if large == "channel":
        x[torch.arange(77), torch.arange(77)] = 1e4 * (1 - 2 * (torch.arange(77) % 2))
    x, weight = (t.to(getattr(torch, dtype)) for t in (x, weight))
    exact, eager = reference.norm_silu(x.float(), weight.float()), reference.norm_silu(x, weight)
    check(op(x.to(device), weight.to(device)), exact, eager, dtype)


@over("norm_silu")
@pytest.mark.parametrize(("biased", "residual"), [(True, False), (True, True), (False, True)], ids=TERMS)
def test_norm_silu_adds_first(kernel, dtype, op, device, biased, residual):
    """The bias and the residual are part of what is normed; with a residual the sum takes x's place, and all else stays
    as it is. So it is where the result is written to out_MI."""
    x, weight = silu_inputs(dtype)
    bias, rest = (4 * normal(*shape, seed=3).to(x.dtype) for shape in ((256,), (77, 256)))
    terms = ({"bias_I": bias} if biased else {}) | ({"residual_MI": rest} if residual else {})
    total = sum((term.float() for term in terms.values()), x.float())
    given, again, placed = (x.to(device, copy=True) for _ in range(3))
    scale, there = weight.to(device, copy=True), {name: term.to(device, copy=True) for name, term in terms.items()}
    found = op(given, scale, **there)
    kept = cases.same_bits([t.cpu() for t in (scale, *there.values())], [weight, *terms.values()])
    assert kept, "the weight, the bias or the residual was overwritten"
    check(found, reference.norm_silu(total, weight.float()), reference.norm_silu(total.to(x.dtype), weight), dtype)
    op(again, scale, out_MI=placed, **there)
    check(placed, reference.norm_silu(total, weight.float()), reference.norm_silu(total.to(x.dtype), weight), dtype)
    if not residual:
        assert torch.equal(given.cpu(), x), "x was overwritten, and there is no residual"
    else:
        assert Loss.of(given.cpu(), total).whole < 2 * Loss.of(total.to(x.dtype), total).whole + 1e-6, (
            "x does not hold the sum"
        )


@over("norm_silu")
def test_norm_silu_writes_where_it_is_told(kernel, dtype, op, device):
    """Into rows of a larger tensor, and nothing around them."""
    x, weight = silu_inputs(dtype, device)
    padded = torch.full((90, 256), 7.0, device=device, dtype=x.dtype)
    out = padded[5:82]
    found = op(x, weight, out_MI=out)
    assert found.data_ptr() == out.data_ptr() and found.shape == out.shape, "the result is not out_MI"
    assert torch.equal(out, op(x, weight)), "out_MI does not hold what is returned without it"
    assert bool((padded[:5] == 7).all() and (padded[82:] == 7).all()), "rows around out_MI are overwritten"
