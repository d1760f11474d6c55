"""cosmos3-xpu on a CPU: what it hands to an Intel GPU's operators, and what it makes of the results.

No evidence that a device works. `make rehearse-xpu` runs the conformance kit over the same rows, and whole requests.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from cosmos3_xpu import linear, plugin
from cosmos3_xpu.attention import build_vllm_fa
from cosmos3_xpu.memory import XpuMemory
from cosmos3_xpu_rehearsal import operators
from cosmos3_xpu_rehearsal.plugin import UNREHEARSED, plugin_device, rehearsed
from devices import DEVICES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos3_core.contract import Segment, Unavailable
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import multiply, pack
from cosmos3_core.testing import cases

LINEARS = [
    (row, format)
    for row in plugin.ROWS
    if row.op == "pack_linear" and not set(row.needs) & {plugin.ARK, "triton"}
    for format in row.formats
]
"""auto-round-lib's own kernels run in `make rehearse-xpu`, Triton's in its interpreter."""
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


# The device's rules of shapes: torch's own


@pytest.mark.parametrize(
    ("row", "format"), [one for one in LINEARS if not one[0].needs], ids=lambda value: getattr(value, "name", value)
)
def test_torch_s_rules_for_the_device_take_the_call(row, format):
    _, packed, bias = problem(format)
    made = row.build(plugin_device())(packed, bias, format=format)
    with FakeTensorMode(), torch.inference_mode(False):

        def on(t):
            return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="xpu")

        for name, held in vars(made).items():
            setattr(made, name, on(held) if isinstance(held, torch.Tensor) else held)
        y = made(torch.empty(ROWS, WIDTH, dtype=torch.bfloat16, device="xpu"))
    assert (y.shape, y.dtype, y.device.type) == ((ROWS, OUT), torch.bfloat16, "xpu")


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
    """What is given to a device: every operator but those that only look at memory otherwise, or reserve it."""

    FREE = ("view", "t", "transpose", "expand", "reshape", "empty", "empty_like", "new_empty", "unsqueeze", "select",
            "slice", "detach", "flatten", "_unsafe_view", "as_strided", "squeeze")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ not in self.FREE:
            self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


LAUNCHES = {
    ("attention", "vllm-fa", "none"): 4,
    ("attention", "sdpa", "none"): 1,
    ("gate", "vllm", "none"): 1,
    ("rms_norm", "torch", "none"): 3,
    ("pack_linear", "vllm-fp8", "fp8"): 2,
    ("pack_linear", "vllm-fp8", "fp8a16"): 1,
    ("pack_linear", "vllm-fp8", "fp8_block"): 21,
    ("pack_linear", "vllm-fp8", "mxfp8"): 35,
    ("pack_linear", "vllm-fp4", "mxfp4"): 55,
    ("pack_linear", "torch-int4", "w4a16"): 2,
    ("pack_linear", "torch-int4", "w4a16_asym"): 2,
    ("pack_linear", "torch-int4", "q4_0"): 2,
    ("pack_linear", "torch-int8", "int8"): 15,
    ("pack_linear", "torch-int8", "int8_static"): 11,
    ("pack_linear", "torch-int8", "int8a16"): 3,
    ("pack_linear", "scaled-mm", "fp8"): 9,
    ("pack_linear", "scaled-mm", "fp8_tensor"): 9,
    ("pack_linear", "scaled-mm", "fp8_static"): 5,
}
"""Of one call: a product's with a bias, attention's of one segment. A decoder layer has four products, two norms of
rows and a gate."""


def test_every_row_is_so_many_launches():
    """What is given to the device in a call, by row and format."""
    found = {}
    for row in plugin.ROWS:
        if {*row.needs} & {plugin.ARK, "triton"}:
            continue
        for format in row.formats if row.op in ("attention", "gate", "rms_norm", "pack_linear") else ():
            call = use(row, format)
            with Launches() as launches:
                call()
            found[row.op, row.name, format] = len(launches.seen)
    assert found == LAUNCHES


def use(row, format):
    """A call of what the row builds."""
    op = row.build(plugin_device())
    if row.op == "pack_linear":
        x, packed, bias = problem(format)
        made = op(packed, bias, format=format)
        return lambda: made(x)
    x = cases.normal(5, 256, seed=1).bfloat16()
    if row.op == "attention":
        heads = x.view(1, 5, 2, 128)
        return lambda: op(heads, [Segment(heads, heads)])
    if row.op == "gate":
        return lambda: op(x, activation="silu")
    return lambda: op(x, x[0], eps=1e-6, residual_MI=x)


# Memory, graphs


class Device(TorchDispatchMode):
    """Copies that need not be waited for are under way until somebody waits."""

    def __init__(self):
        super().__init__()
        self.pending: list = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default and (*args, *(kwargs or {}).values())[2:] == (True,):
            self.pending.append((args[0], args[1]))
            return args[0]
        return function(*args, **(kwargs or {}))

    def arrive(self) -> None:
        with torch._C._DisableTorchDispatch():
            for target, source in self.pending:
                target.copy_(source)
        self.pending.clear()


@pytest.fixture
def device(monkeypatch):
    found = Device()
    event = SimpleNamespace(record=lambda: None, synchronize=found.arrive)
    monkeypatch.setattr(torch, "Event", lambda device: event)
    return found


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_has_arrived_when_it_was_waited_for(device, waits, monkeypatch):
    """And a wait that does nothing, as a torch.xpu.Event's on another stream, is seen."""
    if not waits:
        monkeypatch.setattr(
            torch, "Event", lambda device: SimpleNamespace(record=lambda: None, synchronize=lambda: None)
        )
    source, target = torch.full((4,), 7.0), torch.zeros(4)
    with device:
        copied = XpuMemory().copy(target, source)
        assert target.sum() == 0, "the copy is under way"
        found = copied.wait()
    assert found is target and bool((target == 7).all()) is waits


