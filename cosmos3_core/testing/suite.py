"""The tests of the kit, named after what they ask of a device. Star-import them; see `cosmos3_core.testing`.

A test with `kernel` among its arguments runs for every row of its op (`over`), or for every row; with `dtype` and
`format` also for all that the row declares. Fixtures and parameters come from `plugin`.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import prod

import pytest
import torch

from .. import contract
from ..contract import FORMATTED, OPS, Ask, Device, InputError, Unavailable
from ..model.config import VAE_SUPPORTED, TransformerConfig
from ..model.packing import Item, Packing
from ..model.transformer import GenerationTower, UnderstandingTower
from ..model.vae import VideoVAE
from ..model.weights import Target, generation_slots, load_slots, understanding_slots
from ..plan import Plan, Want, resolve
from ..plan.resolve import formats_of
from ..reference import build_ops
from ..reference import ops as reference
from . import cases
from .cases import Loss, check, normal, same_bits, wider
from .subject import live_bytes, row_id

DTYPES = ("float32", "bfloat16", "float16")
PROTOCOLS = {
    "attention": contract.Attention,
    "pack_linear": contract.PackLinear,
    "rms_norm": contract.RmsNorm,
    "norm_rope": contract.NormRope,
    "gate": contract.Gate,
    "patch_embed": contract.PatchEmbed,
    "norm_silu": contract.NormSilu,
    "capture": contract.Capture,
}


def over(op: str):
    """The test is about rows of this op."""

    def mark(test):
        test.op = op
        return test

    return mark


def each(*values):
    """Parametrise `case` over cases with an id."""
    return pytest.mark.parametrize("case", values, ids=lambda case: case.id)


# Declarations ----------------------------------------------------------------------------------------------------


def test_rows_are_well_formed(subject):
    seen = set()
    for row in subject.backend.kernels:
        who = f"row {row_id(row)}"
        assert row.op in OPS, f"{who}: there is no op {row.op!r}"
        assert (row.op, row.name) not in seen, f"{who} is declared twice"
        seen.add((row.op, row.name))
        for key in ("arch", "dtypes", "formats", "needs"):
            value = getattr(row, key)
            assert isinstance(value, tuple) and all(isinstance(v, str) for v in value), f"{who}: {key} is {value!r}"
        assert row.dtypes and row.arch and row.formats, f"{who}: arch, dtypes and formats name at least one each"
        assert set(row.dtypes) <= set(DTYPES), f"{who}: dtypes are among {DTYPES}, not {row.dtypes}"
        assert set(row.formats) <= set(cases.FORMATS), f"{who}: the kit has bounds for {[*cases.FORMATS]} only"
        if row.op in ("rms_norm", "gate"):
            able = {"none", *cases.ROW_FORMATS}
            assert "none" in row.formats and set(row.formats) <= able, f"{who}: formats are none and others of {able}"
        assert callable(row.build) and callable(row.refuse), f"{who}: build and refuse are functions"
        assert type(row.deterministic) is bool, f"{who}: deterministic is True or False"


def test_probe_finds_a_device_or_says_why_not(subject):
    try:
        found = subject.backend.probe()
    except Unavailable as reason:
        assert len(str(reason).split()) > 2, f"Unavailable({str(reason)!r}) is no sentence a user can act on"
        pytest.skip(str(reason))
    except Exception as error:
        pytest.fail(f"probe() raised {error!r}; all it may raise is Unavailable with one sentence", pytrace=False)
    assert isinstance(found, Device), f"probe() returned {found!r}, not a Device"
    assert found.arch and found.name, "the device has an arch and a name"
    assert found.count >= 1 and found.memory > 0, f"{found.count} devices of {found.memory} bytes"
    torch.empty(1, device=subject.backend.torch_device)


def test_import_has_no_side_effects(subject):
    effects = subject.import_effects
    heavy = {"torch"} | {name for row in subject.backend.kernels for name in row.needs}
    loaded = sorted(heavy & set(effects["modules"]))
    assert not loaded, f"importing {subject.module} imports {', '.join(loaded)}; a row's build() is the place for that"
    changed = [name for name in ("environment", "sys.path", "threads", "prints") if effects[name]]
    assert not changed, f"importing {subject.module} changes {', '.join(changed)}: {effects['prints']}"


ODD = dict(dtype="float8_e4m3fn", format="no such format", heads=7, kv_heads=5, head_dim=1)


@pytest.mark.parametrize("odd", [None, "arch", *ODD])
def test_refusals_give_reasons(subject, kernel, odd):
    """An odd request is refused with a sentence or served; it never raises."""
    device = Device(arch="x86_64", name="a device", count=1, memory=2**34, unified=False)
    if isinstance(subject.device, Device):
        device = subject.device
    if odd == "arch":
        device = replace(device, arch="an arch of next year", count=0, memory=0)
    ask = Ask(op=kernel.op, device=device, dtype=kernel.dtypes[0], heads=32, kv_heads=8, head_dim=128)
    ask = replace(ask, **({odd: ODD[odd]} if odd in ODD else {}))
    reason = kernel.refuse(ask)
    assert reason is None or (isinstance(reason, str) and len(reason.split()) > 1), (
        f"refuse() answered {reason!r}: the plan prints it to the user as the reason"
    )


def test_signature_is_the_protocols(kernel, op):
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind.description, p.default) for p in parameters if p.name != "self"]

    expected, found = shape(PROTOCOLS[kernel.op].__call__), shape(op)
    assert found == expected, f"the protocol has {expected}, this row {found}"


# Attention -------------------------------------------------------------------------------------------------------


@over("attention")
@each(*cases.ATTENTION)
def test_attention_parity(kernel, dtype, op, device, case):
    """softmax(q kᵀ / sqrt(D)) v over all segments."""
    allowed = cases.allowance(kernel)
    if allowed and case.keys > 1:
        pytest.skip("a softmax this sharp turns on the last bit of a key, which a quantized one does not have")
    exact, _, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal)
    check(out, exact, eager, dtype, allowed)
    assert lse is None, "lse was not asked for"


@over("attention")
@each(*(case for case in cases.ATTENTION if case.keys == 1))
def test_attention_log_sum_exp(kernel, dtype, op, device, case):
    """The natural logarithm, fp32, [B, H, S]; asking for it changes nothing else."""
    exact, expected, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal, want_lse=True)
    check(out, exact, eager, dtype, cases.allowance(kernel))
    assert lse.shape == expected.shape and lse.dtype == torch.float32, f"lse is {lse.dtype} {list(lse.shape)}"
    worst = float((lse.cpu().double() - expected).abs().max())
    bound = cases.LSE_ABSOLUTE + cases.WORST_ROW * cases.allowance(kernel)
    assert worst <= bound, f"lse is {worst:.1e} away, bound {bound:.1e}"


@over("attention")
def test_causal_attention_sees_no_later_key(kernel, dtype, op, device):
    """Other later keys and values leave every earlier output as it was, bit for bit. (Where keys are quantized, later
    ones may share a scale with earlier ones, so there within the format's bound; their negatives keep the scale.)"""
    q, [(k, v)] = cases.CAUSAL.inputs(dtype, device)
    out, _ = op(q, [(k, v)], causal=True)
    for position in (1, 40, 76):
        later_k, later_v = (torch.cat((t[:, :position], -t[:, position:]), dim=1) for t in (k, v))
        changed, _ = op(q, [(later_k, later_v)], causal=True)
        before, after = (t[:, :position] for t in (out, changed))
        if allowed := cases.allowance(kernel):
            check(after, before.cpu(), before.cpu(), dtype, allowed)
        else:
            assert torch.equal(before, after), f"keys from {position} on changed outputs before {position}"


@over("attention")
def test_causal_attention_sees_its_own_key(kernel, dtype, op, device):
    q, [(k, v)] = cases.CAUSAL.inputs(dtype, device)
    out, _ = op(q, [(k, v)], causal=True)
    last = v.clone()
    last[:, -1] += 50
    changed, _ = op(q, [(k, last)], causal=True)
    moved = (changed - out).abs().amax(dim=-1)[:, -1]
    assert bool((moved > 0).any()), "another value at the last position does not change the last output"


@over("attention")
def test_attention_reads_the_key_head_of_its_group(kernel, dtype, op, device):
    """Key heads hold distinct constants: what comes out of query head j names the key head it read, j * K // H."""
    for heads in (32, 64):
        q, cast = cases.normal(1, 3, heads, 128, seed=1), dict(device=device, dtype=getattr(torch, dtype))
        v = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 16, 8, 128).contiguous().to(**cast)
        out, _ = op(q.to(**cast), [(torch.zeros_like(v), v)])
        read = out[0, 0, :, 0].float().round().int().tolist()
        assert read == [head * 8 // heads for head in range(heads)], f"{heads} query heads read key heads {read}"


@over("attention")
def test_attention_reads_every_segment(kernel, dtype, op, device):
    """One strong key in one segment at a time: its value has to come out."""
    cast = dict(device=device, dtype=getattr(torch, dtype))
    q = torch.ones(1, 4, 32, 128, **cast)
    for strong in range(3):
        segments = [[torch.zeros(1, n, 8, 128, **cast), torch.zeros(1, n, 8, 128, **cast)] for n in (5, 1, 17)]
        segments[strong][0][:, -1], segments[strong][1][:, -1] = 4.0, 1.0
        out, _ = op(q, [tuple(segment) for segment in segments])
        assert float((out.float() - 1).abs().max()) < 0.1, f"a strong key in segment {strong} of 3 is not seen"


# Linear ----------------------------------------------------------------------------------------------------------


@over("pack_linear")
@each(*cases.LINEAR)
def test_linear_parity(kernel, dtype, format, op, device, case):
    """x Wᵀ + b for several numbers of rows; one output's weights are 50 times larger than the others'."""
    weight, bias = case.weights(dtype, device)
    linear = op(weight.clone(), None if bias is None else bias.clone(), format=format)
    for rows in cases.ROWS:
        cases.check_linear(linear, case.input(rows, dtype, device), weight, bias, dtype, format)


@over("pack_linear")
def test_linear_weight_is_not_transposed(kernel, dtype, format, op, device):
    """A square weight that moves input i to output i + 1: a transposed one would move it to i - 1."""
    weight = torch.eye(256).roll(1, dims=0).to(device, getattr(torch, dtype))
    x = cases.SQUARE.input(5, dtype, device)
    cases.check_linear(op(weight.clone(), None, format=format), x, weight, None, dtype, format)


@over("pack_linear")
def test_linear_adds_its_bias(kernel, dtype, format, op, device):
    weight, bias = cases.BIASED.weights(dtype, device)
    y = op(weight.clone(), bias.clone(), format=format)(torch.zeros(3, 256, device=device, dtype=bias.dtype))
    torch.testing.assert_close(y, bias.expand(3, -1), msg=lambda text: f"a row of zeros gives the bias: {text}")


@over("pack_linear")
def test_linear_packing_is_not_stale(kernel, dtype, format, op, device):
    """Weights of one shape, packed one after another, some when another has been freed: each keeps its own values."""
    x, linears = cases.BIASED.input(77, dtype, device), {}
    for seed in range(4):
        weight, bias = cases.BIASED.weights(dtype, device, seed=10 * seed)
        linears[seed] = op(weight, bias, format=format)
        linears[seed](x)
        if seed % 2:
            del linears[seed]
        del weight, bias
        gc.collect()
    for seed, linear in linears.items():
        cases.check_linear(linear, x, *cases.BIASED.weights(dtype, device, seed=10 * seed), dtype, format)


@over("pack_linear")
def test_linear_multiplies_quantized_rows(kernel, dtype, format, op, device):
    """Rows of every size that something else has quantized, to what it gives for the rows themselves."""
    weight, bias = cases.BIASED.weights(dtype, device)
    linear = op(weight.clone(), bias.clone(), format=format)
    takes = getattr(linear, "takes", "none")
    if takes == "none":
        pytest.skip("it takes tensors only")
    assert takes in cases.ROW_FORMATS, f"it takes {takes}, and rows come in {cases.ROW_FORMATS}"
    x = (cases.sizes(-2, 2) * cases.BIASED.input(77, "float32")).to(device, bias.dtype)
    plain = linear(x).cpu()
    check(linear(cases.quantized(x, takes)), plain, plain, dtype, cases.FORMATS[takes])  # which ties may cost


@over("pack_linear")
def test_linear_applies_the_gate(kernel, dtype, format, op, device):
    """Of [gate | up], where it can."""
    weight, bias = cases.BIASED.weights(dtype, device)
    weight[3] /= 50  # or else nothing but that output would count
    x, linear = cases.BIASED.input(77, dtype, device), op(weight.clone(), bias.clone(), format=format)
    gated = linear.gated() if hasattr(linear, "gated") else linear
    if not getattr(gated, "gates", False):
        pytest.skip("it leaves the gate to the op of that name")
    exact, eager = (
        reference.gate(reference.pack_linear(w, b)(rows), activation="silu")
        for w, b, rows in (cases.wider([t.cpu() for t in (weight, bias, x)], kind) for kind in (torch.float64, x.dtype))
    )
    check(gated(x), exact, eager, dtype, cases.FORMATS[format])


@over("pack_linear")
def test_linear_adds_to_a_residual(kernel, dtype, format, op, device):
    """Where it can. The rows that it multiplies stay as they are."""
    weight, bias = cases.BIASED.weights(dtype, device)
    weight[3] /= 50  # or else nothing but that output would count
    linear = op(weight.clone(), bias.clone(), format=format)
    if not getattr(linear, "adds", False):
        pytest.skip("it leaves the sum to the next norm")
    for rows in cases.ROWS:
        x, residual = cases.BIASED.input(rows, dtype, device), cases.SQUARE.input(rows + 1, dtype, device)[1:]
        given = [t.cpu() for t in (weight, bias, x, residual)]
        exact, eager = (
            r + reference.pack_linear(w, b)(h)
            for w, b, h, r in (wider(given, kind) for kind in (torch.float64, x.dtype))
        )
        check(linear(x, residual_MO=residual.clone()), exact, eager, dtype, cases.FORMATS[format])
        assert torch.equal(x.cpu(), given[2]), "it has overwritten the rows that it multiplies"


# Norms and rotation ----------------------------------------------------------------------------------------------

RESIDUAL = pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
ORDER = pytest.mark.parametrize("weight_fp32", [False, True], ids=["round_first", "round_once"])


@over("rms_norm")
@ORDER
@RESIDUAL
def test_rms_norm_parity(kernel, dtype, format, op, device, residual, weight_fp32):
    """In each format in which the row can return its result; the second result is never quantized."""
    x, added, weight = cases.norm_inputs(dtype, device)
    options = dict(eps=1e-6, weight_fp32=weight_fp32)
    found, z = op(x, weight, residual_MI=added if residual else None, format=format, **options)
    x, added, weight = (t.cpu() for t in (x, added, weight))
    sum_MI = x + added if residual else x
    eager, _ = reference.rms_norm(sum_MI, weight, **options)
    exact, _ = reference.rms_norm(sum_MI.float(), weight.float(), **options)
    check(cases.dequantized(found), exact, cases.rounded(eager, format), dtype)
    assert z.dtype == sum_MI.dtype and torch.equal(z.cpu(), sum_MI), "the second result is not x + residual"


@over("rms_norm")
def test_rms_norm_of_rows_of_every_size(kernel, dtype, format, op, device):
    """An eps of 1 keeps small rows small, and zeros zeros. Quantized as the plain result would be, row by row."""
    x, _, weight = cases.norm_inputs(dtype, scale=cases.sizes(-2, 2))
    found, plain = (op(x.to(device), weight.to(device), eps=1.0, format=name)[0] for name in (format, "none"))
    exact, eager = (reference.rms_norm(*given, eps=1.0)[0] for given in (wider((x, weight)), (x, weight)))
    check(cases.dequantized(found), exact, cases.rounded(eager, format), dtype)
    if format != "none":
        cases.check_quantized(found, plain, format)


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
    """Two orders of rounding differ in every fourth element or so; the same order in hardly any."""
    if dtype == "float32":
        pytest.skip("nothing is rounded in between")
    x, _, weight = cases.norm_inputs(dtype, device)
    found, _ = op(x, weight, eps=1e-6, weight_fp32=weight_fp32)
    share = _share_unequal(found, reference.rms_norm(x.cpu(), weight.cpu(), eps=1e-6, weight_fp32=weight_fp32)[0])
    assert share < 0.02, f"{share:.0%} of the elements differ from eager with weight_fp32={weight_fp32}"


@over("norm_rope")
@ORDER
@pytest.mark.parametrize(("batch", "tables"), [(1, 1), (2, 1), (2, 2)], ids=["b1", "b2_one_table", "b2_two_tables"])
def test_norm_rope_parity(kernel, dtype, op, device, batch, tables, weight_fp32):
    """Query heads, key heads, and heads without a weight, in one call."""
    options = dict(eps=1e-6, weight_fp32=weight_fp32)
    found = op(*cases.rope_inputs(dtype, device, tables=tables, batch=batch), **options)
    inputs = cases.rope_inputs(dtype, tables=tables, batch=batch)
    assert len(found) == len(inputs[0]), f"{len(found)} results for {len(inputs[0])} projections"
    exact, eager = reference.norm_rope(*wider(inputs), **options), reference.norm_rope(*inputs, **options)
    for ours, truth, theirs in zip(found, exact, eager, strict=True):
        check(ours, truth, theirs, dtype)


@over("norm_rope")
def test_norm_rope_eps(kernel, dtype, op, device):
    found = op(*cases.rope_inputs(dtype, device, scale=1e-3), eps=1e-5)
    inputs = cases.rope_inputs(dtype, scale=1e-3)
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


# Gate ------------------------------------------------------------------------------------------------------------


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


# Patches ---------------------------------------------------------------------------------------------------------


@over("patch_embed")
@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "first_clean"])
@pytest.mark.parametrize("size", [(6, 10), (5, 7)], ids=["even", "odd"])
def test_patch_embed_parity(kernel, dtype, op, device, size, clean):
    """Whole and broken patches, with the timestep on every frame or on all but the first."""
    (here, asked), (inputs, options) = (cases.patch_inputs(dtype, place, size, clean) for place in (device, "cpu"))
    exact, eager = (reference.patch_embed(*given, **options) for given in (wider(inputs, torch.float64), inputs))
    check(op(*here, **asked), exact, eager, dtype)


