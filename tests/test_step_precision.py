"""Steps, and a text tower, whose activations stay in 16 bits by weights that are packed once: which they are, what they
compute, and what plan, estimate and manifest say."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from dialect_files import checkpoint
from test_engine import capture
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core import reference
from cosmos3_core.checkpoint.model import Model, Weights, open_model
from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.contract import Ceiling, InputError, Kernel, Tuning
from cosmos3_core.engine.engine import Engine
from cosmos3_core.plan import Plan, Want, resolve
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.steps import NATIVE, StepPolicy, a16_of
from cosmos3_core.reference.ops import pack_linear
from cosmos3_core.sampling.state import State
from cosmos3_core.settle import Wish, ground_of, settle

QUANTIZING = [name for name, format in FORMATS.items() if format.of_inputs and not format.static]
DEVICE = reference.probe()


# --- which steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "steps", "a16"),
    [
        ({"first": 2, "last": 1}, 5, (0, 1, 4)),
        ({"first": 3, "last": 3}, 4, (0, 1, 2, 3)),
        ({"first": 3, "last": 3, "overlap": NATIVE}, 4, (0, 3)),
        ({"first": 3, "last": 3, "overlap": NATIVE}, 1, ()),
        ({"first": 9, "last": 0}, 2, (0, 1)),
        ({"first": 2, "last": 2, "first_mode": NATIVE}, 5, (3, 4)),
        ({"first": 2, "last": 2, "first_mode": NATIVE, "last_mode": NATIVE}, 3, (1,)),
        ({}, 3, ()),
    ],
)
def test_a_policy_says_which_steps(policy, steps, a16):
    made = StepPolicy(**policy)
    assert made.a16_steps(steps) == a16 and made.in_steps == bool(policy and (a16 or steps == 1))


def test_a_policy_as_it_is_typed():
    assert StepPolicy.typed("2,1") == StepPolicy(first=2, last=1, named=True)
    assert StepPolicy.typed(" 0, 3 ,native") == StepPolicy(last=3, reasoner=NATIVE, named=True)
    assert StepPolicy.typed("None") == StepPolicy(reasoner=NATIVE, named=True)
    StepPolicy.typed("2,1").check(3)  # every step once


@pytest.mark.parametrize("text", ["", "2", "2,", "-1,2", "2.0,2", "2,2,2", "2,2,a8", "first=2", "1e1,2", "99999,0"])
def test_what_is_no_policy_is_refused(text):
    with pytest.raises(InputError, match="it is no two counts of steps"):
        StepPolicy.typed(text)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_one_of_the_same_weights_with_activations_in_16_bits(name):
    format = FORMATS[name]
    found = a16_of(format, FORMATS)
    assert found.of_inputs is None and not found.static
    weights = replace(format.weight_only(), outputs=format.outputs or 1)
    assert replace(found, name="", source="") == replace(weights, name="", source="")
    expected = {"fp8": "fp8a16", "int8": "int8a16", "w4a8": "w4a16", "nvfp4": "nvfp4a16", "mxfp8": "mxfp8_a16"}
    expected |= {"fp8_static": "fp8a16", "fp8_tensor": "fp8a16"}
    assert found.name == expected.get(name, found.name)


# --- what they compute -----------------------------------------------------------------------------------------------


def wide() -> Model:
    """The tiny model with widths that take groups of 128."""
    model = open_model(TINY_MODEL)
    widths = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4}
    return replace(model, config=replace(model.config, **widths))


def planned(format: str, steps: str | None = None, model: Model | None = None, **changes) -> Plan:
    """On eager torch in bf16; `changes` are of the backend."""
    backend = replace(reference.BACKEND, **changes)
    policy = None if steps is None else StepPolicy.typed(steps)
    config = (model or open_model(TINY_MODEL)).config
    return resolve(Want.of(config, "bfloat16", formats={"pack_linear": format}, policy=policy), backend, DEVICE)


def engine(plan: Plan) -> Engine:
    return Engine(open_model(TINY_MODEL), plan, placement=ALL_RESIDENT)


def request(model: str = TINY_MODEL, **given):
    given = {"prompt": "a cup", "frames": 1, "size": "64x64", "steps": 3, "seed": 1} | given
    return settle(Wish(model=model, backend="reference", given=given)).request


def predicted(running: Engine, state: State) -> torch.Tensor:
    """By this engine's own tower, whoever began the state."""
    return running.predict([replace(state, passes=None)])[0]


