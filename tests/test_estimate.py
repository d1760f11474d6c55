"""What a run takes, counted from configs: against the specification's tables, the modules themselves, and real runs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from alive import Alive

from cosmos3_core import reference
from cosmos3_core.cli.plan import describe
from cosmos3_core.contract import Ceiling, Ops
from cosmos3_core.engine.repository import PUBLISHED, TINY
from cosmos3_core.model import vae as vae_module
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
from cosmos3_core.model.weights import generation_slots, understanding_slots
from cosmos3_core.plan import estimate
from cosmos3_core.plan.estimate import GIB, Estimate, Job
from cosmos3_core.reference import ops as eager

TINY_CONFIG = TransformerConfig.from_json(json.loads((TINY / "transformer/config.json").read_text()), "tiny")
TINY_VAE = json.loads((TINY / "vae/config.json").read_text())
OPS = Ops(**{name: getattr(eager, name) for name in ("attention", "pack_linear", "rms_norm", "norm_rope", "gate")})


def config_of(name: str) -> TransformerConfig:
    return describe(name).config


VAE = describe("nano").vae


def job(width: int, height: int, frames: int, steps: int = 35, **values) -> Job:
    texts = {"guided_steps": steps, "prompt_tokens": 512, "negative_tokens": 512}
    return Job(width=width, height=height, frames=frames, steps=steps, **texts | values)


def whole(name: str, *numbers, **values) -> Estimate:
    return Estimate(config_of(name), VAE, job(*numbers, **values), "bfloat16")


# --- the tables of the specification ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "embedding", "timestep", "action", "heads", "total"),
    [
        ("nano", 6.946, 0.622, 17.8, 16.9, 2.1, 15.174),
        ("super", 31.206, 0.778, 27.5, 21.1, 2.7, 64.020),
        ("edge", 1.409, 0.268, 4.7, 8.5, 0.8, 3.370),
    ],
)
def test_weights_are_those_of_the_table(name, layers, embedding, timestep, action, heads, total):
    config = config_of(name)
    found = estimate.weights(config, VAE, "bfloat16")
    assert round(found["understanding"] / 2e9, 3) == round(found["generation"] / 2e9, 3) == layers
    assert round(found["embedding"] / 2e9, 3) == embedding
    assert round(found["timestep"] / 4e6, 1) == timestep
    assert round(found["action"] / 2e6, 1) == action
    # The table counts the text's unused final norm and the action's modality vector with these.
    assert round((found["heads"] / 2 + 2 * config.hidden_size) / 1e6, 1) == heads
    transformer = sum(found[part] / 2 for part in ("understanding", "generation", "embedding", "heads", "action"))
    unused = config.vocab_size * config.hidden_size + config.hidden_size
    assert round((transformer + found["timestep"] / 4 + unused) / 1e9, 3) == total
    assert (found["vae_encoder"], found["vae_decoder"]) == (2 * 149_637_088, 2 * 555_051_580)
    twice = estimate.weights(config, VAE, "float32")
    assert twice["generation"] == 2 * found["generation"] and twice["timestep"] == found["timestep"]


@pytest.mark.parametrize(("name", "a_token"), [("nano", 147_456), ("super", 262_144), ("edge", 114_688)])
def test_text_keys_and_values_are_those_of_the_table(name, a_token):
    assert estimate.und_kv_bytes(config_of(name), 1, "bfloat16") == a_token


@pytest.mark.parametrize(
    ("name", "size", "linear", "attention", "prefill", "petaflop"),
    [
        ("nano", (1024, 1024, 1, 50), 14.2, 0.9, 7.2, 1.53),
        ("super", (1024, 1024, 1, 50), 63.9, 3.3, 32.2, 6.79),
        ("edge", (1024, 1024, 1, 50), 2.9, 0.4, 1.5, 0.33),
        ("nano", (1280, 720, 189), 613, 1164, 7.2, 124.4),
        ("super", (1280, 720, 189), 2756, 4137, 32.2, 482.6),
        ("nano", (832, 480, 189), 260, 212, 7.2, 33.1),
        ("super", (832, 480, 189), 1168, 755, 32.2, 134.7),
        ("edge", (832, 480, 121), 34.1, 34.9, 1.5, 4.84),
        ("nano", (320, 192, 189), 40.0, 5.8, 7.2, 3.22),
        ("super", (320, 192, 189), 179.7, 20.5, 32.2, 14.1),
        ("nano", (1280, 720, 93), 307, 294, 7.2, 42.1),
    ],
)
def test_arithmetic_is_that_of_the_worked_table(name, size, linear, attention, prefill, petaflop):
    counted = whole(name, *size)
    one = estimate.forward_work(counted.config, counted.job.tokens(2), 512, "bfloat16")
    text = estimate.forward_work(counted.config, 512, 0, "bfloat16", causal=True)
    found = [one[0].flops / 1e12, one[1].flops / 1e12, sum(work.flops for work in text) / 1e12]
    found.append(sum(work.flops for part in ("read prompts", "steps") for work in counted.parts[part]) / 1e15)
    for value, expected in zip(found, (linear, attention, prefill, petaflop), strict=True):
        digits = len(str(expected).partition(".")[2]) if isinstance(expected, float) else 0
        assert value == pytest.approx(expected, rel=0.01, abs=0.5 * 10**-digits)


def test_a_guidance_interval_saves_its_steps():
    full, part = (whole("nano", 1024, 1024, 1, 50, guided_steps=guided) for guided in (50, 41))
    flops = [sum(work.flops for work in counted.parts["steps"]) for counted in (full, part)]
    assert flops[1] / flops[0] == pytest.approx(91 / 100)


@pytest.mark.parametrize(
    ("latent", "decode", "encode"),
    [
        ((45, 80), (21.0, 67.9), (4.3, 12.9)),
        ((30, 52), (9.1, 29.4), (1.9, 5.6)),
        ((12, 20), (1.40, 4.52), (0.29, 0.86)),
    ],
)
def test_vae_arithmetic_is_that_of_the_table(latent, decode, encode):
    area = prod(latent)
    for count, (first, later) in ((estimate._decode, decode), (estimate._encode, encode)):
        assert count(VAE, area, 2, first=True).flops / 1e12 == pytest.approx(first, abs=0.05)
        assert count(VAE, area, 2).flops / 1e12 == pytest.approx(later, abs=0.05)
    height, width = (16 * side for side in latent)
    clip = {(45, 80): (3210, 611), (30, 52): (1391, 264), (12, 20): (214, 41)}[latent]
    both = job(width, height, 189, input_frames=189)
    assert estimate.decode_work(VAE, both, "bfloat16").flops / 1e12 == pytest.approx(clip[0], rel=0.01)
    assert estimate.encode_work(VAE, both, "bfloat16").flops / 1e12 == pytest.approx(clip[1], rel=0.02)


@pytest.mark.parametrize(
    ("size", "tokens"), [((1024, 1024, 1), 1024), ((1280, 720, 189), 44_160), ((832, 480, 121), 12_090)]
)
def test_tokens_are_those_of_the_table(size, tokens):
    assert job(*size).tokens(2) == tokens


# --- the modules themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "relu2", "qk_norm_for_text": False, "sound_gen": False}])
def test_weights_are_those_of_the_slots(changes):
    config = replace(TINY_CONFIG, use_und_k_norm_for_gen=bool(changes), **changes)
    found = estimate.weights(config, TINY_VAE, "bfloat16")
    counted = {
        tower: sum((4 if slot.fp32 else 2) * prod(shape) for slot in slots(config) for shape in slot.tensors().values())
        for tower, slots in (("text", understanding_slots), ("media", generation_slots))
    }
    assert counted["text"] == found["understanding"] + found["embedding"]
    assert counted["media"] == sum(found[part] for part in ("generation", "heads", "action", "timestep"))
    shapes = vae_module.VideoVAE.names(TINY_VAE, "tiny")
    decoder = {name for name in shapes if name.startswith(("decoder.", "post_quant_conv."))}
    assert found["vae_decoder"] == 2 * sum(prod(shapes[name]) for name in decoder)
    assert found["vae_encoder"] == 2 * sum(prod(shape) for name, shape in shapes.items() if name not in decoder)


def test_a_ceiling_is_the_devices_own_before_its_architectures():
    one, other = (Ceiling(tflops={"bfloat16": n}, bandwidth=1e12, source="test") for n in (1.0, 2.0))
    backend = replace(reference.BACKEND, ceilings={"X90": one, "x1": other})
    device = reference.BACKEND.probe()
    assert estimate.ceiling_of(backend, replace(device, name="ACME X90 Ti", arch="x1")) is one
    assert estimate.ceiling_of(backend, replace(device, name="ACME X60", arch="x1")) is other
    assert estimate.ceiling_of(backend, replace(device, name="ACME X60", arch="x2")) is None


@pytest.mark.parametrize("repository", PUBLISHED)
def test_every_published_repository_is_in_the_table(repository):
    described = describe(repository)
    assert described.facts.name == repository and described.config.num_hidden_layers in (36, 64, 28)
    assert (described.facts.variant == "distilled") == repository.endswith("4Step")


def tower(kind: type, slots, config: TransformerConfig, dtype: torch.dtype):
    """A tower without memory behind it: every op gives a tensor of the right size, and none is computed."""
    weights = {}
    for slot in slots(config):
        kept = torch.float32 if slot.fp32 else dtype
        weight = torch.empty(slot.shape, dtype=kept, device="meta")
        bias = torch.empty(slot.shape[:1], dtype=kept, device="meta") if slot.bias else None
        weights[slot.key] = OPS.pack_linear(weight, bias) if slot.linear else weight
    return kind(config, OPS, weights)


@pytest.mark.parametrize("name", ["nano", "super", "edge"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_what_the_towers_allocate(name, dtype):
    """At the published widths, within 3 % for steps and 15 % for a prompt; two layers are as good as 64."""
    config, kind = replace(config_of(name), num_hidden_layers=2), getattr(torch, dtype)
    reader = tower(UnderstandingTower, understanding_slots, config, kind)
    with torch.inference_mode(), Alive() as alive:
        text = reader.prefill(list(range(512)))
    kept = estimate.und_kv_bytes(config, 512, dtype)
    assert sum(k.nbytes + v.nbytes for k, v in text.segments) == kept
    assert alive.peak == pytest.approx(estimate.layer_bytes(config, 512, 0, kind.itemsize) + kept, rel=0.15)
    maker = tower(GenerationTower, generation_slots, config, kind)
    for size, branches in (((1280, 720, 93), 1), ((1024, 1024, 1), 2)):
        item = Item("vision", (48, *job(*size).latent))
        packing = Packing((item,), config, "meta")
        passed = maker.branches(packing, [text] * branches)
        with torch.inference_mode(), Alive() as alive:
            maker.forward(passed, [torch.empty(item.shape, device="meta")], 500.0)
        rows = branches * packing.length
        expected = estimate.layer_bytes(config, rows, 512, kind.itemsize, branches)
        assert alive.peak == pytest.approx(expected, rel=0.03)


def vae_of(config: dict, device: str, dtype: str) -> vae_module.VideoVAE:
    from diffusers import AutoencoderKLWan

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.device(device):
        module = AutoencoderKLWan.from_config(TINY_VAE | config)
    return vae_module.VideoVAE(module.to(getattr(torch, dtype)).eval().requires_grad_(False))


def to_bytes_there(pixels: torch.Tensor) -> torch.Tensor:
    scaled = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()


CLIPS = [(1280, 720, 9, None), (832, 480, 9, None), (1024, 1024, 1, None), (1280, 720, 9, 512), (1280, 720, 45, 512)]


@pytest.mark.parametrize(("width", "height", "frames", "tile"), CLIPS)
def test_decoding_takes_what_is_estimated(monkeypatch, width, height, frames, tile):
    """The published VAE at real sizes, in bf16, within 12 %."""
    monkeypatch.setattr(vae_module, "_to_bytes", to_bytes_there)  # no copy to a host from what has no memory
    asked = job(width, height, frames, tile=tile)
    vae, latents = vae_of(VAE, "meta", "bfloat16"), torch.empty(48, *asked.latent, device="meta")
    with torch.inference_mode(), Alive() as alive:
        for group in vae.decode(latents, tile):
            del group
    assert alive.peak == pytest.approx(estimate.decode_bytes(VAE, asked, "bfloat16"), rel=0.12)


@pytest.mark.parametrize("frames", [1, 9])
def test_encoding_takes_what_is_estimated(frames):
    asked = job(1280, 720, frames, input_frames=frames)
    vae, pixels = vae_of(VAE, "meta", "bfloat16"), torch.empty(3, frames, 720, 1280, device="meta")
    with torch.inference_mode(), Alive() as alive:
        vae.encode(pixels)
    assert alive.peak == pytest.approx(estimate.encode_bytes(VAE, asked, "bfloat16"), rel=0.1)


@pytest.mark.parametrize(("size", "tile"), [((64, 64, 5), None), ((128, 128, 9), None), ((128, 96, 5), 64)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_decoding_on_the_host_takes_what_is_estimated(size, tile, dtype):
    """The tiny VAE with real tensors, within 20 %."""
    asked, vae = job(*size, tile=tile), vae_of({}, "cpu", dtype)
    latents = torch.randn(48, *asked.latent)
    with torch.inference_mode(), Alive() as alive:
        for group in vae.decode(latents, tile):
            del group
    assert alive.peak == pytest.approx(estimate.decode_bytes(TINY_VAE, asked, dtype), rel=0.2)


GROWTH = """
import sys
from cosmos3_core import cli
from cosmos3_core.engine.manifest import peak_host_memory
def run(size, name):
    options = "--model tiny --backend reference --steps 2 --frames 9".split()
    sys.argv = ["cosmos3", "run", "a cube", *options, "--size", size, "-o", name]
    cli.main()
    return peak_host_memory()
