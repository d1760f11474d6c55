"""The engine and the loader under the command line: states, what is loaded when, names, memory."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import peer
import pytest
import torch
from alive import Alive
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.model import Model, Weights, open_model
from cosmos3_core.checkpoint.tensors import open_tensors, save_tensors
from cosmos3_core.contract import Bytes, InputError, Kernel, Tuning
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.stages import Watch
from cosmos3_core.model import weights as layout
from cosmos3_core.plan import Want, resolve
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED
from cosmos3_core.reference import ops as reference_ops
from cosmos3_core.sampling.noise import generator, initial_noise
from cosmos3_core.sampling.state import State
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.items import items_of


def capture(function, recorded: list):
    """As a device's recording does, it returns the same memory every time. `recorded` gets what is captured."""
    results: list[torch.Tensor] = []
    recorded.append(weakref.ref(function))

    def replay(*tensors):
        found = function(*tensors)
        if not results:
            results.extend(tensor.clone() for tensor in found)
        for result, tensor in zip(results, found, strict=True):
            result.copy_(tensor)
        return list(results)

    return replay


def engine(
    model: Model | None = None, *, recorded: list | None = None, ours: Kernel | None = None, **options
) -> Engine:
    """Of the tiny model in bf16 on eager torch, but for the op of a row of `ours`; with `recorded` its passes are
    captured."""
    model = model or open_model(TINY_MODEL)
    plan = peer.reference_plan(model.config, "bfloat16")
    if recorded is not None:
        ours = Kernel(op="capture", name="same-memory", build=lambda _: partial(capture, recorded=recorded))
    if ours is not None:
        rows = [ours if row.op == ours.op else row for row in plan.backend.kernels]
        plan = resolve(Want.of(model.config, "bfloat16"), replace(plan.backend, kernels=tuple(rows)), plan.device)
    return Engine(model, plan, **options)


def watched() -> tuple[Engine, Watch, list]:
    """An engine, a watch, and what that is told."""
    told: list[tuple[str, int, int]] = []
    return engine(), Watch(lambda *progress: told.append(progress)), told


def request(**given):
    values = {"task": "t2v", "prompt": "a cup", "frames": 5, "size": "64x64", "steps": 5, "seed": 1} | given
    return requests.resolve(values, "reference", open_model(TINY_MODEL).facts, int)[0]


def finish_state(running: Engine, state: State) -> State:
    while not state.done:
        running.step(state)
    return state


def finish(running: Engine, state: State) -> torch.Tensor:
    """The latents after the last step."""
    return finish_state(running, state).x


def parameters(tower: str) -> int:
    """How many values a tower's decoder layers have."""
    config, media = open_model(TINY_MODEL).config, tower == "generation"
    slots = [layout.layer_slots(config, i, media=media) for i in range(config.num_hidden_layers)]
    return sum(math.prod(slot.shape) for layer in slots for slot in layer)


def interrupt(*_):
    raise KeyboardInterrupt


def model_of(schedule):
    """The tiny model; for "distilled" as such a checkpoint describes itself: fixed noise levels, and a sampler that
    draws in every step."""
    model = open_model(TINY_MODEL)
    if schedule != "distilled":
        return model
    return replace(model, scheduler={"stochastic_sampling": True}, distilled_sigmas=(1.0, 0.8, 0.5))


@pytest.mark.parametrize("schedule", ["native", "karras", "distilled"])
def test_a_state_saved_at_any_step_continues_bit_equal(schedule):
    wanted = replace(request(steps=3), schedule=schedule)
    running = engine(model_of(schedule), placement=ALL_RESIDENT)
    context = running.prepare(wanted)
    expected = finish(running, running.begin(context, wanted))
    for stop in range(4):
        state = running.begin(context, wanted)
        for _ in range(stop):
            running.step(state)
        tensors, numbers = state.to_tensors()
        numbers = json.loads(json.dumps(numbers))  # as it is stored
        other = engine(model_of(schedule))
        resumed = other.start(wanted)
        resumed.restore({k: v.clone() for k, v in tensors.items()}, numbers)
        assert resumed.index == stop
        assert torch.equal(finish(other, resumed), expected)


