"""Rows of AITER on a CPU: what cosmos3-rocm hands to its functions, and what it makes of the results.

AITER is a stand-in with the signatures of a real wheel and of its repository. No evidence that a device works: it
computes in fp32, and rounds as AITER's source says.
"""

from __future__ import annotations

import emulated
import pytest
import torch
from cosmos3_rocm.plugin import ROWS
from vendor_cases import AITERS, DEVICE, NEWER, OUT, WHEEL, ask, bound, distance, made, row

from cosmos3_core.contract import FinishWeights, Layer, Residual, Segment
from cosmos3_core.quant import FORMATS
from cosmos3_core.reference import build_ops, with_defaults
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases

OPS = with_defaults(build_ops())

# Attention


@pytest.mark.parametrize("version", AITERS)
@pytest.mark.parametrize("name", ["aiter-fa", "aiter-varlen"])
@pytest.mark.parametrize(("batch", "lengths", "causal"), [(2, (7, 20), False), (1, (20,), True), (2, (3, 1, 9), False)])
def test_attention_is_the_reference_s(name, version, batch, lengths, causal, aiter):
    aiter(AITERS[version])
    queries = 20 if causal else 11
    q = cases.normal(batch, queries, 32, 128, seed=1).bfloat16()
    segments = [
        Segment(*(scale * cases.normal(batch, n, 8, 128, seed=10 * n + part).bfloat16() for part in range(2)))
        for n, scale in zip(lengths, (1, 2, 4), strict=False)
    ]
    attention = row("attention", name).build(DEVICE["gfx950"])
    out, lse = attention(q, segments, causal=causal, want_lse=True)
    expected, expected_lse = reference.attention(q, segments, causal=causal, want_lse=True)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-4)
    again, nothing = attention(q, segments, causal=causal)
    assert nothing is None and torch.equal(again, out) and out.dtype == q.dtype


def test_attention_gets_segments_joined_and_heads_as_they_are(aiter):
    aiter([WHEEL])
    q = cases.normal(1, 6, 32, 128, seed=1).bfloat16()
    row("attention", "aiter-fa").build(DEVICE["gfx950"])(q, [Segment(q[:, :, :8], q[:, :, 8:16])], causal=True)
    ((_, given),) = emulated.CALLS
    assert given["q"] is q and given["k"].shape[2] == 8 and given["causal"] is True
    assert given["softmax_scale"] is None and given["dropout_p"] == 0.0


@pytest.mark.parametrize(("arch", "called"), [("gfx942", "flash_attn_func"), ("gfx950", "flash_attn_varlen_func")])
def test_ragged_calls_that_hang_are_made_whole_on_gfx942(arch, called, aiter, monkeypatch):
    aiter([WHEEL], arch)
    monkeypatch.setattr("cosmos3_rocm.attention.HANGS_FROM", 40)
    q = cases.normal(2, 20, 8, 128, seed=1).bfloat16()
    row("attention", "aiter-varlen").build(DEVICE[arch])(q, [Segment(q, q)])
    assert [name for name, _ in emulated.CALLS] == [called]


def test_fp8_attention_is_within_the_format_s_bound(aiter):
    aiter([WHEEL, NEWER])
    q = cases.normal(1, 40, 32, 128, seed=1).bfloat16()
    segments = [
        Segment(2 * cases.normal(1, n, 8, 128, seed=n).bfloat16(), cases.normal(1, n, 8, 128, seed=n + 1).bfloat16())
        for n in (7, 90)
    ]
    attention = row("attention", "aiter-fp8").build(DEVICE["gfx950"])
    out, lse = attention(q, segments, want_lse=True)
    expected, expected_lse = reference.attention(q, segments, want_lse=True)
    assert cases.Loss.of(out, expected).whole < 2 * cases.allowed(FORMATS["fp8"])
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-4)
    attention(q[:, :7], [Segment(*segments[0])], causal=True)
    assert [name for name, _ in emulated.CALLS] == ["flash_attn_fp8_pertensor_func", "flash_attn_func"]


def test_fp8_attention_of_the_wheel_is_refused_as_it_takes_no_scales(aiter):
    aiter([WHEEL])
    said = row("attention", "aiter-fp8").refuse(ask(format="fp8"))
    assert said == (
        "flash_attn_fp8_pertensor_func of the installed amd-aiter is another: it begins with "
        "(q, k, v, causal, window_size, softmax_scale), not (q, k, v, q_descale, k_descale, v_descale)"
    )


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("aiter-fa", {"head_dim": 264}, "up to 256"),
        ("aiter-fa", {"head_dim": 100}, "multiples of 8"),
        ("aiter-fp8", {"head_dim": 64, "format": "fp8"}, "head dim 128, not 64"),
    ],
)
def test_heads_that_a_kernel_is_not_written_for_are_refused(name, changed, reason, aiter):
    aiter([WHEEL, NEWER])
    assert reason in row("attention", name).refuse(ask(**changed))
    assert row("attention", name).refuse(ask(format=changed.get("format", "none"))) is None


# Rows


