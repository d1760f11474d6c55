"""The fused halves of a decoder layer: against the composed ones, and against the same kernels one after another."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, partial

import pytest
import torch
from cosmos3_triton import layers, products, row_wise
from cosmos3_triton.activations import Rows, quantize_rows
from cosmos3_triton.rows import IN_FINISH, IN_PROJECT, layer_rows
from cosmos3_triton.tables import Launch, Table, table
from torch import Tensor

from cosmos3_core.contract import Ask, Device, FinishWeights, Layer, Ops, Projected, ProjectWeights, Residual
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack
from cosmos3_core.reference import layers as composed
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases

TILES = Launch(block_m=16, block_n=64, block_k=64, warps=4, stages=2)
OWN = dict.fromkeys(("scaled_mm", products.ADDING, "gated_mm_8bit", "gated_mm_16bit"), (TILES,))


def small(arch: str, *kernels: str) -> Table:
    """The architecture's table with these products in small tiles."""
    return replace(table(arch), launches=table(arch).launches | {name: OWN[name] for name in kernels})


TABLES = {"sm_80": small("sm_80", "scaled_mm"), "sm_90": small("sm_90", *OWN), "sm_120": small("sm_120", "scaled_mm")}
"""sm_90's products gate and add; the others' do neither, and sm_80's tiles are loaded by pointer."""
EIGHT = pytest.mark.parametrize(("arch", "format"), [("sm_80", "int8"), ("sm_90", "fp8"), ("sm_120", "fp8")])
"""sm_80 has no 8-bit floats, and the formats differ in how rows are rounded alone: int8 need not be everywhere."""
FORMATTED = pytest.mark.parametrize("format", ["none", "int8", "fp8"])
EVERY = pytest.mark.parametrize(
    ("arch", "format"),
    [("sm_80", "none"), ("sm_80", "int8"), ("sm_90", "none"), ("sm_90", "int8"), ("sm_90", "fp8"), ("sm_120", "fp8")],
)
LOST = {"none": 0.0, "int8": 0.05, "fp8": 0.12}
"""Of a half's results, in a format: one product after another rounds its inputs."""
HIDDEN, INNER, TOKENS = 64, 96, 17
"""No whole tiles of rows, of [gate | up] several, and of the last product's inputs one and a half."""


def fail(*args, **options):
    raise AssertionError("an op that is fused was called")


def ops_of(of: Table, *fused: str) -> Ops:
    """Our row-wise kernels and the default halves, and of other ops none; those that are `fused` fail."""
    names = [field.name for field in fields(Ops)]
    ours = {name: getattr(row_wise, f"build_{name}")(of) for name in ("rms_norm", "norm_rope", "gate")}
    defaults = {"project": composed.project, "finish": composed.finish}
    return Ops(**dict.fromkeys(names, fail) | ours | defaults | dict.fromkeys(fused, fail))


REFERENCE = Ops(**{field.name: getattr(reference, field.name, fail) for field in fields(Ops)})