# --- one seam to step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_predicting_changes_nothing_and_advancing_is_the_rest_of_a_step(schedule):
    running = engine(model_of(schedule), placement=ALL_RESIDENT)
    context = running.prepare(request())
    stepped, seam = (running.begin(context, replace(request(), schedule=schedule)) for _ in range(2))
    while not stepped.done:
        before, numbers = seam.to_tensors()
        before = {name: tensor.clone() for name, tensor in before.items()}
        first, again = (running.predict([seam])[0] for _ in range(2))
        after, same = seam.to_tensors()
        assert same == numbers and all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert first.dtype == torch.float32 and first.shape == seam.x.shape and torch.equal(first, again)
        assert running.advance(seam, first) is seam
        assert torch.equal(running.step(stepped).x, seam.x) and stepped.index == seam.index


def test_velocities_of_several_states_are_each_ones_own():
    """Whether they share a context or not, with guidance and without, also where a pass returns the same memory."""
    recorded: list = []
    running = engine(recorded=recorded)
    one, other = (running.prepare(request(size=size)) for size in ("64x64", "80x64"))
    requests_of = [(one, {}), (one, {"guidance": 1.0}), (one, {"guidance": 1.0, "seed": 5}), (other, {"guidance": 1.0})]
    states = [running.begin(context, replace(context.request, **given)) for context, given in requests_of]
    together = running.predict(states)
    alone = [running.predict([state])[0] for state in states]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))
    assert not any(torch.equal(together[i], together[j]) for i in range(3) for j in range(i))
    assert len(recorded) == 3  # the passes that ran: two of the first context, whichever states run them, and one


def test_generations_on_one_context_are_those_of_their_own_requests():
    """Other steps, guidance, schedule and seed, without reading the prompts again."""
    running, watch, told = watched()
    context = running.prepare(request(), watch=watch)
    changes = [{}, {"steps": 2, "seed": 7}, {"guidance": 1.0}, {"guidance_interval": [0, 900]}, {"schedule": "karras"}]
    for given in changes:
        alone, wanted = engine(), request(**given)
        expected = finish(alone, alone.start(wanted))
        assert torch.equal(finish(running, running.begin(context, wanted)), expected), given
    assert [stage for stage, done, _ in told if done == 0].count("read prompts") == 1


@pytest.mark.parametrize(
    ("prepared", "asked", "found"),
    [
        ({}, {"size": "80x64"}, "size differ"),
        ({}, {"prompt": "a bowl", "frames": 9}, "prompt, frames differ"),
        ({"guidance": 1.0}, {}, "no negative prompt was read"),
    ],
)
def test_a_generation_that_does_not_fit_its_context_is_refused(prepared, asked, found):
    running = engine()
    context = running.prepare(request(**prepared))
    with pytest.raises(InputError, match=found):
        running.begin(context, request(**asked))


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_what_is_no_step_is_refused_and_the_state_stays_as_it_is(schedule):
    running = engine(model_of(schedule), placement=ALL_RESIDENT)
    state = running.start(replace(request(steps=2), schedule=schedule))
    (velocity,) = running.predict([state])
    for wrong in (velocity[:1], velocity[None], velocity.half()):
        with pytest.raises(InputError, match="Pass what predict returned"):
            running.advance(state, wrong)
    assert state.index == 0 and state.to_tensors()  # not torn
    while not state.done:
        running.step(state)
    for call in (running.step, lambda state: running.predict([state]), lambda state: running.advance(state, velocity)):
        with pytest.raises(InputError, match="and had them"):
            call(state)


# --- what is loaded when ---------------------------------------------------------------------------------------------


def alternate(running: Engine, states: list) -> None:
    while not all(state.done for state in states):
        for state in states:
            if not state.done:
                running.step(state)


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_two_generations_in_turn_equal_each_alone_at_bounded_memory(loaded, schedule):
    """Of different sizes and lengths. One tower serves both; beyond it, both need what each does."""
    wanted = [replace(one, schedule=schedule) for one in (request(), request(size="128x96", frames=9, steps=3))]
    alone, peaks = [], []
    for one in wanted:
        running = engine(model_of(schedule))
        with Alive() as counted:
            state = finish_state(running, running.start(one))
        peaks.append(counted.peak)
        alone.append((state.x, torch.cat(list(running.finish(state)))))
    loaded.seen.clear()
    running = engine(model_of(schedule))
    with Alive() as counted:
        states = [running.start(one) for one in wanted]
        assert not loaded.alive
        alternate(running, states)
    assert loaded.alive == ["generation"] and loaded.names.count("generation") == 1
    tower = 2 * parameters("generation")  # bytes in bf16
    assert tower < counted.peak <= sum(peaks) - tower
    for state, (x, frames) in zip(states, alone, strict=True):
        assert torch.equal(state.x, x)
        assert torch.equal(torch.cat(list(running.finish(state))), frames)
    assert loaded.names.count("generation") == 1 and not loaded.alive


