"""The row-wise kernels against eager torch, with the inputs and the bounds of the conformance kit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cosmos3_triton import row_wise
from cosmos3_triton.activations import Rows, quantize_rows
from cosmos3_triton.tables import Launch, table

from cosmos3_core.reference import ops as reference
from cosmos3_core.testing.cases import check, norm_inputs, normal, wider
from cosmos3_core.testing.suite.norms import rope_inputs

NARROW = replace(table("sm_90"), launches={**table("sm_90").launches, "gate": (Launch(elements=128, warps=4),)})
"""A gate whose programs take a part of a row."""
DTYPES = ("bfloat16", "float16", "float32")
ORDER = pytest.mark.parametrize("weight_fp32", [False, True], ids=["round_first", "round_once"])
rms_norm, norm_rope, gate, norm_silu = (
    getattr(row_wise, f"build_{op}")(table("sm_90")) for op in ("rms_norm", "norm_rope", "gate", "norm_silu")
)


def share_unequal(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found != expected).double().mean().item()


@ORDER
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [512, 320])
def test_rms_norm(width, dtype, residual, weight_fp32):
    """Both roundings in eager's order, and rows whose width is no power of two."""
    x, added, weight = (t[..., :width] for t in norm_inputs(dtype))
    added, options = added if residual else None, dict(eps=1e-5, weight_fp32=weight_fp32)
    found, z = rms_norm(x, weight, residual_MI=added, **options)
    eager, sum_MI = reference.rms_norm(x, weight, residual_MI=added, **options)
    exact, _ = reference.rms_norm(sum_MI.float(), weight.float(), **options)
    assert torch.equal(z, sum_MI) and (z is x) == (not residual)
    check(found, exact, eager, dtype)
    assert dtype == "float32" or share_unequal(found, eager) < 1e-3


def bits(rows: Rows) -> tuple[list, list, torch.dtype]:
    """To compare, in every bit."""
    return rows.values_MI.view(torch.uint8).tolist(), rows.scale_M1.tolist(), rows.dtype


ROWS = 10.0 ** torch.arange(-3, 4).unsqueeze(1) * torch.tensor([1, 1, 0, 1, 1, 1, 1]).unsqueeze(1)
"""From small to large, the third all zeros."""
EIGHT = pytest.mark.parametrize("format", ["int8", "fp8"])


@EIGHT
@ORDER
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [512, 320])
def test_rms_norm_quantizes_its_result(width, dtype, residual, weight_fp32, format):
    """Bit for bit as a pass of its own quantizes it, and leaves the sum alone. An eps of 1 keeps small rows small."""
    cast = getattr(torch, dtype)
    x, added, weight = (normal(*shape, seed=i).to(cast) for i, shape in enumerate([(7, width), (7, width), (width,)]))
    x, added = (x * ROWS).to(cast), (added * ROWS).to(cast) if residual else None
    options = dict(eps=1.0, residual_MI=added, weight_fp32=weight_fp32)
    norm_rows = row_wise.norm_rows(table("sm_90"))
    (found, z), (plain, sum_MI) = norm_rows(x, weight, format=format, **options), rms_norm(x, weight, **options)
    assert bits(found) == bits(quantize_rows(plain, format))
    assert torch.equal(z, sum_MI) and (z is x) == (not residual)


@EIGHT
@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [512, 320])
def test_gate_quantizes_its_result(width, dtype, activation, format):
    """Bit for bit as a pass of its own quantizes it, a row to a program, and not in place."""
    x = (normal(7, width, seed=1) * ROWS.clamp_max(10)).to(getattr(torch, dtype))
    before = x.clone()
    found = row_wise.gate_rows(NARROW)(x, activation=activation, format=format)
    assert torch.equal(x, before)
    assert bits(found) == bits(quantize_rows(row_wise.build_gate(NARROW)(x, activation=activation), format))


def test_rms_norm_reads_columns_that_lie_apart():
    x, residual, weight = (normal(*shape, seed=i) for i, shape in enumerate([(64, 6), (64, 6), (64,)]))
    found, z = rms_norm(x.T, weight, eps=1e-6, residual_MI=residual.T)
    expected, expected_z = reference.rms_norm(x.T, weight, eps=1e-6, residual_MI=residual.T)
    torch.testing.assert_close(found, expected)
    assert torch.equal(z, expected_z)


@ORDER
@pytest.mark.parametrize(
    ("batch", "tables", "dtype"), [(1, 1, "bfloat16"), (2, 1, "bfloat16"), *((2, 2, dtype) for dtype in DTYPES)]
)
def test_norm_rope(batch, tables, dtype, weight_fp32):
    """Heads that are parts of one projection, with and without a weight, in one call."""
    inputs, options = rope_inputs(dtype, batch=batch, tables=tables), dict(eps=1e-6, weight_fp32=weight_fp32)
    before = [x.clone() for x, _ in inputs[0]]
    found = norm_rope(*inputs, **options)
    exact, eager = reference.norm_rope(*wider(inputs), **options), reference.norm_rope(*inputs, **options)
    for ours, truth, theirs in zip(found, exact, eager, strict=True):
        check(ours, truth, theirs, dtype)
        assert ours.is_contiguous()
    assert all(torch.equal(x, kept) for (x, _), kept in zip(inputs[0], before, strict=True))