@dataclass(frozen=True)
class Case:
    """A layer with its inputs, in a dtype. `delta`: something is still to be added to the residual stream."""

    dtype: torch.dtype = torch.bfloat16
    activation: str = "silu"
    weight_fp32: bool = False
    branches: int = 1
    delta: bool = True
    head_norms: bool = True
    for_gen: bool = False

    def normal(self, *shape: int, seed: int) -> Tensor:
        return cases.normal(*shape, seed=seed).to(self.dtype)

    def weight(self, *shape: int, seed: int) -> Tensor:
        return (cases.normal(*shape, seed=seed) / shape[-1] ** 0.5).to(self.dtype)

    def norm(self, width: int, seed: int) -> Tensor:
        return (1 + 0.2 * cases.normal(width, seed=seed)).to(self.dtype)

    @cached_property
    def layer(self) -> Layer:
        numbers = dict(heads=4, kv_heads=2, head_dim=16, eps=1e-5)
        return Layer(**numbers, weight_fp32=self.weight_fp32, activation=self.activation)

    @cached_property
    def before(self) -> ProjectWeights:
        heads = dict(norm_q_D=self.norm(16, 3), norm_k_D=self.norm(16, 4)) if self.head_norms else {}
        if self.for_gen:
            heads["norm_k_for_gen_D"] = self.norm(16, 5)
        return ProjectWeights(norm_I=self.norm(HIDDEN, 1), qkv_OI=self.weight(128, HIDDEN, seed=2), **heads)

    @cached_property
    def after(self) -> FinishWeights:
        up = self.weight(INNER * (2 if self.activation == "silu" else 1), HIDDEN, seed=7)
        out, down = self.weight(HIDDEN, 64, seed=6), self.weight(HIDDEN, INNER, seed=8)
        return FinishWeights(out_OI=out, norm_I=self.norm(HIDDEN, 9), up_OI=up, down_OI=down)

    def stream(self) -> Residual:
        rows = self.branches * TOKENS
        delta = self.normal(rows, HIDDEN, seed=11) if self.delta else None
        return Residual(self.normal(rows, HIDDEN, seed=10), delta)

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor]:
        angle = cases.normal(self.branches, TOKENS, 16, seed=12)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    @cached_property
    def attended(self) -> Tensor:
        return self.normal(self.branches, TOKENS, 4, 16, seed=13)