def test_a_generation_finishes_while_another_one_goes_on(loaded):
    """The first to finish does not take the tower from the other."""
    running = engine()
    states = [running.start(request(seed=1, steps=1)), running.start(request(seed=2, guidance_interval=[0, 900]))]
    for state in states:
        running.step(state)
    frames = running.finish(states[0])
    next(frames)
    assert loaded.alive == ["generation", "vae decoder"]
    running.step(states[1])
    list(frames)
    assert loaded.alive == ["generation"]
    alone = engine()
    expected = finish(alone, alone.start(states[1].request))
    assert torch.equal(finish(running, states[1]), expected)
    list(running.finish(states[1]))
    assert loaded.names.count("generation") == 2 and not loaded.alive  # one of them is that of `alone`


def test_prompts_are_read_while_another_generation_is_between_two_steps(loaded):
    running, alone = engine(), engine()
    expected = [finish(alone, alone.start(request(seed=seed, prompt=f"cup {seed}"))) for seed in (1, 2)]
    loaded.seen.clear()
    first = running.start(request(seed=1, prompt="cup 1"))
    running.step(first)
    second = running.start(request(seed=2, prompt="cup 2"))
    assert loaded.alive == ["generation"]
    alternate(running, [first, second])
    assert loaded.names == ["understanding", "generation", "understanding"]
    assert all(torch.equal(state.x, x) for state, x in zip((first, second), expected, strict=True))


def test_states_that_are_dropped_free_the_tower(loaded):
    """Between two steps, with passes that are captured, on one context that stays."""
    recorded: list = []
    running = engine(recorded=recorded)
    context = running.prepare(request())
    one, other = (running.begin(context, request(seed=seed)) for seed in (1, 2))
    running.step(one)
    running.predict([other])
    del one
    assert loaded.alive == ["generation"]
    running.step(other)
    del other
    assert not loaded.alive and loaded.names.count("generation") == 1
    assert len(recorded) == 1 and not any(function() for function in recorded)


def test_a_step_that_fails_leaves_no_tower_behind(loaded, monkeypatch):
    from cosmos3_core.model.transformer import GenerationTower

    running = engine()
    state = running.start(request())
    before = running.step(state).x.clone()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(GenerationTower, "_heads", interrupt)
        running.step(state)
    assert state.index == 1 and not state.torn and torch.equal(state.x, before)
    del state
    assert not loaded.alive


def test_components_leave_once_they_are_done(loaded):
    running = engine()
    state = running.start(request())
    assert loaded.names == ["understanding"] and not loaded.alive
    finish(running, state)
    assert loaded.alive == ["generation"]
    frames = running.finish(state)
    next(frames)
    assert loaded.alive == ["vae decoder"]
    frames.close()  # before its end, and with it the decoder
    assert not loaded.alive


def test_the_components_of_a_resident_engine_stay(loaded, tmp_path):
    """The VAE's encoder joins the decoder, which stays from the first run, when the second has a picture to encode."""
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "g.png")
    running = engine(placement=ALL_RESIDENT)
    list(running.finish(finish_state(running, running.start(request(steps=1)))))
    assert loaded.alive == ["generation", "understanding", "vae decoder"]
    wanted = request(task="i2v", image=str(tmp_path / "g.png"), steps=1)
    state = finish_state(running, running.start(wanted))
    assert loaded.alive == ["generation", "understanding", "vae decoder", "vae encoder"] == sorted(loaded.names)
    encoder = Weights(running.model).vae(running.target, "encoder")
    assert torch.equal(state.latents()[0][:, 0], encoder.encode(running.read_inputs(wanted).given[0])[:, 0])
    del running, state
    assert loaded.alive == ["vae encoder"]  # this test's own


