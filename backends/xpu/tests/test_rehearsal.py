"""cosmos3-xpu on a CPU: what it hands to an Intel GPU's operators, and what it makes of the results.

No evidence that a device works. `make rehearse-xpu` runs the conformance kit over the same rows, and whole requests.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo  # before tests replace torch.Event, of which it makes a class
import torch.nn.functional as F
from cosmos3_xpu import comm, linear, plugin
from cosmos3_xpu.attention import build_vllm_fa
from cosmos3_xpu.devices import GIB, KNOWN
from cosmos3_xpu.memory import XpuMemory
from cosmos3_xpu_rehearsal import operators
from cosmos3_xpu_rehearsal.plugin import UNREHEARSED, plugin_device, rehearsed
from devices import DEVICES, known
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos3_core.contract import (
    Ask,
    Bytes,
    FinishWeights,
    Kernel,
    Layer,
    ProjectWeights,
    Residual,
    Segment,
    Unavailable,
)
from cosmos3_core.plan import Want, resolve
from cosmos3_core.plan.cost.units import ceiling_of
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import multiply, pack
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases

LINEARS = [
    (row, format)
    for row in plugin.ROWS
    if row.op == "pack_linear" and not set(row.needs) & {plugin.ARK, "triton"}
    for format in row.formats
]
"""auto-round-lib's own kernels run in `make rehearse-xpu`, Triton's in its interpreter."""
NO_LAUNCH = {"capture", "memory", "comm"}
"""Ops that are about launches, copies and messages, and launch nothing of a layer."""
OUT, WIDTH, ROWS = 128, 256, 33


@pytest.fixture(autouse=True)
def stand_ins():
    operators.register()
    with torch.inference_mode():
        yield


def problem(format: str, dtype: torch.dtype = torch.bfloat16):
    """(activations, packed weight, bias), with an output 50 times larger than the others."""
    weight = cases.normal(OUT, WIDTH, seed=1) / WIDTH**0.5
    weight[3] *= 50
    bias = cases.normal(OUT, seed=2).to(dtype)
    return cases.normal(ROWS, WIDTH, seed=3).to(dtype), cases.packed(weight.to(dtype), FORMATS[format]), bias


def distance(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the results, each output by its own size, as a share."""
    scale = exact.float().norm(dim=0)
    return float(((y.float() - exact.float()) / scale).norm() / (exact.float() / scale).norm())


def error(linear, format: str) -> float:
    x, packed, bias = problem(format)
    return distance(linear(x), multiply(x.float(), packed, bias))


def bound(format: str) -> float:
    """Of a product of the same packed weight: what bf16 loses, and another rounding of the activations."""
    return 0.006 + (cases.allowed(FORMATS[format]) / 10 if FORMATS[format].activations else 0)


# Products


@pytest.mark.parametrize(("row", "format"), LINEARS, ids=lambda value: getattr(value, "name", value))
def test_a_product_is_that_of_the_packed_weight(row, format):
    _, packed, bias = problem(format)
    made = row.build(plugin_device())(packed, bias, format=format)
    assert error(made, format) < bound(format)
    held = {id(storage) for storage in (t.untyped_storage()._cdata for t in made.tensors().values())}
    assert packed.values.untyped_storage()._cdata in {t.untyped_storage()._cdata for t in made.tensors().values()}, held


def ark_s_product(x, blob, bias, outputs, width, group, *kinds):
    """What auto-round-lib documents of its arguments: signed codes [I, O], scales and zero points [groups, O]."""
    codes_IO, scales_GO, zeros_GO = (t.float() for t in blob)
    each = [t.repeat_interleave(group, 0) for t in (scales_GO, zeros_GO) if t.numel()]
    weight_IO = (codes_IO - each[1] if len(each) > 1 else codes_IO) * each[0]
    assert weight_IO.shape == (width, outputs)
    return (x.float() @ weight_IO + bias.float()).to(x.dtype)


GROUPED = [
    (row, format)
    for row in plugin.ROWS
    if row.op == "pack_linear" and "triton" not in row.needs
    for format in row.formats
    if FORMATS[format].element in ("int4", "uint4")
]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("row", "format"), GROUPED, ids=lambda value: getattr(value, "name", value))
def test_int4_is_multiplied_in_the_order_of_its_groups(row, format, ordered, monkeypatch):
    """GPTQ's act-order. auto-round-lib's product is made of what the library is handed."""
    library = SimpleNamespace(repack_quantized_weight=lambda *tensors: tensors[:3], woqgemm_linear=ark_s_product)
    monkeypatch.setitem(sys.modules, plugin.ARK, library)
    x, packed, bias = problem(format)
    if ordered:
        packed = replace(packed, order=torch.randperm(WIDTH, generator=torch.Generator().manual_seed(4)))
    made = row.build(plugin_device())(packed, bias, format=format)
    assert distance(made(x), multiply(x.float(), packed, bias)) < bound(format)


@pytest.mark.parametrize(("row", "format"), LINEARS, ids=lambda value: getattr(value, "name", value))
def test_rows_within_wider_ones_are_multiplied_as_dense_ones(row, format):
    """Operators that look at no strides, as the stand-ins', get a dense copy."""
    x, packed, bias = problem(format)
    made, wide = row.build(plugin_device())(packed, bias, format=format), torch.cat((x, x + 1), 1)
    assert torch.equal(made(wide[:, :WIDTH]), made(x))


def test_a_weight_in_another_format_and_one_without_the_scale_that_it_needs_are_refused():
    _, packed, bias = problem("int8_static")
    for weight, format in ((packed, "int8"), (replace(packed, input_scale=None), "int8_static")):
        with pytest.raises(ValueError, match=f"is asked for in {format}|{format} needs the stored scale"):
            linear.INT8(weight, bias, format=format)


# Rows of a layer