@over("patch_embed")
def test_patch_embed_orders_features(kernel, dtype, op, device):
    """The weight is the identity: out comes a patch, channel fastest, then column, then row."""
    latent = torch.arange(3 * 4 * 6.0).view(3, 1, 4, 6).to(device)
    weight, zeros = (t.to(device, getattr(torch, dtype)) for t in (torch.eye(12), torch.zeros(12)))
    second = op(latent, weight, zeros, zeros.view(1, -1), patch=2)[1].tolist()
    assert second == [2, 26, 50, 3, 27, 51, 8, 32, 56, 9, 33, 57], f"the second token's features are {second}"


# Norm and activation ---------------------------------------------------------------------------------------------


@over("norm_silu")
@pytest.mark.parametrize("width", [1024, 256, 96])
def test_norm_silu_parity(kernel, dtype, op, device, width):
    """Rows over five orders of magnitude, and one of zeros, which stays one."""
    x, weight = cases.silu_inputs(dtype, width=width)
    found = op(x.to(device), weight.to(device))
    check(found, reference.norm_silu(x.float(), weight.float()), reference.norm_silu(x, weight), dtype)
    assert not found[2].any(), "a row of zeros does not give zeros"


@over("norm_silu")
@pytest.mark.parametrize("residual", [False, True], ids=["bias", "both"])
def test_norm_silu_adds_first(kernel, dtype, op, device, residual):
    """The bias and the residual are part of what is normed; with a residual the sum takes x's place."""
    x, weight = cases.silu_inputs(dtype)
    bias, rest = (4 * cases.normal(*shape, seed=3).to(x.dtype) for shape in ((256,), (77, 256)))
    terms = {"bias_I": bias} | ({"residual_MI": rest} if residual else {})
    total = x.float() + bias.float() + (rest.float() if residual else 0)
    given = x.to(device)
    found = op(given, weight.to(device), **{name: term.to(device) for name, term in terms.items()})
    check(found, reference.norm_silu(total, weight.float()), reference.norm_silu(total.to(x.dtype), weight), dtype)
    if residual:
        assert Loss.of(given.cpu(), total).whole < 2 * Loss.of(total.to(x.dtype), total).whole + 1e-6, (
            "x does not hold the sum"
        )