@ORDER
def test_norm_rope_rounds_the_norm_in_the_order_asked(weight_fp32):
    x, weight = normal(1, 40, 6, 64, seed=1).bfloat16(), (1 + normal(64, seed=2)).bfloat16()
    still = torch.ones(1, 40, 64).bfloat16()
    (found,) = norm_rope([(x, weight)], still, 0 * still, eps=1e-6, weight_fp32=weight_fp32)
    orders = {
        order: reference.norm_rope([(x, weight)], still, 0 * still, eps=1e-6, weight_fp32=order)[0]
        for order in (False, True)
    }
    assert share_unequal(found, orders[weight_fp32]) < 1e-3
    assert share_unequal(found, orders[not weight_fp32]) > 0.1


@pytest.mark.parametrize("layout", ["BSHD", "BHSD", "part of a sequence", "every other feature"])
def test_norm_rope_reads_any_layout_and_turns_each_half_by_its_own_angle(layout):
    x, cos, sin = (normal(*shape, seed=i) for i, shape in enumerate([(2, 5, 3, 32), (2, 5, 32), (2, 5, 32)]))
    given = {
        "BSHD": x,
        "BHSD": x.transpose(1, 2).contiguous().transpose(1, 2),
        "part of a sequence": torch.cat((x, x), dim=1)[:, :5],
        "every other feature": x.repeat_interleave(2, dim=-1)[..., ::2],
    }
    (found,) = norm_rope([(given[layout], None)], cos, sin, eps=1e-6)
    torch.testing.assert_close(found, reference.norm_rope([(x, None)], cos, sin, eps=1e-6)[0])


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [512, 320])
def test_gate(width, dtype, activation):
    """In place, with several programs to a row."""
    x = norm_inputs(dtype)[0][:, :width].contiguous()
    exact, eager = reference.gate(x.double(), activation=activation), reference.gate(x.clone(), activation=activation)
    found = row_wise.build_gate(NARROW)(x, activation=activation)
    check(found, exact, eager, dtype)
    assert found.data_ptr() == x.data_ptr()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_gate_of_large_values_is_finite():
    """exp(-x) overflows below -88; silu goes to zero there."""
    x = torch.tensor([[-300.0, -89.0, 300.0, 0.0] * 8 + [2.0] * 32])
    assert gate(x, activation="silu").tolist() == [[0.0, 0.0, 600.0, 0.0] * 8]


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_hides_no_nan(activation):
    x = torch.ones(2, 32)
    x[1, 3] = torch.nan
    assert gate(x, activation=activation).isnan().nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1024, 256, 96])
def test_norm_silu(width, dtype):
    """Rows that do not fill the last program, into a part of a larger tensor, and nothing around it."""
    cast = getattr(torch, dtype)
    x, weight = 3 * normal(37, width, seed=1).to(cast), (1 + normal(width, seed=2)).to(cast)
    x[5] = 0
    padded = torch.full((41, width), 7.0, dtype=cast)
    found = norm_silu(x, weight, out_MI=padded[2:39])
    check(found, reference.norm_silu(x.float(), weight.float()), reference.norm_silu(x, weight), dtype)
    assert found.data_ptr() == padded[2:].data_ptr() and bool((padded[[0, 1, 39, 40]] == 7).all())
    assert torch.equal(norm_silu(x, weight), found) and not found[5].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [False, True])
def test_norm_silu_adds_first(residual, dtype):
    cast = getattr(torch, dtype)
    x, bias, rest = (2 * normal(*shape, seed=i).to(cast) for i, shape in enumerate([(37, 96), (96,), (37, 96)]))
    weight, given = (1 + normal(96, seed=3)).to(cast), x.clone()
    total = x.float() + bias.float() + (rest.float() if residual else 0)
    found = norm_silu(given, weight, bias_I=bias, residual_MI=rest if residual else None)
    check(found, reference.norm_silu(total, weight.float()), reference.norm_silu(total.to(cast), weight), dtype)
    assert torch.equal(given, total.to(cast) if residual else x)


def test_norm_silu_writes_rows_that_lie_apart():
    x, weight, wide = normal(6, 64, seed=1), normal(64, seed=2), torch.full((6, 96), 7.0)
    norm_silu(x, weight, out_MI=wide[:, :64])
    torch.testing.assert_close(wide[:, :64], reference.norm_silu(x, weight))
    assert bool((wide[:, 64:] == 7).all())


def test_norm_silu_of_a_tiny_row_is_not_amplified():
    """‖x‖ below 1e-12 divides as 1e-12."""
    x, weight = torch.full((1, 64), 1e-15), torch.ones(64)
    torch.testing.assert_close(norm_silu(x, weight), reference.norm_silu(x, weight), rtol=1e-4, atol=0)