@pytest.mark.parametrize("resident", [False, True], ids=["dropped", "resident"])
def test_idle_memory_is_given_back_between_parts(monkeypatch, loaded, resident):
    """After the prompts, the steps and the decode, if there is much; the components that stay are not idle."""
    given, idle = [], 3 << 30
    running = engine(placement=ALL_RESIDENT if resident else ALL_STAGED)
    memory = running.target.ops.memory
    monkeypatch.setattr(memory, "used", lambda device: Bytes(1 << 30, (1 << 30) + idle))
    monkeypatch.setattr(memory, "empty", lambda device: given.append(loaded.alive))
    list(running.finish(finish_state(running, running.start(request(steps=1)))))
    parts = ["understanding", "generation", "vae decoder"]
    assert given == [sorted(parts[:done]) if resident else [] for done in (1, 2, 3)]
    idle = 1 << 20
    list(running.finish(finish_state(running, running.start(request(steps=1)))))
    assert len(given) == 3


def test_the_texts_keys_are_prepared_once_and_come_first():
    """By a row that prepares segments: each of them once for a run, those of the text and of nothing else."""
    prepared, seen = [], []

    def prepare(k_BTKD, v_BTKD):
        prepared.append((k_BTKD, v_BTKD))
        return prepared[-1]

    def attention(q_BSHD, segments, **options):
        seen.append(tuple(segments))
        return reference_ops.attention(q_BSHD, segments, **options)

    attention.prepare = prepare
    ours = Kernel(op="attention", name="preparing", build=lambda device: attention, prepares=True)
    running = engine(ours=ours)
    finish(running, running.start(request(steps=3, guidance=1.0)))
    steps = [segments for segments in seen if len(segments) == 2]
    layers = running.model.config.num_hidden_layers
    assert len(steps) == 3 * layers and len(prepared) == layers
    for text, media in steps:
        assert text.static and text.prepared is not None and not media.static and media.prepared is None
        assert text.k_BTKD is text.prepared[0] and text.v_BTKD is text.prepared[1]
    assert all(not one.static and one.prepared is None for segments in seen if len(segments) == 1 for one in segments)


# --- stages, guidance, noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_the_noise_of_a_seed_given_as_noise_changes_nothing(schedule):
    """Also where the sampler draws from the stream that the noise came from."""
    running = engine(model_of(schedule), placement=ALL_RESIDENT)
    wanted = replace(request(steps=2), schedule=schedule)
    noise = initial_noise(items_of(wanted, running.model.config), generator(wanted.seed))
    drawn, given = running.start(wanted), running.start(wanted, running.read_inputs(wanted, noise))
    assert torch.equal(finish(running, drawn), finish(running, given))


def test_progress_is_between_steps_and_stages_are_named():
    running, watch, told = watched()
    state = running.start(request(), watch=watch)
    seen = [state.index]
    while not state.done:
        seen.append(running.step(state).index)
    frames = torch.cat(list(running.finish(state)))
    assert seen == [0, 1, 2, 3, 4, 5] and frames.shape == (5, 64, 64, 3) and frames.dtype == torch.uint8
    layers = running.model.config.num_hidden_layers  # each reads both prompts
    stages = {"check weights": 1, "load understanding": 1, "read prompts": layers, "load generation": 1, "steps": 5}
    stages |= {"load vae decoder": 1}
    parts = [(stage, done, total) for stage, total in stages.items() for done in range(total + 1)]
    assert told == [*parts, ("decode", 0, 5), ("decode", 1, 5), ("decode", 5, 5)]


def test_prompts_are_read_once_and_guidance_follows_its_interval(monkeypatch):
    from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower

    reads, passes = [], []
    read, forward = UnderstandingTower.read, GenerationTower.forward
    monkeypatch.setattr(UnderstandingTower, "read", lambda self, ids: reads.extend(map(len, ids)) or read(self, ids))

    def spy(self, branches, latents, timestep, **precision):
        passes.append((timestep, len(branches.texts)))
        return forward(self, branches, latents, timestep, **precision)

    monkeypatch.setattr(GenerationTower, "forward", spy)
    running = engine()
    finish(running, running.start(request(steps=4, guidance_interval=[700, 980])))
    assert len(reads) == 2
    assert [count for _, count in passes] == [2 if 700 <= t <= 980 else 1 for t, _ in passes]
    assert {count for _, count in passes} == {1, 2}
    reads.clear()
    finish(running, running.start(request(guidance=1.0)))
    assert len(reads) == 1  # no negative prompt is read when nothing uses it