@over("norm_silu")
def test_norm_silu_writes_where_it_is_told(kernel, dtype, op, device):
    """Into rows of a larger tensor, and nothing around them."""
    x, weight = cases.silu_inputs(dtype, device)
    padded = torch.full((90, 256), 7.0, device=device, dtype=x.dtype)
    out = padded[5:82]
    found = op(x, weight, out_MI=out)
    assert found.data_ptr() == out.data_ptr() and found.shape == out.shape, "the result is not out_MI"
    assert torch.equal(out, op(x, weight)), "out_MI does not hold what is returned without it"
    assert bool((padded[:5] == 7).all() and (padded[82:] == 7).all()), "rows around out_MI are overwritten"


# Capture ---------------------------------------------------------------------------------------------------------


def _same(found, expected) -> bool:
    """Up to what another choice of matrix kernel may change."""
    return all(Loss.of(a, b.cpu()).whole < 0.02 for a, b in zip(found, expected, strict=True))


@over("capture")
def test_capture_follows_its_inputs(kernel, dtype, op, device):
    """New tensors in each call, then the same tensors with other contents, then what the last call returned."""
    step = cases.Step.of(dtype, device)
    captured = op(step)
    for seed in range(5):
        given = step.input(seed)
        assert _same(captured(*given), step(*given)), f"call {seed + 1} does not give what the function gives"
    for _ in range(2):
        given[0].mul_(-1)
        assert _same(captured(*given), step(*given)), "inputs changed in place are not seen"
    ours, theirs = given, given
    for _ in range(2):
        ours, theirs = captured(*ours), step(*theirs)
    assert _same(ours, theirs), "results do not serve as inputs"