small = run("64x64", "small.mp4")
print(run("512x512", "large.mp4") - small)
"""


def test_a_real_run_grows_by_what_is_estimated(tmp_path):
    """Within a factor of 3: the workspaces of the host's convolutions and the video encoder are no tensors."""
    done = subprocess.run([sys.executable, "-c", GROWTH], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted = Estimate(TINY_CONFIG, TINY_VAE, job(512, 512, 9, 2), "bfloat16")
    tensors = max(stage.weights + stage.latents + stage.activations for stage in counted.stages)
    assert tensors / 1.5 < int(done.stdout.split()[-1]) < 3 * tensors


# --- stages, time, and what would fit --------------------------------------------------------------------------------


def test_stages_follow_each_other_or_stay():
    asked = job(1280, 720, 189, input_frames=1)
    counted = Estimate(config_of("nano"), VAE, asked, "bfloat16")
    stages = {stage.name: stage for stage in counted.stages}
    assert list(stages) == ["read prompts", "encode input", "steps", "decode"]
    parts = estimate.weights(counted.config, VAE, "bfloat16")
    assert stages["read prompts"].weights == parts["understanding"] + parts["embedding"]
    assert round(stages["steps"].weights / 1e9, 1) == 14.0  # spec 3.3: resident minimum while denoising
    assert stages["steps"].text_kv == 2 * 512 * 147_456
    resident = replace(counted, placement="resident").stages
    assert {stage.weights for stage in resident} == {sum(parts.values())}


def test_guidance_costs_a_second_prompt_and_in_small_pictures_a_wider_pass():
    one, two = (whole("nano", 1024, 1024, 1, guided_steps=guided).stages for guided in (0, 35))
    assert two[1].text_kv == 2 * one[1].text_kv and two[1].activations > 1.8 * one[1].activations
    one, two = (whole("nano", 1280, 720, 189, guided_steps=guided).stages for guided in (0, 35))
    assert two[1].activations == one[1].activations


def test_time_follows_from_the_ceiling_and_is_unknown_without_one():
    counted = whole("nano", 832, 480, 93)
    ceiling = Ceiling(tflops={"bfloat16": 989.0}, bandwidth=3.35e12, source="data sheet")
    seconds = counted.seconds(ceiling)
    assert set(seconds) == {"read prompts", "steps", "decode", "step", "total"}
    # Measured on one H100 with the eager kernels: 3.336 s for 4 steps (benchmarks/results).
    assert 4 * seconds["step"] == pytest.approx(3.336, rel=0.15)
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in ("read prompts", "steps", "decode")))
    slow = replace(ceiling, bandwidth=1e9)
    assert counted.seconds(slow)["step"] > 10 * seconds["step"]
    assert counted.seconds(None) is None
    assert replace(counted, dtype="float32").seconds(ceiling) is None