def test_guidance_in_two_passes_equals_one_pass():
    one, two = engine(), engine()
    together = finish(one, one.start(request()))
    # What a backend says of its device decides.
    backend = replace(two.plan.backend, tuning={two.plan.device.arch: Tuning(one_pass_tokens=1)})
    two = Engine(two.model, replace(two.plan, backend=backend))
    assert (one.execution(request()).guidance, two.execution(request()).guidance) == ("one pass", "two passes")
    apart = finish(two, two.start(request()))
    assert peer.relative_error(together, apart) < 0.05  # bf16 at this size; exact in fp32 (test_parity)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"48, 1, 2, 2.*48, 2, 4, 4"):
        engine().read_inputs(request(), [torch.zeros(48, 1, 2, 2)])
    with pytest.raises(InputError, match="finite"):
        engine().read_inputs(request(), [torch.full((48, 2, 4, 4), float("nan"))])
    for wrong in ([], [torch.zeros(48, 2, 4, 4)] * 2, [torch.zeros(48, 2, 4, 4).numpy()]):
        with pytest.raises(InputError, match="this request needs 1, for vision"):
            engine().read_inputs(request(), wrong)


# --- loading ---------------------------------------------------------------------------------------------------------

NATIVE = {
    "self_attn.add_q_proj": "self_attn.q_proj_moe_gen",
    "self_attn.add_k_proj": "self_attn.k_proj_moe_gen",
    "self_attn.add_v_proj": "self_attn.v_proj_moe_gen",
    "self_attn.to_add_out": "self_attn.o_proj_moe_gen",
    "self_attn.norm_added_q": "self_attn.q_norm_moe_gen",
    "self_attn.norm_added_k": "self_attn.k_norm_moe_gen",
    "self_attn.to_q": "self_attn.q_proj",
    "self_attn.to_k": "self_attn.k_proj",
    "self_attn.to_v": "self_attn.v_proj",
    "self_attn.to_out": "self_attn.o_proj",
    "self_attn.norm_q": "self_attn.q_norm",
    "self_attn.norm_k": "self_attn.k_norm",
    "proj_in": "vae2llm",
    "proj_out": "llm2vae",
    "time_embedder.linear_1": "time_embedder.mlp.0",
    "time_embedder.linear_2": "time_embedder.mlp.2",
    "action_proj_in": "action2llm",
    "action_proj_out": "llm2action",
    "audio_proj_in": "sound2llm",
    "audio_proj_out": "llm2sound",
    "audio_modality_embed": "sound_modality_embed",
}
"""diffusers' fragments to native ones (docs/model.md, section 1.6)."""


def native_name(name: str) -> str:
    top_level = not name.startswith(("layers.", "embed_tokens", "norm", "lm_head"))
    for ours in sorted(NATIVE, key=len, reverse=True):
        if ours.startswith("self_attn") and f".{ours}." in name:
            name = name.replace(f".{ours}.", f".{NATIVE[ours]}.")
            break
        if top_level and (name == ours or name.startswith(f"{ours}.")):
            name = NATIVE[ours] + name[len(ours) :]
            break
    return f"net.{name}" if top_level else f"net.language_model.model.{name}"


def rewritten(folder, change, **options):
    """A copy of the tiny checkpoint with its transformer's tensors changed."""
    shutil.copytree(TINY, folder)
    files = open_tensors(open_model(TINY_MODEL).repository, "transformer")
    tensors = change({name: tensor.clone() for name, tensor in files.read(files.tensors)})
    for file in (folder / "transformer").glob("*.safetensors"):
        file.unlink()
    save_tensors(folder / "transformer", tensors, **options)
    return folder