@pytest.mark.parametrize("weight_fp32", [False, True])
@pytest.mark.parametrize(("op", "name"), [("rms_norm", "vllm"), ("rms_norm", "torch"), ("norm_rope", "vllm")])
def test_norms_are_the_reference_s_and_round_in_its_order(op, name, weight_fp32):
    """To the bit in the order that is asked for, of strided rows, and of two branches with tables of their own."""
    (row,) = [row for row in plugin.ROWS if (row.op, row.name) == (op, name)]
    built, weight = row.build(plugin_device()), cases.normal(128, seed=1).bfloat16()

    def results(function, weight_fp32):
        options = dict(eps=1e-6, weight_fp32=weight_fp32)
        if op == "rms_norm":
            x, residual = cases.normal(64, 256, seed=2).bfloat16().chunk(2, 1)
            return [*function(x, weight, **options), *function(x, weight, residual_MI=residual, **options)]
        q, k, v = cases.normal(2, 7, 12, 128, seed=3).bfloat16().split([8, 2, 2], 2)
        halves = [torch.cat([cases.normal(2, 7, 64, seed=seed).bfloat16()] * 2, -1) for seed in (4, 5)]
        return function([(q, weight), (k, weight), (v, None)], *halves, **options)

    def alike(order):
        pairs = zip(results(built, weight_fp32), results(getattr(reference, op), order), strict=True)
        return min(float((ours == theirs).float().mean()) for ours, theirs in pairs)

    assert alike(weight_fp32) > 0.99 > 0.9 > alike(not weight_fp32)


@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_the_gate_is_the_reference_s(activation):
    (row,) = [row for row in plugin.ROWS if (row.op, row.name) == ("gate", "vllm")]
    x = cases.normal(5, 256, seed=1).bfloat16()
    found = row.build(plugin_device())(x.clone(), activation=activation)
    torch.testing.assert_close(found.float(), reference.gate(x.float(), activation=activation), rtol=0.01, atol=0.001)


def test_the_vae_asks_the_layers_row_for_a_weight_as_it_is():
    weight, x = cases.normal(OUT, WIDTH, seed=1), cases.normal(3, WIDTH, seed=2)
    made = linear.INT4(weight, None)
    assert torch.equal(made(x), x @ weight.T) and made.tensors() == {"weight": weight}


def test_int4_of_another_group_than_oneDNN_multiplies_is_refused():
    _, packed, _ = problem("w4a16")
    small = pack(cases.normal(OUT, 48, seed=1), cases.replace(packed.format, group=16), weight=True)
    with pytest.raises(ValueError, match="groups of multiples of 32, not 16"):
        linear.Int4(small, None)


def test_the_int4_stand_in_is_torch_s_own_kernel_for_processors():
    """Whose weight is (code - 8) x scale + minimum, here without rounding: scales are powers of two."""
    x, packed, _ = problem("w4a16")
    made = linear.Int4(packed, None)
    made.scales_GO = torch.exp2(made.scales_GO.abs().log2().round())
    codes = operators.from_bytes(packed.values, 4).int()
    kernel = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    both = torch.stack([made.scales_GO, torch.zeros_like(made.scales_GO)], -1).to(x.dtype)
    exact = torch.ops.aten._weight_int4pack_mm_for_cpu(x, kernel, made.group, both)
    assert distance(made(x), exact) < 0.006


@pytest.mark.parametrize("fault", ["zero point", "nibbles", "transposed scale", "stale scale"])
def test_a_planted_fault_of_int4_is_caught(fault):
    _, packed, bias = problem("w4a16_asym")
    made = linear.Int4(packed, bias)
    if fault == "zero point":
        made.zeros_GO = made.zeros_GO + 1
    elif fault == "nibbles":
        values = packed.values
        made.codes_OI = ((values >> 4) | (values << 4)).view(torch.int32)
    elif fault == "transposed scale":
        made.scales_GO = made.scales_GO.t().contiguous()
    else:
        made.scales_GO = made.scales_GO.flip(0)
    try:
        assert error(made, "w4a16_asym") < bound("w4a16_asym")
    except AssertionError:
        return
    pytest.fail(f"{fault}: nobody noticed")


@pytest.mark.parametrize("format", ["mxfp8", "mxfp4", "fp8_block"])
def test_a_transposed_scale_of_blocks_is_caught(format):
    (row,) = [
        row for row in plugin.ROWS if row.op == "pack_linear" and row.name.startswith("vllm") and format in row.formats
    ]
    _, packed, bias = problem(format)
    made = row.build(plugin_device())(packed, bias, format=format)
    made.scale_GO = made.scale_GO.t().contiguous()
    with pytest.raises((AssertionError, RuntimeError)):
        assert error(made, format) < bound(format)


# What rows are for, and refuse

FITS = dict(heads=32, kv_heads=8, head_dim=128, hidden=4096, inner=12288, packed=True)
"""Sizes that every row takes, of weights as a checkpoint packed them."""
TAKEN = {
    ("attention", "vllm-fa"): {128, 256},
    ("attention", "sdpa"): {*range(577)},
    ("attention", "ark"): {64, 96, 128, 192},
    ("attention", "triton"): {32, 64, 128},
    ("norm_rope", "triton"): {16, 32, 64, 128, 256, 512, 1024},
}
"""Head dims, as the packages' pages and wheels have them."""
MULTIPLES = {
    "vllm-fp8": (32, 16),
    "vllm-fp4": (32, 16),
    "torch-int4": (32, 1),
    "torch-int8": (16, 16),
    "scaled-mm": (16, 16),
    "ark": (32, 1),
    "triton-a16": (8, 1),
    "triton-dequantized": (1, 1),
}
"""Of the input features and the outputs of a product, by row; in `fp8_block` the blocks' 128 of both."""
PACKING = [(row, format) for row in plugin.ROWS if row.op == "pack_linear" for format in row.formats]


def ask(row, **changed):
    known = dict(op=row.op, device=plugin_device(), dtype="float16", format=row.formats[0])
    return Ask(**FITS | known | changed)