def keys(state: State) -> list[torch.Tensor]:
    return [segment.k_BTKD for text in state.context.texts for segment in text.segments]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def alone(name: str) -> tuple[str, dict]:
    """The format of the same weights with activations in 16 bits as a run of its own has it, and who brings that."""
    twin = replace(FORMATS[name].weight_only(), name="alone_a16")
    return twin.name, {"formats": (twin,)}


@pytest.mark.parametrize("name", QUANTIZING)
def test_each_step_is_bit_for_bit_that_of_its_precision(name):
    """With two branches in one pass."""
    model, (twin, brought) = wide(), alone(name)
    weights = RandomWeights(model, "cpu")

    def running(format: str, steps: str | None = None, **changes) -> Engine:
        return Engine(model, planned(format, steps, model, **changes), placement=ALL_RESIDENT, weights=weights)

    both, native, a16 = running(name, "1,1,native"), running(name), running(twin, **brought)
    state = both.start(request())
    assert same(keys(state), keys(native.start(state.request))), "the text tower is native, as it was told"
    found = []
    while not state.done:
        (velocity,) = both.predict([state])
        found.append((torch.equal(velocity, predicted(a16, state)), torch.equal(velocity, predicted(native, state))))
        both.advance(state, velocity)
    assert found == [(True, False), (False, True), (True, False)]


def test_the_text_tower_follows_and_is_read_as_its_weights_alone():
    both, a16, native = (engine(planned("fp8", "1,1")), engine(planned("fp8a16")), engine(planned("fp8")))
    ours, theirs, plain = (keys(running.start(request())) for running in (both, a16, native))
    assert same(ours, theirs) and not same(ours, plain)
    text = engine(planned("fp8", "0,0"))
    state = text.start(request())
    assert same(keys(state), theirs) and torch.equal(text.predict([state])[0], predicted(native, state))


def captured(plan: Plan, recorded: list, **tuning) -> Plan:
    row = Kernel(op="capture", name="same-memory", build=lambda _: partial(capture, recorded=recorded))
    rows = tuple(row if one.op == "capture" else one for one in plan.backend.kernels)
    choices = tuple(replace(one, kernel=row) if one.op == "capture" else one for one in plan.choices)
    backend = replace(plan.backend, kernels=rows, tuning={"*": Tuning(**tuning)})
    return replace(plan, backend=backend, choices=choices)


@pytest.mark.parametrize(("one_pass", "kinds"), [(4096, 1), (1, 2)])
def test_a_captured_pass_is_of_one_precision(one_pass, kinds):
    """Guidance in one pass or in two; a second generation finds what the first one left."""
    recorded: list = []
    plain = planned("int8", "1,1")
    running = engine(captured(plain, recorded, one_pass_tokens=one_pass))
    expected = engine(captured(plain, [], one_pass_tokens=one_pass, capture_rows=0))
    for _ in range(2):
        state, theirs = running.start(request(steps=4)), expected.start(request(steps=4))
        while not state.done:
            assert torch.equal(running.step(state).x, expected.step(theirs).x)
        assert len(recorded) == 2 * kinds


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_goes_on_in_the_precision_of_its_step(stop):
    plan = planned("mxfp4", "1,1")
    whole, first, second = (engine(plan) for _ in range(3))
    expected, state = whole.start(request()), first.start(request())
    while not expected.done:
        whole.step(expected)
    for _ in range(stop):
        first.step(state)
    resumed = second.start(request())
    resumed.restore(*state.to_tensors())
    while not resumed.done:
        second.step(resumed)
    assert torch.equal(resumed.x, expected.x)


def test_generations_of_several_lengths_on_one_context_each_have_their_last_steps():
    running = engine(planned("fp8", "0,1"))
    long = running.start(request())
    short = running.begin(long.context, replace(request(), steps=1))
    native = engine(planned("fp8"))
    assert torch.equal(running.predict([long])[0], predicted(native, long))
    assert not torch.equal(running.predict([short])[0], predicted(native, short))


def bytes_of(layers) -> int:
    storages = {}
    for layer in layers:
        for half in (layer, *([layer.a16] if layer.a16 else [])):
            for tensor in half.tensors().values():
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("name", ["fp8", "nvfp4", "mxfp4_dual"])
def test_there_is_one_copy_of_the_weights_and_it_can_be_moved(name):
    weights = Weights(open_model(TINY_MODEL))
    both, native = (planned(name, steps).target(weights.model.config) for steps in ("1,1", None))
    layers = weights.generation(both).layers
    assert bytes_of(layers) == bytes_of(weights.generation(native).layers)
    held, twin = layers[1].tensors(), layers[1].a16.tensors()
    assert {id(tensor) for tensor in twin.values()} <= {id(tensor) for tensor in held.values()}
    assert len(held) == len({id(tensor) for tensor in held.values()})


