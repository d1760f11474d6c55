"""The stepper and the loader under the command line: states, residency, names, memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import peer
import pytest
import torch

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.repository import TINY
from cosmos3_core.checkpoint.tensors import open_tensors, save_tensors
from cosmos3_core.contract import InputError, Tuning
from cosmos3_core.engine.engine import Engine, items_of
from cosmos3_core.model import weights as layout
from cosmos3_core.sampling.noise import generator, initial_noise
from cosmos3_core.scenarios import request as requests


def engine(resident: bool = False, **options) -> Engine:
    model = open_model("tiny")
    return Engine(model, peer.reference_plan(model.config, "bfloat16"), resident=resident, **options)


def request(**given):
    values = {"task": "t2v", "prompt": "a cup", "frames": 5, "size": "64x64", "steps": 5, "seed": 1} | given
    return requests.resolve(values, "reference", open_model("tiny").facts, int)[0]


def finish(running: Engine, state) -> torch.Tensor:
    while not state.done:
        running.step(state)
    return state.x


@pytest.mark.parametrize("schedule", ["native", "karras"])
def test_a_state_saved_at_any_step_continues_bit_equal(schedule):
    wanted = request(schedule=schedule)
    running = engine(resident=True)
    expected = finish(running, running.start(wanted))
    for stop in range(6):
        state = running.start(wanted)
        for _ in range(stop):
            running.step(state)
        tensors, numbers = state.to_tensors()
        numbers = json.loads(json.dumps(numbers))  # as it is stored
        del state
        other = engine()
        resumed = other.start(wanted)
        resumed.restore({k: v.clone() for k, v in tensors.items()}, numbers)
        assert resumed.index == stop
        assert torch.equal(finish(other, resumed), expected)


def test_two_generations_step_in_turn_without_touching_each_other():
    running = engine(resident=True)
    wanted = [request(seed=1), request(seed=2, steps=3, guidance=1.0)]
    expected = [finish(running, running.start(r)) for r in wanted]
    states = [running.start(r) for r in wanted]
    while not all(state.done for state in states):
        for state in states:
            if not state.done:
                running.step(state)
    for state, alone in zip(states, expected, strict=True):
        assert torch.equal(state.x, alone)


def test_generations_in_turn_share_one_tower():
    """Of an engine that drops components, too: the first to finish does not take it from the other."""
    stages: list[str] = []
    running = engine(on_stage=stages.append)
    states = [running.start(request(seed=1, steps=1)), running.start(request(seed=2, guidance_interval=[0, 900]))]
    for state in states:
        running.step(state)
    list(running.finish(states[0]))
    alone = engine()
    expected = finish(alone, alone.start(states[1].request))
    assert torch.equal(finish(running, states[1]), expected)
    assert stages.count("load generation") == 1


@pytest.mark.parametrize("schedule", ["native", "distilled"])
def test_the_noise_of_a_seed_given_as_noise_changes_nothing(schedule):
    """Also where the sampler draws from the stream that the noise came from."""
    model = open_model("tiny")
    model = replace(model, scheduler=model.scheduler | {"stochastic_sampling": True}, distilled_sigmas=(1.0, 0.5))
    running = Engine(model, peer.reference_plan(model.config, "bfloat16"), resident=True)
    wanted = replace(request(steps=2), schedule=schedule)
    noise = initial_noise(items_of(wanted, model), generator(wanted.seed))
    drawn, given = running.start(wanted), running.start(wanted, running.read_inputs(wanted, noise))
    assert torch.equal(finish(running, drawn), finish(running, given))


def test_progress_is_between_steps_and_stages_are_named():
    stages = []
    running = engine(on_stage=stages.append)
    state = running.start(request())
    seen = [state.index]
    while not state.done:
        seen.append(running.step(state).index)
    frames = torch.cat(list(running.finish(state)))
    assert seen == [0, 1, 2, 3, 4, 5] and frames.shape == (5, 64, 64, 3) and frames.dtype == torch.uint8
    assert stages == [
        "check weights",
        "load understanding",
        "read prompts",
        "load generation",
        "load vae decoder",
        "decode",
    ]


def test_prompts_are_read_once_and_guidance_follows_its_interval(monkeypatch):
    from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower

    reads, passes = [], []
    prefill, forward = UnderstandingTower.prefill, GenerationTower.forward
    monkeypatch.setattr(UnderstandingTower, "prefill", lambda self, ids: reads.append(len(ids)) or prefill(self, ids))

    def spy(self, branches, latents, timestep):
        passes.append((timestep, len(branches.texts)))
        return forward(self, branches, latents, timestep)

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
    two.plan = replace(two.plan, backend=backend)
    assert (one.execution(request()).guidance, two.execution(request()).guidance) == ("one pass", "two passes")
    apart = finish(two, two.start(request()))
    assert peer.relative_error(together, apart) < 0.05  # bf16 at this size; exact in fp32 (test_parity)


def test_towers_leave_once_they_are_done():
    running = engine()
    state = running.start(request())
    assert set(running._loaded) == {"weights", "generation"}
    finish(running, state)
    frames = running.finish(state)
    next(frames)
    assert set(running._loaded) == {"weights", "vae decoder"}
    frames.close()  # before its end, and with it the decoder
    assert set(running._loaded) == {"weights"}
    resident = engine(resident=True)
    list(resident.finish(resident.start(request(steps=1))))
    assert set(resident._loaded) == {"weights", "understanding", "generation", "vae decoder"}


@pytest.mark.parametrize("resident", [False, True], ids=["dropped", "resident"])
def test_idle_memory_is_given_back_between_parts(monkeypatch, resident):
    """After the prompts, the steps and the decode, if there is much; the components that stay are not idle."""
    given, idle = [], 3 << 30
    fakes = {
        "is_available": lambda: True,
        "current_accelerator": lambda: SimpleNamespace(type="cpu"),
        "memory_reserved": lambda: idle + (1 << 30),
        "memory_allocated": lambda: 1 << 30,
        "empty_cache": lambda: given.append(set(running._loaded)),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.accelerator, name, fake)
    running = engine(resident=resident)

    def run():
        state = running.start(request(steps=1))
        finish(running, state)
        list(running.finish(state))

    run()
    stays = {"weights", "understanding", "generation", "vae decoder"} if resident else {"weights"}
    assert len(given) == 3 and given[-1] == stays
    idle = 1 << 20
    run()
    assert len(given) == 3


def test_a_resident_engine_runs_text_then_picture_tasks(tmp_path):
    """The VAE's encoder joins the decoder, which stays from the first run, when the second has a picture to encode."""
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(tmp_path / "g.png")
    running = engine(resident=True)
    list(running.finish(running.start(request(steps=1))))
    state = running.start(request(task="i2v", image=str(tmp_path / "g.png"), steps=1))
    finish(running, state)
    clean = state.latents()[0][:, 0]
    assert torch.equal(clean, running._loaded["vae encoder"].encode(running.read_inputs(state.request).pixels)[:, 0])


