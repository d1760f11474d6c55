"""Ops on numbers near zero: see `testing.near_zero`. Those of composites stand with these."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Segment
from ...reference import ops as reference
from .. import cases
from ..cases import HEAD_DIM, HEADS, KV_HEADS, Loss, check, handed, moved, normal, wider
from ..near_zero import check_near_zero, near_zero
from .marks import over

WIDTH = 256


@over("rms_norm", "gate", "norm_silu")
def test_rows_near_zero(kernel, dtype, op, device):
    """Zeros, subnormal numbers and a dtype's smallest ones give something between zero and the truth, and leave their
    neighbours alone."""
    x = near_zero(normal(8, WIDTH, seed=51), getattr(torch, dtype))
    weight = (1 + 0.3 * normal(WIDTH, seed=52)).to(x.dtype)

    def call(op, x: Tensor, weight: Tensor) -> Tensor:
        if kernel.op == "rms_norm":
            return op(x, weight, eps=1e-6)[0]
        return op(x.clone(), activation="silu") if kernel.op == "gate" else op(x, weight)

    twin = getattr(reference, kernel.op)
    exact, eager = call(twin, *wider((x, weight), torch.float64)), call(twin, x, weight)
    check_near_zero(call(op, x.to(device), weight.to(device)), exact, eager, dtype=dtype)


@over("norm_rope")
def test_heads_near_zero(kernel, dtype, op, device):
    """Zeros, subnormal numbers and a dtype's smallest ones give something between zero and the truth, and leave other
    heads alone."""
    x = near_zero(normal(8, HEADS, HEAD_DIM, seed=53), getattr(torch, dtype)).unsqueeze(0)
    angles, weight = normal(1, 8, HEAD_DIM // 2, seed=54).repeat(1, 1, 2), 1 + 0.3 * normal(HEAD_DIM, seed=55)
    given = [(x, weight.to(x.dtype))], *wider((angles.cos(), angles.sin()), x.dtype)
    exact, eager = (reference.norm_rope(*one, eps=1e-6)[0][0] for one in (wider(given, torch.float64), given))
    check_near_zero(op(*moved(given, device=device), eps=1e-6)[0][0], exact, eager, dtype=dtype)


@over("pack_linear")
def test_linear_of_numbers_near_zero(kernel, dtype, format, op, here, device):
    """Rows of activations, and outputs of the weight."""
    meaning, cast = here.meaning(format), getattr(torch, dtype)
    x, weight = normal(128, WIDTH, seed=56), normal(128, WIDTH, seed=57) / WIDTH**0.5
    x, weight = (torch.cat((near_zero(t[:8], cast), t[8:].to(cast))) for t in (x, weight))
    known = reference.LinearPacker({meaning.name: meaning} if meaning else {})
    eager, exact = known(handed(weight, meaning), None, format=format)(x), x.double() @ weight.double().T
    found = op(handed(weight.to(device), meaning), None, format=format)(x.to(device)).cpu()
    multiple = cases.LOST if meaning else cases.MULTIPLE
    check_near_zero(*(t[:8, 8:] for t in (found, exact, eager)), dtype=dtype, multiple=multiple)
    check_near_zero(*(t[8:, :8].T for t in (found, exact, eager)), dtype=dtype, multiple=multiple)


@over("attention")
def test_attention_of_numbers_near_zero(kernel, dtype, op, device, allowance):
    """Among queries, keys and values; and values that are all subnormal."""
    cast = getattr(torch, dtype)
    q = near_zero(normal(8, HEADS, HEAD_DIM, seed=58), cast).unsqueeze(0)
    k, v = (normal(1, 70, KV_HEADS, HEAD_DIM, seed=seed).to(cast) for seed in (59, 60))
    for t in (k, v):
        t[0, :8] = near_zero(t[0, :8], cast)
    given = q, [Segment(k[:, :5], v[:, :5]), Segment(k[:, 5:], v[:, 5:])]
    exact, eager = (reference.attention(*one)[0] for one in (wider(given, torch.float64), given))
    check(op(*moved(given, device=device))[0], exact, eager, dtype, allowance)
    tiny = q, [Segment(k, (v.float() * torch.finfo(cast).tiny / 16).to(cast))]
    loss = Loss.of(op(*moved(tiny, device=device))[0], reference.attention(*wider(tiny, torch.float64))[0]).whole
    assert loss <= 1.01 + allowance, f"relative error with values that are all subnormal is {loss:.1e}, bound 1.01"