# --- checkpoints -----------------------------------------------------------------------------------------------------


SMALL = ("--backend", "reference", "--dtype", "float32", "--size", "64x64", "--seed", "7")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of ModelOpt's whose policy is three first and three last steps, and the text tower."""
    return checkpoint("modelopt-fp8", tmp_path_factory.mktemp("checkpoint") / "model")


def test_a_checkpoints_policy_is_followed_and_an_option_goes_before_it(folder: Path):
    def velocities(steps: str | None) -> list[torch.Tensor]:
        wish = Wish(model=str(folder), backend="reference", dtype="float32", high_precision_steps=steps)
        ground = ground_of(wish)
        running = Engine(ground.model, ground.plan, placement=ALL_RESIDENT)
        state = running.start(request(str(folder), steps=7))
        found = []
        for index in (0, 3, 6):
            state.index = index
            found.append(running.predict([state])[0])
        return found

    own, native, a16 = velocities(None), velocities("0,0"), velocities("7,0")
    assert [torch.equal(*pair) for pair in zip(own, native, strict=True)] == [False, True, False]
    assert [torch.equal(*pair) for pair in zip(own, a16, strict=True)] == [True, False, True]


def test_plan_and_manifest_say_what_runs_how(folder: Path, run, monkeypatch):
    code, out, err = run("waves", "--model", folder, *SMALL, "--steps", "7", "--dry-run")
    told = " ".join(out.split())
    assert code == 0, err
    assert "steps 1 to 3 and 5 to 7 of 7, and the text tower: activations in 16 bits by the same weights" in told
    assert "pack_linear eager in fp8a16, as the checkpoint asks (--high-precision-steps none: not)" in told
    code, _, err = run("waves", "--model", folder, *SMALL, "--steps", "2", "-o", "a.png")
    assert code == 0, err
    manifest = json.loads(Path("a.png.json").read_text())
    plan = manifest["plan"]
    assert plan["high_precision_steps"] is None and plan["a16"]["steps"] == [0, 1]
    assert plan["a16"]["kernels"] == {"fp8a16": "eager"}
    assert plan["dtypes"]["generation"] == "float32, layers in fp8_static, in steps 0, 1 (from 0) in fp8a16"
    assert plan["dtypes"]["understanding"] == "float32, layers in fp8a16"
    code, _, err = run("--request", "a.png.json", "--high-precision-steps", "none", "-o", "b.png")
    assert code == 0, err
    other = json.loads(Path("b.png.json").read_text())
    assert "a16" not in other["plan"] and other["plan"]["high_precision_steps"] == "none"
    assert "note: pack_linear in fp8a16 ran on eager in that run, and is None here" in err
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
    code, _, err = run("--request", "b.png.json", "-o", "c.png")
    assert code == 0 and json.loads(Path("c.png.json").read_text())["plan"]["high_precision_steps"] == "none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "fp8", "--high-precision-steps", "3,0"), "--high-precision-steps 3,0: the run has 2 steps. Give"),
        (("--format", "fp8", "--high-precision-steps", "1,2"), "and some would be among the first and the last"),
        (("--format", "fp8", "--high-precision-steps", "-1,2"), "--high-precision-steps -1,2: it is no two counts"),
        (("--format", "fp8a16", "--high-precision-steps", "1,1"), "16 bits in every step: fp8a16 leaves them so"),
        (("--high-precision-steps", "1,1"), "activations are in 16 bits in every step, as no format is asked for"),
        (("--high-precision-steps", "none"), "activations are in 16 bits in every step, as no format is asked for"),
        (("--format", "fp8_static", "--high-precision-steps", "1,1"), "takes the activations' scales from a quantized"),
    ],
)
def test_steps_that_cannot_be_met_are_refused(options, said, run):
    code, _, err = run("waves", "--model", TINY_MODEL, *SMALL, "--steps", "2", *options, "--dry-run")
    assert code == 2 and said in " ".join(err.split()), err


# --- rows ------------------------------------------------------------------------------------------------------------


def row(name: str, *formats: str, packed: bool = True, **changes) -> Kernel:
    build = changes.pop("build", lambda device: pack_linear)
    return Kernel(op="pack_linear", name=name, build=build, formats=formats, packed=packed, **changes)