def doubled(value):
    """Weights or tensors in fp64."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, Residual | ProjectWeights | FinishWeights):
        return type(value)(**{name: doubled(part) for name, part in vars(value).items()})
    return value


def projected(half, case: Case, as_it_is=lambda value: value) -> tuple[Projected, Residual]:
    stream = as_it_is(case.stream())
    return half(stream, *map(as_it_is, case.angles)), stream


def finished(half, case: Case, as_it_is=lambda value: value) -> Tensor:
    """The sum of the stream afterwards. What is before it comes without a delta: Project leaves none."""
    stream = as_it_is(Residual(case.stream().x_MI))
    half(stream, as_it_is(case.attended))
    return stream.x_MI if stream.delta_MI is None else stream.x_MI + stream.delta_MI


PROJECT = [
    Case(),
    Case(dtype=torch.float16, weight_fp32=True, branches=2, for_gen=True),
    Case(delta=False, head_norms=False),
]
FINISH = [
    Case(),
    Case(dtype=torch.float16, weight_fp32=True, branches=2),
    Case(activation="relu2"),
]


@EIGHT
@pytest.mark.parametrize("case", PROJECT, ids=["plain", "for_gen", "bare"])
def test_project_is_the_composed_one(case, format, arch):
    """But for what the format loses. The stream holds the sum, which is no rounded one, and no delta."""
    ops = ops_of(TABLES[arch], *IN_PROJECT)
    fused = layers.build_project(TABLES[arch])(case.before, case.layer, ops, format=format)
    found, stream = projected(fused, case)
    eager, expected = projected(composed.project(case.before, case.layer, REFERENCE), case)
    exact, _ = projected(composed.project(doubled(case.before), case.layer, REFERENCE), case, doubled)
    assert stream.delta_MI is None and torch.equal(stream.x_MI, expected.x_MI)
    assert (found.k_for_gen_BSKD is None) == (not case.for_gen)
    for ours, truth, theirs in zip(found, exact, eager, strict=True):
        if ours is not None:
            cases.check(ours, truth, theirs, str(case.dtype).removeprefix("torch."), LOST[format])


@EVERY
@pytest.mark.parametrize("case", FINISH, ids=["silu", "float16", "relu2"])
def test_finish_is_the_composed_one(case, format, arch):
    fused_ops = IN_FINISH if format != "none" else ("pack_linear", "gate")
    finish = layers.build_finish(TABLES[arch])(case.after, case.layer, ops_of(TABLES[arch], *fused_ops), format=format)
    exact = finished(composed.finish(doubled(case.after), case.layer, REFERENCE), case, doubled)
    eager = finished(composed.finish(case.after, case.layer, REFERENCE), case)
    cases.check(finished(finish, case), exact, eager, str(case.dtype).removeprefix("torch."), LOST[format])


@EVERY
def test_what_a_finish_leaves_in_the_stream(arch, format):
    """Where products add, the sum, in the place of x; else the sum of all but the last product, which is the delta."""
    case, of = Case(), TABLES[arch]
    stream = Residual(x := case.stream().x_MI)
    layers.build_finish(of)(case.after, case.layer, ops_of(of), format=format)(stream, case.attended)
    if format == "none" or arch == "sm_90":
        assert stream.delta_MI is None and stream.x_MI is x
    else:
        assert stream.delta_MI.shape == x.shape and stream.x_MI is not x


@EIGHT
def test_project_has_the_bits_of_its_kernels_one_after_another(format, arch):
    case, of = Case(branches=2, for_gen=True), TABLES[arch]
    found, stream = projected(layers.build_project(of)(case.before, case.layer, ops_of(of), format=format), case)
    ops, weights, begin = ops_of(of), case.before, case.stream()
    h, x = ops.rms_norm(begin.x_MI, weights.norm_I, eps=1e-5, residual_MI=begin.delta_MI)
    heads = product(quantize_rows(h, format), weights.qkv_OI, format, of).view(2, TOKENS, 8, 16)
    q, k, v = heads.split([4, 2, 2], dim=2)
    normed = [(q, weights.norm_q_D), (k, weights.norm_k_D), (k, weights.norm_k_for_gen_D)]
    q, k, k_for_gen = ops.norm_rope(normed, *case.angles, eps=1e-5)
    assert torch.equal(stream.x_MI, x)
    assert all(torch.equal(*pair) for pair in zip(found, (q, k, v, k_for_gen), strict=True))


def product(rows: Rows, weight_OI: Tensor, format: str, of: Table, **options) -> Tensor:
    packed = pack(weight_OI, FORMATS[format], weight=True)
    operands = (rows.values_MI, packed.values, rows.scale_M1, packed.scales, None, rows.dtype, of)
    return products.scaled_mm(*operands, **options)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize(("arch", "format"), [("sm_80", "int8"), ("sm_120", "fp8")])
def test_finish_has_the_bits_of_its_kernels_one_after_another(format, activation, arch):
    case, of = Case(activation=activation), TABLES[arch]
    found = finished(layers.build_finish(of)(case.after, case.layer, ops_of(of), format=format), case)
    ops, weights, times = ops_of(of), case.after, partial(product, format=format, of=of)
    added = times(quantize_rows(case.attended.reshape(TOKENS, -1), format), weights.out_OI)
    h, x = ops.rms_norm(case.stream().x_MI, weights.norm_I, eps=1e-5, residual_MI=added)
    h = ops.gate(times(quantize_rows(h, format), weights.up_OI), activation=activation)
    assert torch.equal(found, x + times(quantize_rows(h, format), weights.down_OI))


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_finish_that_gates_and_adds_has_the_bits_of_its_kernels(format):
    case, of, x = Case(), TABLES["sm_90"], Case().stream().x_MI
    found = finished(layers.build_finish(of)(case.after, case.layer, ops_of(of), format=format), case)
    weights, times = case.after, partial(product, format=format, of=of)
    times(quantize_rows(case.attended.reshape(TOKENS, -1), format), weights.out_OI, residual_MO=x)
    h, _ = ops_of(of).rms_norm(x, weights.norm_I, eps=1e-5)
    order = products.gated_order(torch.empty_like(weights.up_OI, dtype=torch.int8), of)
    h = times(quantize_rows(h, format), weights.up_OI[order], gated=True)
    times(quantize_rows(h, format), weights.down_OI, residual_MO=x)
    assert torch.equal(found, x)


@pytest.mark.parametrize("of", [Table("sm_90", {}), TABLES["sm_80"]], ids=["no launch", "not its architecture"])
def test_a_gate_of_its_own_where_no_product_applies_it(of):
    weight = Case().after.up_OI
    for format in ("none", "fp8"):
        matrix = layers.packed(weight, format, of, products.scaled_mm)
        assert layers.with_gate(matrix, "silu", of) is matrix
    gating = TABLES["sm_90"]
    for format, activation, rows in (("none", "relu2", 192), ("fp8", "silu", 176)):  # no gate, and no whole tiles
        matrix = layers.packed(weight[:rows], format, gating, products.scaled_mm)
        assert layers.with_gate(matrix, activation, gating) is matrix


@FORMATTED
@pytest.mark.parametrize("of", [TABLES["sm_90"], small("sm_80", *OWN)], ids=["sm_90", "gates and adds by pointer"])
def test_rows_of_the_stream_and_of_what_was_attended_may_lie_apart(of, format):
    case = Case()
    half = layers.build_finish(of)(case.after, case.layer, ops_of(of), format=format)
    x, attended = case.stream().x_MI, case.attended
    apart = Residual(torch.cat((x, x), dim=1)[:, :HIDDEN])
    half(apart, torch.cat((attended, attended), dim=2)[:, :, :4])
    expected = finished(half, case)
    assert torch.equal(apart.x_MI if apart.delta_MI is None else apart.x_MI + apart.delta_MI, expected)


@pytest.mark.parametrize(("arch", "format"), [("sm_90", "none"), ("sm_90", "fp8"), ("sm_120", "fp8")])
def test_tensors_are_all_that_a_call_reads(arch, format):
    """With another layer's storage behind them a half is the other layer's."""
    of, case = TABLES[arch], Case(for_gen=True)
    other = Case(for_gen=True)
    for weights in (other.before, other.after):
        for tensor in vars(weights).values():
            tensor.copy_(tensor.flip(0))
    halves = [("build_finish", "after", finished)]
    halves += [("build_project", "before", lambda *half: projected(*half)[0].q_BSHD)] if format != "none" else []
    for build, side, run in halves:
        make = getattr(layers, build)(of)
        first, second = (make(getattr(c, side), c.layer, ops_of(of), format=format) for c in (case, other))
        expected, others = run(second, case), second.tensors()
        assert not torch.equal(run(first, case), expected)
        for name, tensor in first.tensors().items():
            tensor.data = others[name].clone()
        assert torch.equal(run(first, case), expected)


def test_names_of_tensors():
    of, case = TABLES["sm_90"], Case(for_gen=True)
    project = layers.build_project(of)(case.before, case.layer, ops_of(of), format="int8")
    norms = {"norm", "norm_q", "norm_k", "norm_k_for_gen"}
    assert set(project.tensors()) == {"qkv.values", "qkv.scale"} | norms
    for format, parts in (("none", ["weight"]), ("int8", ["values", "scale"])):
        finish = layers.build_finish(of)(case.after, case.layer, ops_of(of), format=format)
        assert set(finish.tensors()) == {f"{name}.{part}" for name in ("out", "up", "down") for part in parts} | {
            "norm"
        }


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": "fp8", "arch": "sm_86"}, "sm_86 has no 8-bit floats; int8 is served"),
        ({"hidden": 72}, "multiples of 16 in int8, and this model's hidden width is 72"),
        ({"inner": 100}, "inner width is 100"),
        ({"heads": 4, "kv_heads": 1, "head_dim": 20}, "query, key and value width is 120"),
        ({}, None),
    ],
)
def test_rows_refuse_what_they_cannot_pack(changed, reason):
    given = dict(format="int8", hidden=64, inner=96, heads=4, kv_heads=2, head_dim=16) | changed
    device = Device(arch=given.pop("arch", "sm_90"), name="a GPU", count=1, memory=0, unified=True)
    for row in layer_rows(("sm_86", "sm_90"), fp8=("sm_90",)):
        said = row.refuse(Ask(op=row.op, device=device, dtype="bfloat16", **given))
        assert said is None if reason is None else reason in said
        assert row.fuses == (IN_PROJECT if row.op == "project" else IN_FINISH)