@pytest.mark.parametrize(("op", "name"), TAKEN)
def test_a_row_takes_the_head_dims_of_its_kernel(op, name):
    (row,) = [row for row in plugin.ROWS if (row.op, row.name) == (op, name)]
    dims = (8, 16, 32, 64, 80, 96, 100, 128, 192, 256, 320, 512, 576, 577, 1024)
    said = {dim: row.refuse(ask(row, head_dim=dim)) for dim in dims}
    assert {dim for dim, reason in said.items() if reason is None} == TAKEN[op, name] & {*dims}
    assert all(f"not {dim}" in reason for dim, reason in said.items() if reason)


@pytest.mark.parametrize(("row", "format"), PACKING, ids=lambda value: getattr(value, "name", value))
def test_a_product_takes_widths_that_it_can_pack_and_scales_that_are_there(row, format):
    blocks = (128, 128) if format == "fp8_block" and row.name == "vllm-fp8" else None
    inputs, outputs = blocks or MULTIPLES[row.name]
    assert row.refuse(ask(row, format=format)) is None
    uneven = [{"hidden": 4096 + inputs // 2}, {"inner": 4096 + inputs // 2}] if inputs > 1 else []
    # Queries are a multiple of both, and with keys and values half of the outputs' multiple is left.
    uneven += [{"heads": 4 * inputs, "kv_heads": 1, "head_dim": outputs // 4}] if outputs > 1 else []
    said = [row.refuse(ask(row, format=format, **changed)) for changed in uneven]
    wanted = [inputs, inputs, outputs][: len(uneven)]
    assert all(f"in multiples of {one} in {format}" in reason for one, reason in zip(wanted, said, strict=True))
    stored = row.refuse(ask(row, format=format, packed=False))
    assert "from a quantized checkpoint" in stored if FORMATS[format].static else stored is None


def test_every_refusal_is_asked_for():
    """By one of the two tests above; graphs have their own."""
    refusing = {(row.op, row.name) for row in plugin.ROWS if row.refuse is not Kernel.refuse}
    assert refusing == {*TAKEN, *(("pack_linear", name) for name in MULTIPLES), ("capture", "xpu-graph")}


SYCL = {
    "acm-g10": 0x030DC00800,
    "acm-g11": 0x030E000500,
    "acm-g12": 0x030E400000,
    "pvc": 0x030F000700,
    "pvc-vg": 0x030F400700,
    "mtl-u": 0x0311800400,
    "mtl-h": 0x0311C00400,
    "arl-h": 0x0312800400,
    "bmg-g21": 0x0500400400,
    "bmg-g31": 0x0500800000,
    "lnl-m": 0x0501000400,
    "ptl-h": 0x0780000400,
    "ptl-u": 0x0780400100,
    "xe-30.3": 0x0780C00000,
}
"""Architectures by the numbers that SYCL's headers (device_architecture.def) have for them. The last is newer."""


def test_an_architecture_has_the_number_that_sycl_has():
    assert {name: plugin.chip(number) for name, number in SYCL.items()} == {name: name for name in SYCL}
    assert {*plugin.CHIPS.values()} < SYCL.keys()


XE2, XE3 = ("bmg-g21", "bmg-g31", "lnl-m"), ("ptl-h", "ptl-u")
MADE_FOR = {
    **dict.fromkeys(XE2, {plugin.VLLM, plugin.ARK, "triton"}),
    **dict.fromkeys(XE3, {plugin.VLLM, plugin.ARK}),
    "pvc": {"triton"},
}
"""Packages whose wheels, or our kernels, are for an architecture. auto-round-lib's linears are for all."""


def test_rows_are_for_the_architectures_that_their_packages_are_made_for():
    for row in plugin.ROWS:
        if row.arch == ("*",):
            assert row.needs == () or (row.op, row.needs) == ("pack_linear", (plugin.ARK,)), row.name
        else:
            assert {*row.arch} == {arch for arch, packages in MADE_FOR.items() if {*row.needs} <= packages}


def test_matrix_units_multiply_integers_and_16_bits():
    """Products of smaller floats take as long as those of 16 bits: the plan is told so."""
    for row in (row for row in plugin.ROWS if row.op == "pack_linear"):
        inputs = [FORMATS[format].of_inputs for format in row.formats]
        floats = any(one is not None and not one.of_elements.integer for one in inputs)
        assert row.widens is (floats or "triton" in row.needs), row.name


# The device's rules of shapes: torch's own


FAKED = [row for row in plugin.ROWS if not {*row.needs} & {plugin.ARK, "triton"} and row.op not in NO_LAUNCH]
"""Rows whose calls are torch's operators or are registered with torch."""


@pytest.mark.parametrize("row", FAKED, ids=lambda row: f"{row.op}-{row.name}")
def test_torch_s_rules_for_the_device_take_the_call(row, monkeypatch):
    """Shapes, dtypes, strides and devices, of all tensors on a device called xpu; of vllm-xpu-kernels' operators, what
    their stand-ins ask."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", as_on_xpu)
    built = row.build(plugin_device())
    for format in row.formats:
        given = problem(format) if row.op == "pack_linear" else ()
        op = built(*given[1:], format=format) if given else built
        with FakeTensorMode(), InWords(), torch.inference_mode(False):
            for name, held in vars(op).items() if given else ():
                setattr(op, name, on_xpu(held) if isinstance(held, torch.Tensor) else held)
            results, shapes = called(row.op, op)
            assert [(tuple(y.shape), y.dtype) for y in results] == shapes
            assert {y.device.type for y in results} == {"xpu"}


class InWords(TorchFunctionMode):
    """`x[a:b]`, `~x` and dense copies by the operators that they are: Python's own ways ask for the device itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__invert__:
            return torch.bitwise_not(*args)
        if function is torch.Tensor.contiguous and not args[0].is_contiguous():
            return args[0].clone(memory_format=torch.contiguous_format)
        if function is not torch.Tensor.__getitem__:
            return function(*args, **(kwargs or {}))
        x, key = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        if ... in key:
            at = key.index(...)
            key = (*key[:at], *[slice(None)] * (x.dim() - len(key) + 1), *key[at + 1 :])
        for axis, part in reversed([*enumerate(key)]):
            if isinstance(part, int):
                x = x.select(axis, part)
            else:
                begin, end, _ = part.indices(x.shape[axis])
                x = x.narrow(axis, begin, end - begin)
        return x


def on_xpu(t):
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="xpu")


def as_on_xpu(q, k, v, is_causal=False, enable_gqa=False):
    """The operator that scaled_dot_product_attention chooses on an Intel GPU in inference: a dispatch that torch's
    builds for processors do not have."""
    assert enable_gqa and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    operator = torch.ops.aten._scaled_dot_product_fused_attention_overrideable
    return operator(q, k, v, None, 0.0, is_causal, False)[0]


def called(op, function):
    """(results, their shapes and dtypes) of calls on a device called xpu, where nothing is computed."""
    bf16, fp32 = torch.bfloat16, torch.float32

    def empty(*shape, dtype=bf16):
        return torch.empty(shape, dtype=dtype, device="xpu")

    if op == "pack_linear":
        return [function(empty(ROWS, WIDTH))], [((ROWS, OUT), bf16)]
    if op == "gate":
        return [function(empty(5, 512), activation="silu")], [((5, 256), bf16)]
    if op == "rms_norm":
        wide = empty(5, 1024)  # rows within wider ones
        results = [
            y
            for order in (False, True)
            for y in function(wide[:, :512], empty(512), eps=1e-6, residual_MI=wide[:, 512:], weight_fp32=order)
        ]
        return results, [((5, 512), bf16)] * 4
    if op == "norm_rope":
        q, k, v = empty(2, 7, 12, 128).split([8, 2, 2], 2)
        heads, tables = [(q, empty(128)), (k, empty(128)), (v, None)], (empty(1, 7, 128), empty(1, 7, 128))
        results = [y for order in (False, True) for y in function(heads, *tables, eps=1e-6, weight_fp32=order)]
        return results, [(tuple(x.shape), bf16) for x, _ in heads] * 2
    q, k, v = empty(2, 7, 12, 128).split([8, 2, 2], 2)
    segments = [Segment(empty(2, 3, 2, 128), empty(2, 3, 2, 128), static=True), Segment(k, v)]
    results = [*function(q, segments, want_lse=True), function(q, [Segment(k, v)], causal=True)[0]]
    return results, [((2, 7, 8, 128), bf16), ((2, 8, 7), fp32), ((2, 7, 8, 128), bf16)]


def test_torch_s_rules_for_the_device_are_stricter_than_a_processor_s():
    """Else the test above would show nothing."""
    with FakeTensorMode(), pytest.raises(RuntimeError, match="divisible by 16"):
        x, w = (torch.empty(32, 250, dtype=torch.float8_e4m3fn, device="xpu") for _ in range(2))
        torch._scaled_mm(x, w.t(), torch.ones(32, 1, device="xpu"), torch.ones(1, 32, device="xpu"))


# What is called of vllm-xpu-kernels


def test_the_operators_are_those_of_two_wheels():
    older, newer = operators.SCHEMAS
    assert operators.schemas(older) == operators.schemas(newer), "which of them does the installed one have?"
    called = {f"{library}::{name}" for library, names in operators.STAND_INS.items() for name in names}
    assert called == operators.schemas(newer).keys()
    functions = []
    for file in (older, newer):
        (line,) = [line for line in file.read_text().splitlines() if line.startswith("flash_attn_varlen_func(")]
        functions.append(line.partition("(")[2].rstrip(")").split(", "))
    from vllm_xpu_kernels.flash_attn_interface import flash_attn_varlen_func

    used = list(inspect.signature(flash_attn_varlen_func).parameters)
    assert all(set(used) <= set(function) and used[:7] == function[:7] for function in functions)


def test_attention_is_taken_for_heads_that_the_wheels_have_it_for():
    """Not paged, with and without a causal mask and a log-sum-exp, on Xe2 and Xe3. For another the package would turn
    to plain torch operations, with a line on stderr."""
    (row,) = [row for row in plugin.ROWS if row.name == "vllm-fa"]
    wanted = {"00000", "00001", "01000", "01001"}
    for file in operators.SCHEMAS:
        lines = [line.split() for line in file.read_text().splitlines() if line.startswith("attention ")]
        has = {
            generation: {
                int(head.rstrip(":")) for _, of, head, *flags in lines if of == generation and wanted <= {*flags}
            }
            for generation in ("xe_2", "xe_3")
        }
        assert has == {"xe_2": {128, 256}, "xe_3": {128, 256}}
    ask = SimpleNamespace(head_dim=64)
    assert "128 and 256, not 64" in row.refuse(ask) and row.refuse(SimpleNamespace(head_dim=128)) is None


def test_norms_of_strided_heads_are_the_wheels_own():
    """Queries and keys are views of one product: four axes, of which the heads' rows are not dense."""
    assert all(counts == {2, 3, 4} for file in operators.SCHEMAS for counts in operators.axes(file).values())
    q, k, _ = cases.normal(2, 7, 12, 128, seed=1).bfloat16().split([8, 2, 2], 2)
    weight, table = cases.normal(128, seed=2).bfloat16(), cases.normal(1, 7, 128, seed=3).bfloat16()
    assert not q.is_contiguous()
    (row,) = [row for row in plugin.ROWS if (row.op, row.name) == ("norm_rope", "vllm")]
    norm_rope, dense = row.build(plugin_device()), [(x.contiguous(), weight) for x in (q, k)]
    operators.CALLS.clear()
    found = norm_rope([(q, weight), (k, weight)], table, table, eps=1e-6)
    assert operators.CALLS == ["_C::rms_norm", "_xpu_C::apply_rotary_emb"] * 2
    assert all(torch.equal(*pair) for pair in zip(found, norm_rope(dense, table, table, eps=1e-6), strict=True))
    with pytest.raises(AssertionError):
        torch.ops._C.rms_norm(torch.empty(1, 2, 7, 8, 128, dtype=q.dtype), q[None], weight, 1e-6)


def test_ragged_attention_keeps_the_branches_apart():
    """Two branches of guidance are two sequences; their log-sum-exps come as [heads, rows of both]."""
    q = cases.normal(2, 5, 8, 128, seed=1).bfloat16()
    k, v = (cases.normal(2, 9, 2, 128, seed=seed).bfloat16() for seed in (2, 3))
    attention = build_vllm_fa()
    out, lse = attention(q, [Segment(k[:, :4], v[:, :4]), Segment(k[:, 4:], v[:, 4:])], want_lse=True)
    for branch in range(2):
        alone, alone_lse = attention(q[branch:][:1], [Segment(k[branch:][:1], v[branch:][:1])], want_lse=True)
        assert torch.equal(out[branch], alone[0]) and torch.equal(lse[branch], alone_lse[0])


# Launches


class Launches(TorchDispatchMode):
    """What is given to a device: every operator but those that only look at memory otherwise, or reserve it; and every
    kernel of ours and of auto-round-lib."""

    FREE = ("view", "t", "transpose", "expand", "reshape", "empty", "empty_like", "new_empty", "unsqueeze", "select",
            "slice", "detach", "flatten", "_unsafe_view", "as_strided", "squeeze", "split", "split_with_sizes",
            "unbind", "alias", "unflatten", "chunk")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ not in self.FREE:
            self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """Kernels that do not run here launch nothing, and leave what they would have written as it was reserved."""
    found = Launches()
    jit = pytest.importorskip("triton.runtime.jit").JITFunction
    monkeypatch.setattr(jit, "run", lambda self, *given, **options: found.seen.append(self.fn.__name__))

    def told(name, result):
        def call(*given, **options):
            found.seen.append(name)
            return result(*given)

        return call

    library = SimpleNamespace(
        repack_quantized_weight=lambda codes, *rest: codes,
        woqgemm_linear=told("woqgemm_linear", lambda x, blob, bias, out, *rest: x.new_empty(len(x), out)),
        sdpa=told("sdpa", lambda q, k, v: torch.empty_like(q)),
    )
    monkeypatch.setitem(sys.modules, plugin.ARK, library)
    return found


A16 = ("w4a16", "w4a16_asym", "nvfp4a16", "mxfp4a16", "fp8a16", "int8a16", "nf4", "q4_0", "q8_0")
ROUNDED = ("mxfp8", "mxfp4", "mxfp4a8", "nvfp4", "w4a8", "w4afp8", "fp8_block", "fp8_e5m2",
           "int8", "int8_static", "fp8", "fp8_tensor", "fp8_static")  # fmt: skip
LAUNCHES = {
    ("attention", "vllm-fa", "none"): 4,
    ("attention", "sdpa", "none"): 1,
    ("attention", "ark", "none"): 1,
    ("attention", "triton", "none"): 1,
    ("gate", "vllm", "none"): 1,
    ("gate", "triton", "none"): 1,
    ("rms_norm", "triton", "none"): 1,
    ("rms_norm", "vllm", "none"): 2,
    ("rms_norm", "torch", "none"): 3,
    ("norm_rope", "triton", "none"): 1,
    ("norm_rope", "vllm", "none"): 6,
    ("patch_embed", "triton", "none"): 1,
    ("norm_silu", "triton", "none"): 1,
    ("pack_linear", "vllm-fp8", "fp8"): 2,
    ("pack_linear", "vllm-fp8", "fp8a16"): 1,
    ("pack_linear", "vllm-fp8", "fp8_block"): 19,
    ("pack_linear", "vllm-fp8", "mxfp8"): 33,
    ("pack_linear", "vllm-fp4", "mxfp4"): 52,
    ("pack_linear", "torch-int4", "w4a16"): 2,
    ("pack_linear", "torch-int4", "w4a16_asym"): 2,
    ("pack_linear", "torch-int4", "q4_0"): 2,
    ("pack_linear", "torch-int8", "int8"): 15,
    ("pack_linear", "torch-int8", "int8_static"): 11,
    ("pack_linear", "torch-int8", "int8a16"): 3,
    ("pack_linear", "scaled-mm", "fp8"): 9,
    ("pack_linear", "scaled-mm", "fp8_tensor"): 9,
    ("pack_linear", "scaled-mm", "fp8_static"): 5,
    **{("pack_linear", "ark", format): 1 for format in ("w4a16", "w4a16_asym", "int8a16")},
    **{("pack_linear", "triton-a16", format): 1 for format in A16},
    **{("pack_linear", "triton-a16", format): 2 for format in ROUNDED},
    **{("pack_linear", "triton-dequantized", format): 2 for format in A16},
    **{("pack_linear", "triton-dequantized", format): 3 for format in ROUNDED},
    ("pack_linear", "triton-a16", "nvfp4"): 11,
    ("pack_linear", "triton-dequantized", "nvfp4"): 12,
}
"""Of one call: a product's with a bias, attention's of one segment, a rotation's of queries and keys."""


@pytest.mark.parametrize("row", plugin.ROWS, ids=lambda row: f"{row.op}-{row.name}")
def test_every_row_is_so_many_launches(row, launches):
    """What is given to the device in a call, by format."""
    found = {}
    for format in () if row.op in NO_LAUNCH else row.formats:
        call = use(row, format)
        launches.seen.clear()
        with launches:
            call()
        found[row.op, row.name, format] = len(launches.seen)
    assert found == {key: count for key, count in LAUNCHES.items() if key[:2] == (row.op, row.name)}
    assert found or row.op in NO_LAUNCH


def use(row, format):
    """A call of what the row builds."""
    op, dtype = row.build(plugin_device()), torch.bfloat16
    if row.op == "pack_linear":
        x, packed, bias = problem(format)
        made = op(packed, bias, format=format)
        return lambda: made(x)
    x = cases.normal(5, 256, seed=1).to(dtype)
    heads, weight = x.view(1, 5, 2, 128), x[0, :128]
    table = x[:, :128].contiguous().unsqueeze(0)
    latent, matrix = cases.normal(16, 2, 4, 4, seed=2).to(dtype), cases.normal(64, 64, seed=3).to(dtype)
    calls = {
        "attention": lambda: op(heads, [Segment(heads, heads)]),
        "gate": lambda: op(x, activation="silu"),
        "rms_norm": lambda: op(x, x[0], eps=1e-6, residual_MI=x),
        "norm_rope": lambda: op([(heads, weight)] * 2, table, table, eps=1e-6),
        "patch_embed": lambda: op(latent, matrix, matrix[0], matrix[:1], patch=2),
        "norm_silu": lambda: op(x, x[0]),
    }
    return calls[row.op]


HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, TOKENS = 4, 2, 128, 512, 768, 5
LAYER = Layer(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, eps=1e-6, weight_fp32=False, activation="silu")
OUR_OWN = {"attention": "triton", "rms_norm": "triton", "norm_rope": "triton", "gate": "triton"}
MOST = {
    "none": ({}, 14),
    "none by our kernels": (OUR_OWN, 9),
    "none by vllm-xpu-kernels": ({"rms_norm": "vllm", "norm_rope": "vllm"}, 21),
    "none by torch's": ({"attention": "sdpa", "rms_norm": "torch", "norm_rope": "eager", "gate": "eager"}, 41),
    "w4a16": ({}, 14),
    "w4a16 by our kernels": (OUR_OWN, 10),
    "fp8a16": ({}, 14),
    "int8a16": ({}, 18),
    "fp8": ({}, 18),
    "fp8 without vllm-xpu-kernels": ({"pack_linear": "scaled-mm"}, 46),
    "int8": ({}, 66),
    "fp8_block": ({}, 86),
    "mxfp8": ({}, 142),
    "mxfp8 by our kernels": (OUR_OWN | {"pack_linear": "triton-a16"}, 17),
    "mxfp4": ({}, 218),
    "mxfp4 by our kernels": (OUR_OWN | {"pack_linear": "triton-a16"}, 17),
}
"""Rows that are named, the rest being as the plan chooses, and the launches of a layer of the media tower with the text
and the media as two segments."""


@pytest.mark.parametrize("case", MOST)
def test_launches_of_a_layer(case, launches, monkeypatch):
    """Of Qwen's kind: its second, whose stream has a delta."""
    named, most = MOST[case]
    format = case.split()[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)
    monkeypatch.setitem(sys.modules, plugin.ARK, None)
    call = layer(format, named)
    launches.seen.clear()
    with launches:
        call()
    assert len(launches.seen) == most, launches.seen


def layer(format, named):
    """A call of a layer by these rows."""
    formats = {} if format == "none" else {"pack_linear": format}
    sizes = dict(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, hidden=HIDDEN, inner=INNER)
    kernels = {"capture": "eager"} | named
    want = Want(dtype="bfloat16", activation="silu", kernels=kernels, formats=formats, **sizes)
    backend = replace(plugin.cosmos3_backend(), torch_device="cpu")
    ops = resolve(want, backend, replace(plugin_device(), versions={"torch": "2.13.0+xpu"})).build_ops()

    def ones(*shape):
        return torch.ones(*shape, dtype=torch.bfloat16) / shape[-1]

    norms = ones(HEAD_DIM), ones(HEAD_DIM), None
    qkv = ones((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
    project = ops.project(ProjectWeights(ones(HIDDEN), qkv, *norms), LAYER, ops, format=format)
    matrices = FinishWeights(ones(HIDDEN, HEADS * HEAD_DIM), ones(HIDDEN), ones(2 * INNER, HIDDEN), ones(HIDDEN, INNER))
    finish = ops.finish(matrices, LAYER, ops, format=format)
    text, table = ones(1, 3, KV_HEADS, HEAD_DIM), ones(1, TOKENS, HEAD_DIM)
    residual = Residual(ones(TOKENS, HIDDEN), ones(TOKENS, HIDDEN))

    def call():
        q, k, v, _ = project(residual, table, table)
        attended, _ = ops.attention(q, [Segment(text, text, static=True), Segment(k, v)])
        finish(residual, attended)

    return call


# Memory, graphs


class Device(TorchDispatchMode):
    """Copies that need not be waited for are under way until somebody waits for an event that was recorded after
    them."""

    def __init__(self):
        super().__init__()
        self.pending: list = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default and (*args, *(kwargs or {}).values())[2:] == (True,):
            self.pending.append((args[0], args[1]))
            return args[0]
        return function(*args, **(kwargs or {}))

    def arrive(self, copies) -> None:
        with torch._C._DisableTorchDispatch():
            for target, source in copies:
                target.copy_(source)


class Event:
    """Of a `Device`. The one of another device has happened at once."""

    def __init__(self, device: Device, of: torch.device):
        self.device, self.of, self.before = device, of, []

    def record(self, stream=None) -> None:
        self.before = [*self.device.pending]

    def synchronize(self) -> None:
        self.device.arrive(self.before)

    def wait(self, stream) -> None:
        assert stream == "the stream of now"
        self.device.arrive(self.before)


@pytest.fixture
def device(monkeypatch):
    found = Device()
    monkeypatch.setattr(torch, "Event", lambda of: Event(found, of))
    return found


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_has_arrived_when_it_was_waited_for(device, waits, monkeypatch):
    """And a wait that does nothing, as a torch.xpu.Event's on another stream, is seen."""
    if not waits:
        monkeypatch.setattr(Event, "synchronize", lambda event: None)
    source, target = torch.full((4,), 7.0), torch.zeros(4)
    with device:
        copied = XpuMemory().copy(target, source)
        assert target.sum() == 0, "the copy is under way"
        found = copied.wait()
    assert found is target and bool((target == 7).all()) is waits
    assert copied.source is source, "it has to live until the copy has arrived"


@pytest.mark.parametrize(("to", "of"), [("xpu", "cpu"), ("cpu", "xpu"), ("xpu", "xpu")])
def test_a_copy_s_event_is_the_gpu_s(device, to, of):
    target, source = (
        SimpleNamespace(device=torch.device(name), is_cpu=name == "cpu", copy_=lambda source, non_blocking: None)
        for name in (to, of)
    )
    assert XpuMemory().copy(target, source).event.of.type == "xpu"


@pytest.mark.parametrize("waits", [True, False])
def test_what_is_fetched_beside_other_work_has_arrived_when_the_device_waited(device, waits, monkeypatch):
    """On a stream that waits for the device's work so far, and the device for the stream's event."""
    told = []

    class Lane:
        def wait_stream(self, other):
            told.append(f"waits for {other}")

        def __enter__(self):
            told.append("begins")

        def __exit__(self, *error):
            told.append("ends")

    lanes = iter([Lane()])  # one for all that is fetched
    monkeypatch.setattr(torch, "Stream", lambda device: next(lanes))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: "the stream of now")
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: told.append("kept"))
    source, target = torch.full((4,), 7.0), torch.zeros(4)
    with device:
        memory = XpuMemory()
        fetched = memory.fetch(target, source)
        assert target.sum() == 0 and told == ["waits for the stream of now", "begins", "ends", "kept"]
        found = fetched.wait() if waits else target
        memory.fetch(torch.zeros(4), source)
    assert found is target and bool((target == 7).all()) is waits


def test_memory_is_what_torch_tells_of_the_gpu(monkeypatch):
    """Of the device that is asked for, when its work is done; a peak is forgotten where that is asked for."""
    gpu, told = torch.device("xpu", 3), []

    def fake(name, result=None):
        def call(*given):
            assert gpu in given, name
            told.append((name, *(one for one in given if one != gpu)))
            return result

        monkeypatch.setattr(torch.xpu, name, call)

    fake("get_device_properties", SimpleNamespace(total_memory=1000))
    counts = dict(memory_allocated=3, memory_reserved=5, max_memory_allocated=7, max_memory_reserved=11)
    for name, count in (counts | {"mem_get_info": (600, 1000)}).items():
        fake(name, count)
    for name in ("synchronize", "reset_peak_memory_stats", "set_per_process_memory_fraction"):
        fake(name)
    memory = XpuMemory()
    assert (memory.free(gpu), memory.total(gpu), memory.used(gpu)) == (600, 1000, Bytes(3, 5))
    assert told.index(("synchronize",)) < told.index(("memory_allocated",))
    assert memory.peak(gpu) == Bytes(7, 11) and ("reset_peak_memory_stats",) not in told
    assert memory.peak(gpu, reset=True) == Bytes(7, 11) and told[-1] == ("reset_peak_memory_stats",)
    for size, share in ((250, 0.25), (4000, 1.0)):
        memory.limit(gpu, size)
        assert told[-1] == ("set_per_process_memory_fraction", share)
    monkeypatch.setattr(torch, "empty", lambda *given, **options: options)
    assert memory.pinned((4,), torch.float16, gpu) == {"dtype": torch.float16, "pin_memory": True}


def test_free_memory_is_counted_where_the_driver_does_not_tell(monkeypatch):
    def mute(device):
        raise RuntimeError("The device does not support querying the available free memory")

    monkeypatch.setattr(torch.xpu, "mem_get_info", mute)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda device: 400)
    assert XpuMemory().free(torch.device("cpu")) == 600


def test_a_graph_is_recorded_on_the_second_call_and_replayed_afterwards(monkeypatch):
    """The first call is on the stream that records later, which waits for the caller's, and that for it. Before a
    recording the device is done, and what is cached is given back for the graph's own memory."""
    from cosmos3_xpu.capture import build_capture

    told = []

    def fake(name):
        return lambda *given: told.append(" ".join((name, *map(str, given))))

    class Stream(str):
        def wait_stream(self, other):
            told.append(f"{self} waits for {other}")

    graph = SimpleNamespace(**{name: fake(name) for name in ("capture_begin", "capture_end", "replay")})
    fakes = dict(XPUGraph=lambda: graph, Stream=lambda: Stream("own"), current_stream=lambda: Stream("caller's"))
    fakes |= dict(stream=lambda entered: nullcontext(fake("on")(entered)))
    for name, one in (fakes | {name: fake(name) for name in ("synchronize", "empty_cache")}).items():
        monkeypatch.setattr(torch.xpu, name, one)
    captured = build_capture()(lambda x: [x + 1])
    results = [captured(torch.zeros(2)) for _ in range(3)]
    first = ["own waits for caller's", "on own", "caller's waits for own"]
    recorded = ["synchronize", "empty_cache", "on own", "capture_begin", "capture_end", "replay"]
    assert told == [*first, *recorded, "replay"]
    assert results[1] is not results[2], "who adds to a list of results adds to no other"
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"recorded for torch.float32 \[2\]"):
            captured(other)


@pytest.mark.parametrize(
    ("version", "reason"), [("2.11.0+xpu", "torch 2.13, and this is torch 2.11.0"), ("2.13.0+xpu", "")]
)
def test_graphs_are_left_to_a_torch_that_has_them(version, reason):
    (row,) = [row for row in plugin.ROWS if row.op == "capture"]
    said = row.refuse(SimpleNamespace(device=SimpleNamespace(versions={"torch": version})))
    assert reason in (said or "") and bool(said) is bool(reason)


# Messages


class World:
    """Processes that take turns in this one: what each of them posts is delivered when all have."""

    def __init__(self, count: int, monkeypatch):
        self.count, self.rank, self.posted, self.waited = count, 0, {}, []
        fakes = {
            "get_world_size": lambda group: count,
            "get_rank": lambda group: self.rank,
            "P2POp": lambda kind, tensor, peer, group: (kind, tensor, peer),
            "batch_isend_irecv": self.post,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(comm.dist, name, fake)

    def post(self, messages):
        self.posted[self.rank] = messages
        return [SimpleNamespace(wait=partial(self.waited.append, message)) for message in messages]

    def each(self, call):
        """What call(rank) gives in each process, when all messages have arrived. Two processes of oneCCL that receive
        first wait for each other."""
        results = []
        for rank in range(self.count):
            self.rank = rank
            results.append(call(rank))
        sent = {}
        for rank, messages in self.posted.items():
            kinds = [kind for kind, _, _ in messages]
            assert kinds == sorted(kinds, key=lambda kind: kind is comm.dist.irecv), "a receive stands before a send"
            for kind, tensor, peer in messages:
                if kind is comm.dist.isend:
                    sent[rank, peer] = tensor.clone()
        for rank, messages in self.posted.items():
            for kind, tensor, peer in messages:
                if kind is comm.dist.irecv:
                    tensor.copy_(sent.pop((peer, rank)))
        assert not sent, "a message that nobody took"
        found = [pending.wait() for pending in results]
        assert len(self.waited) == sum(map(len, self.posted.values())), "a message that nobody waited for"
        return found


ROWS_SENT = [[1, 2, 3], [4, 0, 2], [2, 5, 1]]
"""From each of three processes to each."""


def all_to_all(world):
    """The rows that each process got, and those that it should have."""
    rows = [torch.arange(sum(counts)) + 100 * rank for rank, counts in enumerate(ROWS_SENT)]
    columns = [[counts[rank] for counts in ROWS_SENT] for rank in range(3)]
    found = world.each(
        lambda rank: comm.XcclComm().all_to_all(rows[rank], sent=ROWS_SENT[rank], received=columns[rank])
    )
    parts = [part.split(counts) for part, counts in zip(rows, ROWS_SENT, strict=True)]
    return found, [torch.cat([parts[source][rank] for source in range(3)]) for rank in range(3)]


def test_an_uneven_all_to_all_arrives_in_the_order_of_its_senders(monkeypatch):
    found, expected = all_to_all(World(3, monkeypatch))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("fault", ["receives first", "parts swapped", "from the wrong process"])
def test_a_planted_fault_of_an_uneven_all_to_all_is_caught(fault, monkeypatch):
    grouped = comm._grouped

    def wrong(sends, receives, group):
        if fault == "parts swapped":
            return grouped([(tensor, rank) for (tensor, _), (_, rank) in zip(sends, sends[::-1], strict=True)],
                           receives, group)  # fmt: skip
        if fault == "from the wrong process":
            swapped = [(tensor, rank) for (tensor, _), (_, rank) in zip(receives, receives[::-1], strict=True)]
            return grouped(sends, swapped, group)
        posted = [(comm.dist.irecv, *one) for one in receives] + [(comm.dist.isend, *one) for one in sends]
        return comm.dist.batch_isend_irecv(posted)

    monkeypatch.setattr(comm, "_grouped", wrong)
    try:
        found, expected = all_to_all(World(3, monkeypatch))
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    except (AssertionError, RuntimeError, KeyError):
        return
    pytest.fail(f"{fault}: nobody noticed")


# What is not rehearsed, and what is missing


def test_a_row_that_does_not_run_here_says_why():
    """In the kit's record, and on the page."""
    names = {(row.op, row.name) for row in plugin.ROWS}
    shut = {(row.op, row.name) for row in map(rehearsed, plugin.ROWS) if "unrehearsed: " in (row.refuse(ASK) or "")}
    assert shut == {one for one in names if one[1].startswith("triton")} | {("memory", "xpu"), ("capture", "xpu-graph")}
    page = (Path(__file__).parents[3] / "docs" / "xpu.md").read_text()
    told = page.partition("<!-- unrehearsed:")[2].partition("<!-- end -->")[0].split("|\n|---|---|---|\n")[1].strip()
    assert told == "\n".join(f"| {op} | `{name}` | {reason} |" for (op, name), reason in UNREHEARSED.items())


def test_the_page_has_the_gpus_as_they_are_planned_for():
    """Each is found by its name there, with its memory, architecture and ceilings. Of ptl-u no rate is known."""
    page = (Path(__file__).parents[3] / "docs" / "xpu.md").read_text()
    told = page.partition("<!-- gpus:")[2].partition("<!-- end -->")[0].split("|---|\n")[1].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told]
    assert [known("xpu", row[0]) for row in rows] == [*KNOWN]
    for device, row in zip(KNOWN, rows, strict=True):
        ceiling = ceiling_of(plugin.cosmos3_backend(), device)
        assert ceiling is not None and ceiling.tflops["int8"] - 2 * ceiling.tflops["bfloat16"] in (0, 1)
        memory = f"{device.count} x " * (device.count > 1) + f"{device.memory / GIB:g}"
        link = "" if device.unified else f"{ceiling.link / 1e9:.1f}"
        rates = [f"{ceiling.tflops['int8']:g}", f"{ceiling.bandwidth / 1e9:g}", link]
        assert row[1:] == [memory + " of the host's" * device.unified, device.arch, *rates]
    assert ceiling_of(plugin.cosmos3_backend(), replace(KNOWN[-1], name="ptl-u", arch="ptl-u")) is None


ASK = SimpleNamespace(
    head_dim=128, format="none", heads=32, kv_heads=8, hidden=512, inner=768, device=DEVICES["b580"][1]
)


def test_ipex_is_named_where_it_is_found(monkeypatch, tmp_path):
    """Which many have from older guides: it is not what is missing."""
    record = tmp_path / "intel_extension_for_pytorch-2.8.10.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: intel-extension-for-pytorch\nVersion: 2.8.10\n")
    monkeypatch.setattr(torch.version, "xpu", None)
    with pytest.raises(Unavailable) as without:
        plugin.probe()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        Unavailable, match=r"-pytorch 2.8.10, which is installed, is not what is missing: it ended at torch 2.8"
    ):
        plugin.probe()
    assert "extension" not in str(without.value)


def test_ipex_beside_a_torch_with_xpu_is_in_the_device_s_versions(monkeypatch, tmp_path):
    record = tmp_path / "intel_extension_for_pytorch-2.8.10.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: intel-extension-for-pytorch\nVersion: 2.8.10\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.version, "xpu", "20250303")
    b580 = SimpleNamespace(
        architecture=20 << 30 | 1 << 22,
        name="Intel(R) Arc(TM) B580 Graphics",
        total_memory=12 << 30,
        driver_version="1.6",
    )
    fakes = dict(is_available=lambda: True, device_count=lambda: 1, get_device_properties=lambda index: b580)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.xpu, name, fake)
    found = plugin.probe()
    assert (found.arch, found.unified) == ("bmg-g21", False)
    assert found.versions["intel-extension-for-pytorch"] == "2.8.10"