def test_a_row_that_packs_itself_gives_way_where_two_precisions_read_one_weight():
    rows = (row("own", "fp8", packed=False), row("fast", "fp8"), *reference.BACKEND.kernels)
    assert planned("fp8", kernels=rows).to_json()["kernels"]["pack_linear"] == "own"
    assert planned("fp8", "0,0", kernels=rows).to_json()["kernels"]["pack_linear"] == "own"
    plan = planned("fp8", "1,1", kernels=rows)
    assert plan.to_json()["kernels"]["pack_linear"] == "fast"
    assert [one.reason for one in plan.refusals] == ["packs plain weights itself, and these come packed in fp8"]
    assert plan.to_json()["a16"]["kernels"] == {"fp8a16": "eager"}
    (note,) = plan.notes
    assert "takes activations in 16 bits by fp8 weights here, so eager torch does those steps" in note
    with pytest.raises(InputError, match="eager takes the activations that stay in 16 bits, in fp8a16"):
        plan.require({"pack_linear": "fast"})


def test_a_row_for_both_serves_both_and_is_no_slow_one():
    plan = planned("fp8", "1,1", kernels=(row("fast", "fp8", "fp8a16"), *reference.BACKEND.kernels))
    assert plan.to_json()["a16"]["kernels"] == {"fp8a16": "fast"} and plan.notes == ()
    plan.require({"pack_linear": "fast"})


# --- the estimate ----------------------------------------------------------------------------------------------------


def estimated(format: str | None, steps: str | None, **given):
    formats = {} if format is None else {"pack_linear": format}
    wish = Wish(
        model="nvidia/Cosmos3-Nano",
        described=True,
        partial=True,
        backend="reference",
        formats=formats,
        high_precision_steps=steps,
        given={"task": "t2v", "steps": 10, **given},
    )
    return settle(wish).asked


def test_the_estimate_knows_one_copy_and_which_steps():
    both, native, a16 = (estimated("fp8", steps) for steps in ("2,3", None, "10,0"))
    assert both.weights == native.weights == a16.weights
    assert (both.job.a16_steps, both.job.a16_guided_steps) == (5, 5)
    fast = [replace(one, unpacks=False, a16_unpacks=False) for one in (both, native, a16)]
    rates = [{work.rate for work in one.parts["steps"]} for one in fast]
    assert rates == [{"fp8", "bfloat16"}, {"fp8", "bfloat16"}, {"bfloat16"}]
    flops = [sum(work.flops for work in one.parts["steps"] if work.rate == "fp8") for one in fast]
    assert flops[0] == pytest.approx(flops[1] / 2) and flops[2] == 0
    ceiling = Ceiling(tflops={"fp8": 2000, "bfloat16": 1000, "float32": 60}, bandwidth=4e12, source="made up")
    times = [one.seconds(ceiling) for one in fast]
    assert times[1]["steps"] < times[0]["steps"] < times[2]["steps"]
    assert (
        times[0]["step"] == times[2]["step"] > times[1]["step"] and times[0]["read prompts"] > times[1]["read prompts"]
    )


@pytest.mark.parametrize("name", ["gguf", "modelopt-fp8", "gptq"])  # whose groups are of 32
def test_the_estimate_counts_each_module_of_a_checkpoint_in_its_own_format(name, tmp_path):
    """Some layers are in 16 bits, and some in several formats."""
    given = {"prompt": "a cup", "frames": 1, "size": "64x64", "steps": 2}
    settled = settle(Wish(model=str(checkpoint(name, tmp_path / "model")), backend="reference", given=given))
    tower = Weights(settled.model).generation(settled.plan.target(settled.model.config))
    assert settled.asked.weights["generation"] == pytest.approx(bytes_of(tower.layers), rel=0.02)
    dense = replace(settled.asked, modules={}).weights["generation"]
    whole = replace(settled.asked, modules=None).weights["generation"]
    assert whole < 0.8 * settled.asked.weights["generation"] < 0.9 * dense


def test_passes_captured_in_two_precisions_have_memory_each():
    both, native = (estimated("fp8", steps, task="t2i", size="256x256") for steps in ("2,2", None))
    assert native.execution.captured
    tables = both.stage("steps").latents - native.stage("steps").latents
    assert tables > 0 and both.stage("steps").activations == 2 * native.stage("steps").activations


def test_a_saved_run_goes_on_with_its_own_steps_alone(tmp_path: Path):
    def pipe(steps: str | None) -> cosmos3.Pipeline:
        return cosmos3.load(TINY_MODEL, backend="reference", formats={"pack_linear": "fp8"}, high_precision_steps=steps)

    file, begun = tmp_path / "state.safetensors", pipe("1,1").start("a cup", frames=1, size="64x64", steps=3, seed=1)
    begun.step()
    begun.save(file)
    assert pipe("1,1").resume(file).index == 1
    with pytest.raises(cosmos3.InputError, match="it began with `high_precision_steps` 1,1, and this pipe has None"):
        pipe(None).resume(file)
