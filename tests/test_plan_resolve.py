"""`resolve`: one row for each op, by name or in order of preference, with a reason for every row passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.contract import (
    Backend,
    Delegate,
    Device,
    InputError,
    Kernel,
    Layer,
    ProjectWeights,
    Residual,
    RunError,
    Segment,
)
from cosmos3_core.plan import Want, resolve
from cosmos3_core.quant import FORMATS

DEVICE = Device(arch="x2", name="Acme X2", count=1, memory=1, unified=False, versions=MappingProxyType({"driver": "1"}))
WANT = dict(dtype="bfloat16", heads=32, kv_heads=8, head_dim=128)


def row(name: str, op: str = "attention", **fields) -> Kernel:
    return Kernel(op=op, name=name, build=lambda device: name, **fields)


def plan(*kernels: Kernel, **want):
    backend = Backend(
        name="acme", torch_device="cpu", collectives="gloo", probe=lambda: pytest.fail("probed"), kernels=kernels
    )
    return resolve(Want(**WANT | want), backend, DEVICE)


def chosen(made) -> str:
    return made.to_json()["kernels"]["attention"]


def raiser(ask):
    raise KeyError("ask")


PASSED_OVER = {
    "architecture": (dict(arch=("x1",)), "written for x1, and this device is x2"),
    "dtype": (dict(dtypes=("float16",)), "takes float16, not bfloat16"),
    "format": (dict(formats=("fp8",)), "takes formats fp8, not none"),
    "package": (dict(needs=("no_such_library",)), "needs the package no_such_library"),
    "part of a package": (dict(needs=("no_such_library.fast",)), "needs the package no_such_library.fast"),
    "its own reason": (dict(refuse=lambda ask: f"no {ask.heads}/{ask.kv_heads} heads"), "no 32/8 heads"),
    "a refuse() that raises": (dict(refuse=raiser), "its refuse() raised KeyError: 'ask'"),
}


def test_a_package_that_does_not_load_is_passed_over(tmp_path, monkeypatch):
    """To look for a part of it imports it."""
    (tmp_path / "broken_library").mkdir()
    (tmp_path / "broken_library" / "__init__.py").write_text("raise ImportError('undefined symbol: acme')")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = plan(row("first", needs=("broken_library.fast",)), row("second"))
    (refused,) = made.to_json()["refused"]
    assert chosen(made) == "second"
    assert refused["reason"] == "needs the package broken_library.fast (ImportError: undefined symbol: acme)"


@pytest.mark.parametrize("fields, reason", PASSED_OVER.values(), ids=PASSED_OVER)
def test_auto_steps_down_and_says_why(fields, reason):
    made = plan(row("first", **fields), row("second"))
    assert chosen(made) == "second"
    # A row for another format only was not passed over: nobody asked for that format.
    passed_over = [] if "formats" in fields else [{"op": "attention", "name": "first", "reason": reason}]
    assert made.to_json()["refused"] == passed_over
    with pytest.raises(InputError) as caught:
        plan(row("first", **fields), row("second"), kernels={"attention": "first"})
    assert str(caught.value).startswith("`kernel` attention=first: ") and reason in str(caught.value)


def test_the_first_row_that_serves_is_taken_and_a_named_one_before_it():
    rows = row("first"), row("second")
    assert chosen(plan(*rows)) == "first" and plan(*rows).refusals == ()
    made = plan(*rows, kernels={"attention": "second"})
    assert chosen(made) == "second" and made.to_json()["named"] == ["attention"]


def test_eager_torch_is_the_last_row_of_every_op():
    made = plan(row("first", arch=("x1",)))
    assert made.to_json()["kernels"] == {row.op: row.name for row in reference.BACKEND.kernels}
    assert chosen(plan(row("first"), kernels={"attention": "eager"})) == "eager"


def test_a_kernel_that_does_not_exist():
    with pytest.raises(InputError, match="attention=third: no such kernel. acme has first, eager"):
        plan(row("first"), kernels={"attention": "third"})
    with pytest.raises(InputError, match="a kernel for 'softmax'"):
        plan(row("first"), kernels={"softmax": "first"})


def test_a_plan_is_json():
    assert json.loads(json.dumps(plan(row("first")).to_json()))["device"]["versions"] == {"driver": "1"}


def test_building_a_kernel_that_fails_names_it():
    def build(device):
        raise ImportError("libacme.so: no such file")

    made = plan(Kernel(op="gate", name="fast", build=build))
    with pytest.raises(RunError, match="gate=fast of backend acme: ImportError: libacme.so.*`kernel` gate=eager"):
        made.build_ops()
    made = plan(Kernel(op="attention", name="fast", build=build, formats=("fp8",)), formats={"attention": "fp8"})
    with pytest.raises(RunError, match="attention=fast of backend acme: .*Leave `format` attention=fp8 out"):
        made.build_ops()


# --- require ---------------------------------------------------------------------------------------------------------


def test_a_required_kernel_that_was_resolved():
    plan(row("first", arch=("x1",)), row("second")).require({"attention": "second", "gate": "eager"})


REQUIRED = {
    "refused": ("old", {}, "the plan has first; old: written for x1, and this device is x2. Change what it objects to"),
    "not preferred": (
        "second",
        {},
        "the plan has first; it serves and is preferred. Type `kernel` attention=second to use the other",
    ),
    "not named": ("first", {"attention": "second"}, "the plan has second; it was named. Type `kernel` attention=first"),
    "of another format": (
        "few",
        {},
        "the plan has first; few takes formats int8, not none. Give one of them as `format`",
    ),
    "missing": ("third", {}, "the plan has first; acme has no such kernel. It has old, few, first, second, eager"),
}


@pytest.mark.parametrize("name, named, said", REQUIRED.values(), ids=REQUIRED)
def test_a_required_kernel_that_was_not_resolved(name, named, said):
    made = plan(row("old", arch=("x1",)), row("few", formats=("int8",)), row("first"), row("second"), kernels=named)
    with pytest.raises(InputError) as caught:
        made.require({"attention": name})
    assert str(caught.value).startswith(f"`require` attention={name}: {said}")


def test_a_kernel_for_another_format_than_a_checkpoint_s_names_no_format_to_give():
    """A quantized checkpoint runs in its own."""
    rows = [row(name, "pack_linear", formats=(name,), packed=True) for name in ("int8", "fp8")]
    made = plan(*rows, formats={"pack_linear": "int8"}, packed=True)
    with pytest.raises(InputError, match=r"fp8 takes formats fp8, not int8\. Drop `require`$"):
        made.require({"pack_linear": "fp8"})


def test_require_on_the_command_line(capsys, monkeypatch):
    dry = [
        "run",
        "a cup",
        "--model",
        TINY_MODEL,
        "--size",
        "64x64",
        "--frames",
        5,
        "--dry-run",
        "--json",
        "--backend",
        "reference",
    ]
    code, out, err = cosmos3(capsys, monkeypatch, *dry, "--require", "attention=eager", "--require", "gate=eager")
    assert (code, err) == (0, "") and json.loads(out)["plan"]["named"] == []
    code, out, err = cosmos3(capsys, monkeypatch, *dry, "--require", "attention=eager", "--require", "gate=fused")
    assert (code, out) == (2, "")
    assert err == "error: --require gate=fused: the plan has eager; reference has no such kernel. It has eager\n"
    code, _, err = cosmos3(capsys, monkeypatch, *dry, "--require", "gates=eager")
    assert code == 2 and "a kernel for 'gates'" in err
    large = [{"64x64": "1280x720", 5: 93}.get(word, word) for word in dry] + ["--require", "capture=eager"]
    assert cosmos3(capsys, monkeypatch, *dry, "--require", "capture=eager")[0] == 0
    code, _, err = cosmos3(capsys, monkeypatch, *large)
    assert code == 2 and "--require capture=eager: no pass of this request is captured. Drop it, or" in err


def test_a_format_is_met_by_a_row_that_declares_it_and_by_no_other():
    rows = row("plain"), row("eight", formats=("fp8",)), row("both", formats=("none", "int8"))
    made = plan(*rows, formats={"attention": "fp8"})
    assert chosen(made) == "eight" and made.formats == {"attention": "fp8"}
    assert made.to_json()["formats"] == {"attention": "fp8"}
    assert chosen(plan(*rows, formats={"attention": "int8"})) == "both"
    assert chosen(plan(*rows)) == "plain" and plan(*rows).formats == {}


def test_a_format_that_cannot_be_met():
    rows = row("plain"), row("eight", formats=("fp8",), arch=("x1",))
    with pytest.raises(InputError, match="`format` attention=fp8: eight: written for x1, and this device is x2"):
        plan(*rows, formats={"attention": "fp8"})
    with pytest.raises(InputError, match="`format` attention=int3: no attention kernel of acme .* It has fp8"):
        plan(*rows, formats={"attention": "int3"})
    with pytest.raises(InputError, match="`format` gate=fp8: gate is not quantized. .* attention, pack_linear"):
        plan(*rows, formats={"gate": "fp8"})
    with pytest.raises(InputError, match="`kernel` attention=plain: plain: takes formats none, not fp8"):
        plan(*rows, formats={"attention": "fp8"}, kernels={"attention": "plain"})
    for name in ("finish", "project"):  # its format is that of the products in it
        with pytest.raises(InputError, match=f"`format` {name}=fp8: .* Type `format` pack_linear=fp8"):
            plan(row("whole", "finish", formats=("fp8",)), formats={name: "fp8"})
    with pytest.raises(InputError, match="`kernel` pack_linear=plain: plain: takes formats none, not fp8"):
        plan(row("plain", "pack_linear"), formats={"pack_linear": "fp8"}, kernels={"pack_linear": "plain"})


def linears(made) -> dict[str, str]:
    """The rows that serve layers in the format, and those that are kept."""
    return {
        name: {c.op: c.kernel.name for c in choices}["pack_linear"]
        for name, choices in (("in the format", made.choices), ("kept", made.kept))
    }


def test_a_format_of_the_weights_always_runs_and_the_plan_says_how():
    """Eager torch comes last, in a format too: never in the place of a row that serves, and never without a note."""
    fast, away = (
        row("fast", "pack_linear", formats=("fp8",)),
        row("away", "pack_linear", formats=("fp8",), arch=("x1",)),
    )
    served = plan(fast, formats={"pack_linear": "fp8"})
    assert linears(served) == {"in the format": "fast", "kept": "eager"} and not served.unpacks and served.notes == ()
    fallen = plan(away, formats={"pack_linear": "fp8"})
    assert linears(fallen) == {"in the format": "eager", "kept": "eager"} and fallen.unpacks
    assert fallen.notes == (
        "no kernel of acme serves fp8 here (away: written for x1, and this device is x2), so eager torch makes the "
        "layers' weights numbers again in every call: right, and many times slower than a kernel",
    )
    with pytest.raises(InputError, match="`require` pack_linear=away: the plan has eager; away: written for x1"):
        fallen.require({"pack_linear": "away"})
    for name in FORMATS:
        if not FORMATS[name].static:
            assert linears(plan(formats={"pack_linear": name}))["in the format"] == "eager"
    assert plan(fast).notes == () and not plan(fast).unpacks, "no format is chosen by itself"


def test_a_row_that_widens_saves_memory_and_the_plan_says_so():
    """Of weights alone in a format nobody expects more."""
    native = row("native", "pack_linear", formats=("mxfp8",), arch=("x1",))
    wide = row("wide", "pack_linear", formats=("mxfp8", "w4a16"), widens=True)
    made = plan(native, wide, formats={"pack_linear": "mxfp8"})
    assert made.widens and not made.unpacks
    assert made.notes == (
        f"products of mxfp8 are in {made.dtype} here (native: written for x1, and this device is x2): the format saves "
        "memory, and no time",
    )
    weights = plan(native, wide, formats={"pack_linear": "w4a16"})
    assert weights.widens and weights.notes == () and not plan(native, wide).widens


def test_a_composite_that_multiplies_itself_spares_eager_torch():
    halves = [row("own", op, formats=("fp8",), fuses=("pack_linear",)) for op in ("project", "finish")]
    made = plan(*halves, formats={"pack_linear": "fp8"})
    assert made.fused["pack_linear"] == "project=own, finish=own" and not made.unpacks and made.notes == ()
    assert plan(halves[0], formats={"pack_linear": "fp8"}).unpacks, "the other half is made of products"


def test_packed_weights_go_to_rows_that_take_them():
    """Others would pack them anew. What no format quantizes is plain in every checkpoint."""
    plain, packed = (row(name, "pack_linear", formats=("none", "fp8"), packed=name == "two") for name in ("one", "two"))
    half = row("half", "finish", formats=("fp8",), fuses=("pack_linear",))
    made = plan(plain, packed, half, formats={"pack_linear": "fp8"}, packed=True)
    assert linears(made) == {"in the format": "two", "kept": "one"}
    reason = "packs plain weights itself, and these come packed in fp8"
    refused = {(one.op, one.name): one.reason for one in made.refusals}
    assert refused == {("pack_linear", "one"): reason, ("finish", "half"): reason}
    assert linears(plan(formats={"pack_linear": "fp8_static"}, packed=True))["in the format"] == "eager"


SIDES = [
    ("w4a16", dict(hidden=192), "w4a16 has a scale for every 128 input features, and the hidden width is 192"),
    ("nf4", dict(inner=96), "nf4 has a scale for every 64 input features, and the MLP's width is 96"),
    ("w4a8", dict(heads=3, head_dim=32), "w4a8 .* 128 input features, and the width of the heads together is 96"),
    (
        "fp8_block",
        dict(kv_heads=1, head_dim=32),
        "fp8_block .* 128 outputs, and the width of q, k and v together is 1088",
    ),
]


@pytest.mark.parametrize(("format", "sides", "said"), SIDES, ids=[format for format, *_ in SIDES])
def test_a_group_that_does_not_divide_a_side_is_found_before_weights_are_read(format, sides, said):
    with pytest.raises(InputError, match=f"`format` pack_linear={format}: {said}") as caught:
        plan(formats={"pack_linear": format}, **dict(hidden=256, inner=512) | sides)
    fitting = caught.value.next_step.removeprefix("Formats that fit this model are ").split(", ")
    assert {"int8", "fp8"} <= {*fitting} and format not in fitting
    for name in fitting:
        if not FORMATS[name].static:
            plan(formats={"pack_linear": name}, **dict(hidden=256, inner=512) | sides)


# --- rows that hand over, and rows that do several ops ---------------------------------------------------------------


def delegating(*kernels: Kernel, **want):
    """First is the row for large calls; smaller ones go to second, and the smallest to third."""
    delegates = (Delegate("second", below=64), Delegate("third", below=8))
    return plan(row("first", delegates=delegates), *kernels, **want)


SECOND, THIRD = row("second"), row("third")


def test_a_plan_says_who_serves_how_many_queries():
    made = delegating(SECOND, THIRD)
    (choice,) = (choice for choice in made.choices if choice.op == "attention")
    served = {queries: choice.serving(queries).name for queries in (1, 7, 8, 63, 64, 10**6)}
    assert served == {1: "third", 7: "third", 8: "second", 63: "second", 64: "first", 10**6: "first"}
    assert choice.serving(None).name == "first"
    assert made.to_json()["below"] == {"attention": {"third": 8, "second": 64}}
    assert [made.to_json(queries)["kernels"]["attention"] for queries in (None, 64, 63)] == ["first", "first", "second"]


def test_calls_are_handed_to_rows_that_serve_here():
    (choice, *_) = delegating(row("second", arch=("x1",)), THIRD).choices
    assert [(count, kernel.name) for count, kernel in choice.below] == [(8, "third")]
    (choice, *_) = delegating(row("second", dtypes=("float32",)), row("third", refuse=lambda ask: "no")).choices
    assert choice.below == () and choice.serving(1).name == "first"


def test_calls_go_to_the_row_for_their_number_of_queries():
    calls = []

    def built(name: str) -> Kernel:
        def attention(q_BSHD, segments, *, causal=False, want_lse=False):
            calls.append((name, q_BSHD.shape[1], causal, want_lse))
            return q_BSHD, None

        attention.prepare = lambda k_BTKD, v_BTKD: f"prepared by {name}"
        return attention

    def building(name: str, **fields) -> Kernel:
        return Kernel(op="attention", name=name, build=lambda device: built(name), **fields)

    ops = plan(
        building("first", prepares=True, delegates=(Delegate("second", 64), Delegate("third", 8))),
        building("second"),
        building("third"),
    ).build_ops()
    for queries in (64, 63, 7):
        q = torch.zeros(1, queries, 1, 1)
        ops.attention(q, [Segment(q, q)], causal=True, want_lse=True)
    assert calls == [("first", 64, True, True), ("second", 63, True, True), ("third", 7, True, True)]
    assert ops.prepare(None, None) == "prepared by first"
    assert plan(building("first")).build_ops().prepare is None, "the row does not declare that it prepares"


def test_require_is_about_the_row_that_runs():
    made = delegating(SECOND, THIRD)
    for name, queries in (("first", 64), ("second", 63), ("third", 7)):
        made.require({"attention": name}, queries)
    with pytest.raises(InputError, match="the plan has second; it is faster than first for 63 queries. .* larger pict"):
        made.require({"attention": "first"}, 63)
    with pytest.raises(InputError, match="the plan has below 8 queries third, below 64 queries second. Name the req"):
        made.require({"attention": "first"})
    with pytest.raises(InputError, match="the plan has first; it serves and is preferred"):
        made.require({"attention": "second"}, 64)


HALF = row("half", op="finish", fuses=("gate", "rms_norm"))


def test_what_a_composite_fuses_has_no_row_in_the_plan():
    made = plan(HALF, row("fast", op="gate"))
    told = made.to_json()
    assert told["fused"] == {"gate": "finish=half"} and "gate" not in told["kernels"]
    assert told["kernels"]["rms_norm"] == "eager", "the model's last norm is in no composite"
    with pytest.raises(
        InputError, match="`require` gate=fast: no row of gate runs: it is done inside finish=half. Type `k"
    ):
        made.require({"gate": "fast"})
    made.require({"finish": "half"})


def test_a_composite_finds_the_defaults_among_its_ops():
    """So it may call the default with ops of its own; among the plan's ops it would find itself, again and again."""
    asked = []

    def norm(*arguments, **options):
        asked.append("own")
        return reference.build_ops().rms_norm(*arguments, **options)

    def pack(weights, layer, ops, *, format="none"):
        return ops.project(weights, layer, replace(ops, rms_norm=norm), format=format)

    own = Kernel(op="project", name="own", build=lambda device: pack, fuses=("rms_norm",))
    layer = Layer(heads=2, kv_heads=1, head_dim=16, eps=1e-6, weight_fp32=False, activation="silu")
    weights, angles = ProjectWeights(torch.ones(8), torch.ones(64, 8)), torch.ones(1, 3, 16)
    ops = plan(own).build_ops()
    found = ops.project(weights, layer, ops)(Residual(torch.ones(3, 8)), angles, angles)
    assert asked == ["own"] and found.q_BSHD.shape == (1, 3, 2, 16)