def test_native_names_load_to_the_same_result(tmp_path):
    def rename(tensors):
        tensors = {native_name(name): tensor for name, tensor in tensors.items()}
        return tensors | {"model.visual.patch_embed.weight": torch.zeros(2)}  # the vision encoder of a full export

    folder = rewritten(tmp_path / "native", rename, max_shard_bytes=200_000)
    model = open_model(str(folder))
    assert any("q_proj_moe_gen" in name for name in Weights(model).transformer.tensors)
    running = Engine(model, peer.reference_plan(model.config, "bfloat16"))
    usual = engine()
    assert torch.equal(finish(running, running.start(request())), finish(usual, usual.start(request())))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {k: v for k, v in t.items() if k != "audio_modality_embed"}, "missing: audio_modality_embed"),
        (lambda t: t | {"layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}, "not part of this model: layers.7.mlp.up_"),
        (lambda t: t | {"proj_in.weight": torch.zeros(64, 96)}, r"proj_in.weight is \[64, 96\] instead of \[64, 192\]"),
        (lambda t: t | {"proj_in.bias": torch.zeros(64, dtype=torch.int8)}, "proj_in.bias is torch.int8"),
        (
            lambda t: t | {"proj_in.weight": t["proj_in.weight"].to(torch.float8_e4m3fn)},
            "proj_in.weight of float8_e4m3fn",
        ),
    ],
)
def test_wrong_tensors_are_named_before_any_is_read(tmp_path, monkeypatch, change, message):
    from cosmos3_core.checkpoint.tensors import TensorFiles

    folder = rewritten(tmp_path / "wrong", change)
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(InputError, match=message):
        Weights(open_model(str(folder)))


@pytest.mark.parametrize("name", ["lm_head.weight", "norm.weight"])
def test_what_making_media_does_not_use_may_be_absent(tmp_path, name):
    folder = rewritten(tmp_path / "slim", lambda tensors: {k: v for k, v in tensors.items() if k != name})
    Weights(open_model(str(folder)))


def test_weights_are_split_and_fused_where_they_belong():
    """q, k and v are one matrix, in this order; the media tower gets `add_*`, the text tower `to_*`."""
    module = peer.diffusers_transformer(peer.TINY)
    ours = peer.towers(module)
    attention = module.layers[0].self_attn
    und = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
    gen = torch.cat([attention.add_q_proj.weight, attention.add_k_proj.weight, attention.add_v_proj.weight])
    assert torch.equal(ours.understanding.layers[0].tensors()["project.qkv.weight"], und)
    assert torch.equal(ours.generation.layers[0].tensors()["project.qkv.weight"], gen)


def test_the_timestep_mlp_stays_fp32():
    running = engine()
    tower = Weights(running.model).generation(running.target)
    assert (
        tower.time[0].weight_OI.dtype == torch.float32
        and tower.layers[0].tensors()["project.qkv.weight"].dtype == torch.bfloat16
    )


MEMORY_PROBE = """
import sys, torch
import peer
from cosmos3_core.checkpoint.model import Weights, open_model

def high_water():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

model = open_model(sys.argv[1])
plan = peer.reference_plan(model.config)
weights = Weights(model)
before = high_water()
tower = weights.generation(plan.target(model.config))
kept = 0
for layer in tower.layers:
    kept += sum(tensor.nbytes for tensor in layer.tensors().values())
print(high_water() - before, kept)
"""


def test_loading_peaks_at_what_is_kept_plus_one_shard(tmp_path):
    """600 MB of fp32 weights in eight shards, loaded to bf16, in a process of its own."""
    config = peer.TINY | {
        "hidden_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 4096,
        "rope_axes_dim": [24, 20, 20],
    }
    shutil.copytree(TINY, tmp_path / "big")
    written = json.loads((tmp_path / "big/transformer/config.json").read_text()) | config
    written.pop("rope_scaling")
    (tmp_path / "big/transformer/config.json").write_text(json.dumps(written))
    for file in (tmp_path / "big/transformer").glob("*.safetensors"):
        file.unlink()
    from cosmos3_core.model.config import TransformerConfig

    shapes = layout.shapes(TransformerConfig.from_json(written, "test"))
    shard = 100_000_000
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    save_tensors(tmp_path / "big/transformer", tensors, max_shard_bytes=shard)
    total = sum(t.nbytes for t in tensors.values())
    assert total > 5 * shard and len(list((tmp_path / "big/transformer").glob("*.safetensors"))) > 5
    del tensors
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(tmp_path / "big")],
        cwd=TINY.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    grown, kept = map(int, result.stdout.split())
    slack = 30_000_000  # the allocator, small tensors, the pages of imported code
    assert kept > 150_000_000
    assert grown <= kept + shard + slack


def test_items_of_a_request_have_the_models_channels():
    (item,) = items_of(request(size="112x80", frames=9), open_model(TINY_MODEL).config)
    assert item.shape == (48, 3, 5, 7)