def test_free_memory_is_counted_where_the_driver_does_not_tell(monkeypatch):
    def mute(device):
        raise RuntimeError("The device does not support querying the available free memory")

    monkeypatch.setattr(torch.xpu, "mem_get_info", mute)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda device: 400)
    assert XpuMemory().free(torch.device("cpu")) == 600


def test_a_graph_is_recorded_on_the_second_call_and_replayed_afterwards(monkeypatch):
    from contextlib import nullcontext

    from cosmos3_xpu.capture import build_capture

    told = []
    graph = SimpleNamespace(
        **{name: lambda name=name: told.append(name) for name in ("capture_begin", "capture_end", "replay")}
    )
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = dict(XPUGraph=lambda: graph, Stream=lambda: stream, current_stream=lambda: stream, synchronize=lambda: None)
    for name, fake in (fakes | dict(stream=lambda entered: nullcontext(), empty_cache=lambda: None)).items():
        monkeypatch.setattr(torch.xpu, name, fake)
    captured = build_capture()(lambda x: [x + 1])
    for _ in range(3):
        captured(torch.zeros(2))
    assert told == ["capture_begin", "capture_end", "replay", "replay"]


@pytest.mark.parametrize(
    ("version", "reason"), [("2.11.0+xpu", "torch 2.13, and this is torch 2.11.0"), ("2.13.0+xpu", "")]
)
def test_graphs_are_left_to_a_torch_that_has_them(version, reason):
    (row,) = [row for row in plugin.ROWS if row.op == "capture"]
    said = row.refuse(SimpleNamespace(device=SimpleNamespace(versions={"torch": version})))
    assert reason in (said or "") and bool(said) is bool(reason)


# What is not rehearsed, and what is missing


def test_a_row_that_does_not_run_here_says_why():
    names = {(row.op, row.name) for row in plugin.ROWS}
    shut = {(row.op, row.name) for row in map(rehearsed, plugin.ROWS) if "unrehearsed: " in (row.refuse(ASK) or "")}
    assert shut == {one for one in names if one[1].startswith("triton")} | {("memory", "xpu"), ("capture", "xpu-graph")}
    assert all(len(reason.split()) > 5 for reason in UNREHEARSED.values())


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
