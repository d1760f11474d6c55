"""Results are rounded to the nearest number and not cut off, weights and activations too: errors have no direction."""

from __future__ import annotations

import pytest
import torch

from ...reference import ops as reference
from ..cases import FLOOR, USED, Loss, biased, handed, normal
from ..sizes import Rows
from . import sizes
from .attention import PLAIN
from .marks import over

SPREAD = 5.0
"""Standard deviations of a mean: what random roundings have in one test of a million."""
OUT, WIDTH = 256, 512


def _look(found, exact, eager, dtype: str) -> None:
    if wrong := biased(found, exact, eager, dtype):
        pytest.fail(wrong, pytrace=False)


@over("attention")
def test_attention_rounds_to_nearest(kernel, dtype, op, device, allowance):
    if allowance:
        pytest.skip("what its format does to keys and values has no bound of this kind")
    exact, _, eager = PLAIN.expected(dtype)
    out, _ = op(*PLAIN.inputs(dtype, device))
    _look(out, exact, eager, dtype)


@over("rms_norm", "gate", "norm_silu", "norm_rope")
def test_results_round_to_nearest(subject, kernel, dtype, op, device):
    what = sizes.layouts(subject, kernel, dtype)[0] if kernel.op == "norm_rope" else 256
    rows: Rows = getattr(sizes, kernel.op)(op, dtype, device, what)
    for name, found in rows.call(lambda t: t.to(device, copy=True)).items():
        if name != "x + residual":
            _look(found, rows.exact[name], rows.eager[name], dtype)


@over("pack_linear")
def test_linear_rounds_to_nearest(kernel, dtype, format, op, here, device):
    """Of a weight's elements, too: a product with normal rows is neither too small nor too large, and one with ones,
    which adds up what each weight is off by, is on neither side of the truth."""
    meaning, cast = here.meaning(format), getattr(torch, dtype)
    weight = (normal(OUT, WIDTH, seed=41) / WIDTH**0.5).to(cast)
    linear = op(handed(weight.to(device), meaning), None, format=format)
    known = reference.LinearPacker({meaning.name: meaning} if meaning else {})
    eager = known(handed(weight, meaning), None, format=format)
    for x in (normal(64, WIDTH, seed=42).to(cast), torch.ones(1, WIDTH, dtype=cast)):
        exact = x.double() @ weight.double().T
        ours, theirs = linear(x.to(device)).cpu(), eager(x)
        if len(x) > 1:
            _look(ours, exact, theirs, dtype)
            continue
        off, lost = float((ours.double() - exact).mean()), float((theirs.double() - exact).square().mean().sqrt())
        own = abs(float((theirs.double() - exact).mean()))
        bound = SPREAD * lost / OUT**0.5 + 2 * own + FLOOR[dtype] * float(exact.square().mean().sqrt())
        assert abs(off) <= bound, (
            f"with rows of ones the outputs are off by {off:.1e} on average, bound {bound:.1e}: are weights cut off "
            f"instead of rounded? Shape [1, {OUT}]"
        )


@over("pack_linear")
def test_linear_multiplies_in_its_format(kernel, dtype, format, op, here, device):
    """Who loses less than the format does multiplies in another one."""
    meaning = here.meaning(format)
    if meaning is None:
        pytest.skip("it is about quantization formats")
    rows = sizes.pack_linear(op, dtype, device, 256, 512, meaning)
    found = rows.call(lambda t: t.to(device))["y"]
    ours, theirs = Loss.of(found, rows.exact["y"]), Loss.of(rows.eager["y"], rows.exact["y"])
    least = USED * theirs.whole
    assert ours.whole >= least, (
        f"the relative error is {ours.whole:.1e}, and {format} costs {theirs.whole:.1e}, least {least:.1e}: it is not "
        f"used; shape {list(found.shape)}"
    )


@over("pack_linear")
def test_linear_quantizes_its_input(kernel, dtype, format, op, here, device):
    """Where the format says so. A weight of zeros and one negative number is in every format what it was, so that what
    is lost is the activations' part."""
    meaning, cast = here.meaning(format), getattr(torch, dtype)
    if meaning is None or meaning.of_inputs is None:
        pytest.skip("it is about formats with activations in them")
    weight = ((normal(OUT, WIDTH, seed=45) > 0) / -16).to(cast)
    x = normal(64, WIDTH, seed=46).to(cast)
    exact = x.double() @ weight.double().T
    eager = reference.LinearPacker({format: meaning})(handed(weight, meaning), None, format=format)(x)
    found = op(handed(weight.to(device), meaning), None, format=format)(x.to(device))
    ours, theirs = Loss.of(found, exact).whole, Loss.of(eager, exact).whole
    assert ours >= USED * theirs, (
        f"the relative error is {ours:.1e}, and activations in {format} cost {theirs:.1e}, least {USED * theirs:.1e}: "
        f"they are not in it; shape [64, {OUT}]"
    )


@over("attention")
def test_attention_computes_in_its_format(kernel, dtype, op, device, allowance):
    """A row that is there for a format alone loses more than eager torch does without one."""
    if not allowance:
        pytest.skip("it is about rows for quantization formats")
    exact, _, eager = PLAIN.expected(dtype)
    out, _ = op(*PLAIN.inputs(dtype, device))
    ours, theirs = Loss.of(out, exact).whole, Loss.of(eager, exact).whole
    assert ours > 1.2 * theirs, (
        f"the relative error is {ours:.1e}, and {theirs:.1e} without a format: {', '.join(kernel.formats)} is not "
        f"used; shape {list(out.shape)}"
    )


@over("pack_linear")
def test_linear_keeps_fp32_weights(kernel, op, device):
    """The timestep MLP's, which a row that takes "none" gets in every plan: they are not rounded to its dtype."""
    if "none" not in kernel.formats:
        pytest.skip('the row does not take "none"')
    weight, x = normal(256, 256, seed=43) / 16, normal(3, 256, seed=44)
    found = op(weight.to(device, copy=True), None)(x.to(device))
    exact = x.double() @ weight.double().T
    assert found.dtype == torch.float32, f"the result is {found.dtype}, not torch.float32"
    loss = Loss.of(found, exact).whole
    assert loss <= 1e-4, f"relative error with an fp32 weight is {loss:.1e}: it was rounded to 16 bits; shape [3, 256]"