def test_a_named_row_is_not_fused_away():
    made = plan(HALF, row("fast", op="gate"), kernels={"gate": "fast"})
    assert made.to_json()["kernels"] | {"gate": "fast", "finish": "composed"} == made.to_json()["kernels"]
    (refused,) = made.to_json()["refused"]
    assert refused == {"op": "finish", "name": "half", "reason": "does gate itself, and gate=fast was named"}
    with pytest.raises(InputError, match="`kernel` finish=half: half: does gate itself, and gate=fast was named"):
        plan(HALF, row("fast", op="gate"), kernels={"gate": "fast", "finish": "half"})


def test_a_composite_is_asked_for_in_the_format_of_its_products():
    eight = row("eight", op="pack_linear", formats=("fp8",))
    both = row("both", op="finish", formats=("none", "fp8"), fuses=("gate",))
    made = plan(eight, both, HALF, formats={"pack_linear": "fp8"})
    chosen = {choice.op: (choice.kernel.name, choice.format) for choice in made.choices}
    assert (chosen["finish"], chosen["project"], chosen["gate"]) == (
        ("both", "fp8"),
        ("composed", "fp8"),
        ("eager", "none"),
    )
    assert made.formats == {"pack_linear": "fp8"}
    assert {choice.op: choice.kernel.name for choice in made.kept} == {
        "pack_linear": "eager",
        "project": "composed",
        "finish": "both",
    }
    assert {c.op: c.kernel.name for c in plan(eight, HALF, formats={"pack_linear": "fp8"}).choices}[
        "finish"
    ] == "composed"