@pytest.mark.parametrize(
    ("name", "gib", "wanted"),
    [
        ("nano", 20, {"--size", "--frames"}),  # the steps are the peak, and no tile helps there
        ("edge", 12, {"--tile", "--size"}),  # the decode is, and it holds one frame whatever the length
    ],
)
def test_the_nearest_changes_fit_and_are_nearest(name, gib, wanted):
    counted = whole(name, 1280, 720, 189)
    assert counted.peak > gib * GIB
    changes = estimate.nearest(counted, gib * GIB)
    assert {change.options.split()[0] for change in changes} == wanted
    for change in changes:
        assert len(change.options.split()) == 2 and change.estimate.peak <= gib * GIB
        if change.options.startswith("--frames"):
            longer = replace(counted.job, frames=change.estimate.job.frames + 4)
            assert replace(counted, job=longer).peak > gib * GIB


def test_a_change_comes_with_a_tile_where_it_needs_one():
    counted = whole("edge", 1280, 720, 189)
    options = {change.options for gib in range(5, 15) for change in estimate.nearest(counted, gib * GIB)}
    assert any("--frames" in option and "--tile" in option for option in options), options


def test_where_the_weights_alone_are_too_much_nothing_is_proposed():
    assert estimate.nearest(whole("super", 1280, 720, 189), 24 * GIB) == []