@over("capture")
def test_captures_are_apart(kernel, dtype, op, device):
    """Two functions with inputs of the same shapes, called by turns: the same kernels with other weights."""
    steps = [cases.Step.of(dtype, device, seed) for seed in (1, 2)]
    captured = [op(step) for step in steps]
    for seed in range(4):
        found = [ours(*step.input(seed)) for ours, step in zip(captured, steps, strict=True)]
        for ours, step in zip(found, steps, strict=True):
            assert _same(ours, step(*step.input(seed))), "a captured function gives what another should"


@over("capture")
@pytest.mark.parametrize("run", [1, 2])
def test_capture_raises_what_its_function_raises(kernel, dtype, op, device, run):
    """Whenever it runs the function, for the first time or to record it; what is captured after that works."""
    step, runs = cases.Step.of(dtype, device), 0

    def fails(x, y):
        nonlocal runs
        results, runs = step(x, y), runs + 1
        if runs == run:
            raise LookupError("on purpose")
        return results

    captured, raised = op(fails), []
    for seed in range(3):
        try:
            captured(*step.input(seed))
        except Exception as error:
            raised.append(error)
    expected = [LookupError] if runs >= run else []
    assert [type(error) for error in raised] == expected, f"the function raised {expected}, the callable {raised}"
    captured = op(step)
    for seed in range(3):
        assert _same(captured(*step.input(seed)), step(*step.input(seed))), "nothing can be captured after a failure"