def test_noise_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"48, 1, 2, 2.*48, 2, 4, 4"):
        engine().read_inputs(request(), [torch.zeros(48, 1, 2, 2)])
    with pytest.raises(InputError, match="finite"):
        engine().read_inputs(request(), [torch.full((48, 2, 4, 4), float("nan"))])


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
"""Spec 1.6, diffusers' fragments to native ones."""


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
    files = open_tensors(open_model("tiny").repository, "transformer")
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
        (lambda t: t | {"proj_in.weight": t["proj_in.weight"].to(torch.float8_e4m3fn)}, "torch.float8_e4m3fn"),
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
    assert torch.equal(ours.understanding.layers[0].qkv.weight_OI, und)
    assert torch.equal(ours.generation.layers[0].qkv.weight_OI, gen)


def test_the_timestep_mlp_stays_fp32():
    running = engine()
    tower = Weights(running.model).generation(running.target)
    assert tower.time[0].weight_OI.dtype == torch.float32 and tower.layers[0].qkv.weight_OI.dtype == torch.bfloat16


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
tower = weights.generation(plan.target())
kept = 0
for layer in tower.layers:
    kept += sum(linear.weight_OI.nbytes for linear in (layer.qkv, layer.out, layer.up, layer.down))
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

    shapes: dict[str, tuple[int, ...]] = {}
    parsed = TransformerConfig.from_json(written, "test")
    for slot in layout.understanding_slots(parsed) + layout.generation_slots(parsed):
        shapes |= slot.tensors()
    shard = 100_000_000
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    save_tensors(tmp_path / "big/transformer", tensors, max_shard_bytes=shard)
    total = sum(t.nbytes for t in tensors.values())
    assert total > 5 * shard and len(list((tmp_path / "big/transformer").glob("*.safetensors"))) > 5
    del tensors
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(tmp_path / "big")],
        cwd=TINY.parents[2] / "tests",
        capture_output=True,
        text=True,
        check=True,
    )
    grown, kept = map(int, result.stdout.split())
    slack = 30_000_000  # the allocator, small tensors, the pages of imported code
    assert kept > 150_000_000
    assert grown <= kept + shard + slack


def test_items_of_a_request_have_the_models_channels():
    (item,) = items_of(request(size="112x80", frames=9), open_model("tiny"))
    assert item.shape == (48, 3, 5, 7)