def test_a_proposal_is_a_request_that_runs():
    """A tile smaller than the picture, a length of 4k+1, a size that exists."""
    for gib in range(5, 15):
        for change in estimate.nearest(whole("edge", 1280, 720, 189, tile=768), gib * GIB):
            proposed = change.estimate.job
            assert proposed.tile is None or proposed.tile < max(proposed.width, proposed.height)
            assert proposed.frames % 4 == 1 and proposed.width % 16 == proposed.height % 16 == 0


def test_counting_needs_no_torch():
    code = "import sys; import cosmos3_core.plan.estimate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_estimate_covers_what_was_measured_on_an_h100():
    """Nano's step and decode with random weights: the peak covers what the allocator reserved, by no more than a third;
    time is within a third."""
    result = json.loads((Path(__file__).parents[1] / "benchmarks/results/memory-nano-h100.json").read_text())
    described, ceiling = describe("nano"), Ceiling(tflops={"bfloat16": 799}, bandwidth=3.35e12, source="H100")
    for name, measured in result["jobs"].items():
        width, height, frames = map(int, name.split("x"))
        numbers = {"width": width, "height": height, "frames": frames, "steps": 35, "guided_steps": 35}
        job = Job(**numbers, prompt_tokens=512, negative_tokens=3500)
        estimated = Estimate(described.config, described.vae, job, "bfloat16")
        stages, times = {stage.name: stage for stage in estimated.stages}, estimated.seconds(ceiling)
        for stage in ("steps", "decode"):
            assert 1 <= stages[stage].peak / measured[stage]["reserved"] < 4 / 3
        assert 1 <= times["step"] / measured["steps"]["seconds"] < 4 / 3
        assert 1 <= times["decode"] / measured["decode"]["seconds"] < 4 / 3