@over("capture")
def test_capture_gives_its_memory_back(kernel, dtype, op, device):
    """All of it, with the callable: whoever captures anew for every request must not run out."""

    step = cases.Step.of(dtype, device)

    def use(calls: int) -> None:
        captured = op(step)
        for seed in range(calls):
            captured(*step.input(seed))

    use(3)
    before = live_bytes(device)
    for calls in (1, 2, 4):
        use(calls)
        kept = live_bytes(device) - before
        assert kept <= 0, f"{kept} bytes outlive a callable that was called {calls} times"


# A row among others ----------------------------------------------------------------------------------------------


def test_inputs_are_left_alone(kernel, op, job):
    """The gate may overwrite its input; no other op may."""
    if kernel.op == "gate":
        pytest.skip("its protocol allows it")
    kept = []

    def spy(*arguments, **options):
        tensors = _tensors([arguments, *options.values()])
        kept.extend((tensor, tensor.clone()) for tensor in tensors)
        found = op(*arguments, **options)
        return spy_made(found) if kernel.op in ("pack_linear", "capture") else found

    def spy_made(made):
        def call(*arguments):
            kept.extend((tensor, tensor.clone()) for tensor in arguments)
            return made(*arguments)

        # The weight is the packed form's from now on: only what is multiplied by it has to stay.
        kept.clear()
        return call

    job(spy)
    assert kept and all(torch.equal(now, before) for now, before in kept), "an input was overwritten"


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def test_building_twice_is_harmless(subject, kernel, op, job):
    first = job(op)
    job(kernel.build(subject.device))
    again = job(op)
    for before, after in zip(first, again, strict=True):
        same = (
            torch.equal(before, after) if kernel.deterministic else torch.allclose(before, after, rtol=0.05, atol=0.05)
        )
        assert same, "what the first build gives is not what it gave before the second"