@pytest.mark.parametrize("version", AITERS)
@pytest.mark.parametrize("weight_fp32", [False, True])
def test_norms_round_in_the_order_that_is_asked_for(version, weight_fp32, aiter):
    aiter(AITERS[version])
    op = row("rms_norm", "aiter").build(DEVICE["gfx950"])
    x, residual, weight = cases.norm_inputs("bfloat16")
    for given in ({}, {"residual_MI": residual}):
        found = op(x, weight, eps=1e-6, weight_fp32=weight_fp32, **given)
        expected = reference.rms_norm(x, weight, eps=1e-6, weight_fp32=weight_fp32, **given)
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
        assert float((found[0] != expected[0]).float().mean()) < 0.01


@pytest.mark.parametrize("branches", [1, 2])
def test_projections_are_normed_and_rotated(branches, aiter):
    """Views of one projection, three of them with a norm and one without, at places of their own or shared ones."""
    aiter([WHEEL])
    op = row("norm_rope", "aiter").build(DEVICE["gfx950"])
    whole = cases.normal(2, 9, 12, 64, seed=1).bfloat16()
    weight = (1 + cases.normal(64, seed=2)).bfloat16()
    heads = [(whole[:, :, :8], weight), (whole[:, :, 8:10], weight), (whole[:, :, 8:10], 2 * weight)]
    angles = cases.normal(branches, 9, 32, seed=3).repeat(1, 1, 2)
    tables = angles.cos().bfloat16(), angles.sin().bfloat16()
    for given in (heads, [*heads, (whole[:, :, 10:], None)]):
        found = op(given, *tables, eps=1e-6)
        expected = reference.norm_rope(given, *tables, eps=1e-6)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_a_gate_is_the_reference_s(activation, aiter):
    aiter([WHEEL])
    x = cases.normal(5, 64, seed=1).bfloat16()
    found = row("gate", "aiter").build(DEVICE["gfx950"])(x.clone(), activation=activation)
    torch.testing.assert_close(found, reference.gate(x.clone(), activation=activation), rtol=1e-2, atol=1e-2)


# Products


@pytest.mark.parametrize("version", AITERS)
@pytest.mark.parametrize(
    ("arch", "name", "format"),
    [
        (arch, row.name, format)
        for row in ROWS
        if row.op == "pack_linear" and "aiter" in row.needs
        for arch in row.arch
        for format in row.formats
    ],
)
def test_a_product_by_aiter_is_that_of_the_packed_weight(arch, name, format, version, aiter):
    aiter(AITERS[version], arch)
    assert row("pack_linear", name).refuse(ask(arch, op="pack_linear", format=format, packed=True)) is None
    linear, x, exact = made(name, format, arch)
    # AITER chooses the scales of activations in 4 bits by another rule, and errs as much as the format's own.
    allowed = cases.allowed(FORMATS["mxfp4"]) if format == "mxfp4" else bound(format)
    assert distance(linear(x), exact) < allowed
    assert all(tensor.untyped_storage().nbytes() for tensor in linear.tensors().values())


def test_features_are_filled_up_to_whole_runs_for_four_bits(aiter):
    aiter([WHEEL])
    linear, x, _ = made("aiter-a4w4", "mxfp4")
    assert linear.missing == 128 and linear(x[:1]).shape == (1, OUT) and linear(x).isfinite().all()


@pytest.mark.parametrize(("arch", "format"), [("gfx942", "fp8"), ("gfx950", "fp8"), ("gfx950", "int8")])
def test_a_half_of_a_layer_multiplies_by_aiter_what_its_norm_and_gate_packed(arch, format, aiter):
    """All of its products, none of which adds or gates. Norm and gate are eager torch here: ours have their tests."""
    aiter([WHEEL], arch)
    layer = Layer(heads=4, kv_heads=2, head_dim=64, eps=1e-6, weight_fp32=False, activation="silu")
    sides = {"out_OI": (256, 256), "up_OI": (768, 256), "down_OI": (256, 384)}
    drawn = {name: cases.normal(*side, seed=side[0]) / side[1] ** 0.5 for name, side in sides.items()}
    matrices = {name: matrix.bfloat16() for name, matrix in drawn.items()}
    weights = FinishWeights(norm_I=(1 + cases.normal(256, seed=7)).bfloat16(), **matrices)
    stream, attended = cases.normal(9, 256, seed=8).bfloat16(), cases.normal(1, 9, 4, 64, seed=9).bfloat16()
    ours = row("finish", "aiter-a8w8").build(DEVICE[arch])(weights, layer, OPS, format=format)
    halves = ours, OPS.finish(weights, layer, OPS)
    found, exact = (Residual(stream.clone()) for _ in halves)
    for half, residual in zip(halves, (found, exact), strict=True):
        half(residual, attended)
    y, truth = (one.x_MI.float() + one.delta_MI.float() for one in (found, exact))
    assert cases.Loss.of(y, truth).whole < 2 * cases.allowed(FORMATS[format])
    assert [name for name, _ in emulated.CALLS] == ["gemm_a8w8"] * 3


@pytest.mark.parametrize("fault", ["weight", "scale", "rows"])
def test_a_planted_fault_of_four_bits_is_caught(fault, aiter):
    aiter([WHEEL])
    linear, x, exact = made("aiter-a4w4", "mxfp4")
    if fault == "weight":
        linear.values_OI = emulated.in_rows(linear.values_OI)
    elif fault == "scale":
        linear.scale = linear.scale.roll(1, 0)
    else:
        linear.ROWS = 1
    try:
        assert distance(linear(x), exact) < cases.allowed(FORMATS["mxfp4"])
    except AssertionError:
        return
    pytest.fail(f"{fault}: nobody noticed")