def test_deterministic_rows_are_in_one_process(kernel, op, job, record_property):
    first = job(op)
    same = all(same_bits(first, job(op)) for _ in range(7))
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and a repetition gives other bits"


def test_deterministic_rows_are_across_processes(subject, kernel, op, job, record_property):
    from .watch import digest

    there = subject.watched["rows"][row_id(kernel)]
    assert "digest" in there, f"in a fresh process it raised {there.get('error')}"
    same = there["digest"] == digest(job(op))
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and another process gives other bits"


def test_memory_is_returned_after_a_job(kernel, op, job, device):
    """Tables and workspaces of a first job may stay; what comes with every further job may not."""
    for _ in range(2):
        job(op)
    before = live_bytes(device)
    for _ in range(3):
        job(op)
    kept = live_bytes(device) - before
    assert kept <= 0, f"3 jobs left {kept} bytes of tensors behind"


def test_probe_changes_nothing_global(subject, device):
    changed = subject.watched["probe"]
    assert not changed, f"probe() changed {'; '.join(changed)}"


def test_kernels_change_nothing_global(subject, kernel, op):
    """Building and calling, watched in a fresh process: environment, torch's settings, random streams, folders."""
    changed = subject.watched["rows"][row_id(kernel)]["changed"]
    assert not changed, f"building or calling this row changed {'; '.join(changed)}"


# All rows together -----------------------------------------------------------------------------------------------

SMALL = TransformerConfig(
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=384,
    vocab_size=64,
)
CONFIGS = {
    "nano": SMALL,
    "super": replace(SMALL, hidden_size=128, num_attention_heads=16),
    "edge": replace(SMALL, hidden_act="relu2", qk_norm_for_text=False, use_und_k_norm_for_gen=True, rms_norm_eps=1e-5),
}


def _velocities(
    config: TransformerConfig, ops, device: str, dtype: str, format: str = "none", kept: contract.Ops | None = None
) -> torch.Tensor:
    """One step of both guidance branches, flat, on random weights: norms near 1, the rest of a trained size."""

    def read(names):
        for i, (name, shape) in enumerate(shapes.items()):
            noise = normal(*shape, seed=i)
            yield name, 1 + 0.2 * noise if "norm" in name else noise * (0.02 if len(shape) < 2 else shape[1] ** -0.5)

    target = Target(ops=ops, kept=kept or ops, device=device, dtype=getattr(torch, dtype), format=format)
    weights = []
    for slots in (understanding_slots(config), generation_slots(config)):
        shapes = {name: shape for slot in slots for name, shape in slot.tensors().items()}
        weights.append(load_slots(slots, read, target))
    understanding = UnderstandingTower(config, kept or ops, weights[0])
    generation = GenerationTower(config, ops, weights[1], kept)
    texts = [understanding.prefill([token % 64 for token in range(3, 3 + 7 * length)]) for length in (11, 2)]
    items = (Item("vision", (config.latent_channel, 3, 10, 7), clean=(0,)),)
    branches = generation.branches(Packing(items, config, device), texts)
    found = generation.forward(branches, [normal(*item.shape, seed=5) for item in items], 700.0)
    return torch.cat([velocity.flatten() for items in found for velocity in items])


EAGER = build_ops()


@cache
def _exact_velocities(config: TransformerConfig) -> torch.Tensor:
    return _velocities(config, EAGER, "cpu", "float32")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformer_step_parity(subject, device, dtype, config):
    """Both towers with the plan's kernels against the reference, one denoising step with two guidance branches."""
    try:
        ops = resolve(Want.of(config, dtype), subject.backend, subject.device).build_ops()
    except InputError as error:
        pytest.skip(str(error))
    with torch.inference_mode():
        eager = _velocities(config, EAGER, "cpu", dtype)
        check(_velocities(config, ops, device, dtype), _exact_velocities(config), eager, dtype)


def _plans(subject, of: str) -> Iterator[tuple[str, Plan]]:
    """(format, plan) for each format of this op that the device can run. Skips where rows declare none."""
    formats = formats_of(subject.backend, of)
    if not formats:
        pytest.skip(f"no row of {of} declares a quantization format")
    for format in formats:
        try:
            yield format, resolve(Want.of(SMALL, "bfloat16", formats={of: format}), subject.backend, subject.device)
        except InputError:
            continue  # the rows' own tests tell why


@pytest.mark.parametrize("of", FORMATTED)
def test_transformer_step_in_every_format(subject, device, of):
    """The same in each format that rows of this op declare: what is kept is kept, what is quantized fits together."""
    with torch.inference_mode():
        eager = _velocities(SMALL, EAGER, "cpu", "bfloat16")
        for format, plan in _plans(subject, of):
            ops = plan.build_ops()
            found = _velocities(
                SMALL, ops, device, "bfloat16", plan.formats.get("pack_linear", "none"), plan.build_kept(ops)
            )
            # Two layers with a residual stream around them lose about what one product does.
            check(found, _exact_velocities(SMALL), eager, "bfloat16", cases.FORMATS[format])


def test_transformer_step_whoever_quantizes(subject, device):
    """Norms and gate that hand over quantized rows give what the linears give that quantize them."""
    with torch.inference_mode():
        for format, plan in _plans(subject, "pack_linear"):
            built = (ops := plan.build_ops(), plan.build_kept(ops))
            there, here = (
                _velocities(SMALL, ops, device, "bfloat16", format, kept).cpu()
                for ops, kept in (built, [replace(ops, formats={}) for ops in built])
            )
            moved, lost = Loss.of(there, here).whole, Loss.of(here, _exact_velocities(SMALL)).whole
            assert moved <= lost / 2, f"{format}: velocities are {moved:.1e} apart, and the format costs {lost:.1e}"


VAE = {
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 1.0, 1.5, 0.8],
    **VAE_SUPPORTED,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}


def _frames(ops, device: str, dtype: str, tile: int | None) -> torch.Tensor:
    """Three latent frames of 5 x 6 decoded on random weights, [F, H, W, 3] in 0 to 255."""
    tensors = (
        (
            name,
            1 + 0.2 * normal(*shape, seed=i)
            if "norm" in name
            else normal(*shape, seed=i) / max(1, prod(shape[1:])) ** 0.5,
        )
        for i, (name, shape) in enumerate(VideoVAE.names(VAE, "the kit's VAE").items())
    )
    options = {"source": "the kit's VAE", "device": device, "dtype": getattr(torch, dtype), "halves": ("decoder",)}
    vae = VideoVAE.load(VAE, tensors, ops, **options)
    return torch.cat([*vae.decode(normal(4, 3, 5, 6, seed=1), tile)]).float()


@pytest.mark.parametrize("tile", [None, 64], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vae_decode_parity(subject, device, dtype, tile):
    """Frames decoded whole, and in tiles: their seams are where the reference's are, and blended alike."""
    try:
        ops = resolve(Want.of(SMALL, dtype), subject.backend, subject.device).build_ops()
    except InputError as error:
        pytest.skip(str(error))
    eager, exact = (_frames(EAGER, "cpu", name, tile) for name in (dtype, "float32"))
    found = _frames(ops, device, dtype, tile)
    assert found.shape == exact.shape == (9, 80, 96, 3)
    # Levels of 256: a rounding that goes the other way is one of them. TF32, which torch lets convolutions of fp32 use,
    # turns one in fifty: 0.14 levels on an H100.
    ours, theirs = ((frames - exact).square().mean().sqrt() for frames in (found, eager))
    assert ours <= cases.MULTIPLE * theirs + 0.25, f"{ours:.2f} levels from the truth; eager {dtype} is {theirs:.2f}"


TESTS = tuple(name for name in dict(globals()) if name.startswith("test_"))
pytest_plugins = ["cosmos3_core.testing.plugin"]
__all__ = [*TESTS, "pytest_plugins"]
