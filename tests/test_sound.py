"""The sound codec and whole runs with sound against diffusers 0.42.1, in fp32 on the same random weights
(docs/model.md, sections 4.4 and 5.5), and what of a checkpoint's codec is refused."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from functools import cache

import numpy as np
import peer
import pytest
import torch
from diffusers import Cosmos3AVAEAudioTokenizer
from peer import relative_error
from safetensors.torch import load_file, save_file
from test_parity import _pil, clip, engine_pixels, engine_prompts
from tiny_model import TINY, TINY_MODEL
from torch import Tensor

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.contract import InputError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.sound import SoundCodec
from cosmos3_core.model.sound_config import SoundConfig
from cosmos3_core.plan.cost import sound as cost
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.scenarios.sound import SoundSize, sound_size

# The oracle's: a stride of 5 has an output padding, and none of its numbers is the published codec's.
OTHER = {
    "sampling_rate": 1000,
    "vocoder_input_dim": 8,
    "dec_dim": 8,
    "dec_c_mults": [1, 2, 2],
    "dec_strides": [2, 5, 4],
    "enc_dim": 8,
    "enc_c_mults": [1, 2],
    "enc_strides": [2, 5],
    "enc_num_blocks": 1,
    "enc_n_fft": 16,
    "enc_hop_length": 4,
    "enc_latent_dim": 16,
}
TINY_CONFIG = json.loads((TINY / "sound_tokenizer/config.json").read_text())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_codec(config: dict, seed: int = 0) -> Cosmos3AVAEAudioTokenizer:
    """diffusers' module, every parameter random at a scale that keeps a signal's size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = Cosmos3AVAEAudioTokenizer.from_config(config).eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=stream)
        if name.endswith("weight_g") or "norm" in name:
            parameter.copy_((0.3 if "conv2" in name else 1.0) * (1 + 0.2 * drawn))
        else:
            fan_in = math.prod(parameter.shape[1:])
            parameter.copy_(drawn * (fan_in**-0.5 if parameter.ndim == 3 and parameter.shape[0] > 1 else 0.2))
    return module


def ours_of(module: Cosmos3AVAEAudioTokenizer, dtype: torch.dtype = torch.float32) -> SoundCodec:
    config = SoundConfig.from_json(dict(module.config), "a peer")
    return SoundCodec.load(config, module.state_dict().items(), device="cpu", dtype=dtype)


@pytest.fixture(scope="module", params=["tiny", "other", "two blocks a stage"])
def pair(request) -> tuple[SoundCodec, Cosmos3AVAEAudioTokenizer]:
    """(ours, diffusers') on the same weights; the tiny one read from its file by our loader."""
    if request.param == "tiny":
        weights = Weights(open_model(TINY_MODEL))
        target = peer.reference_plan(weights.model.config).target(weights.model.config)
        ours = weights.sound(target, "decoder")
        ours.encoder = weights.sound(target, "encoder").encoder
        theirs = random_codec(TINY_CONFIG)
        tensors = load_file(TINY / "sound_tokenizer/diffusion_pytorch_model.safetensors")
        theirs.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
        return ours, theirs
    module = random_codec(OTHER | ({"enc_num_blocks": 2} if request.param != "other" else {}), seed=3)
    return ours_of(module), module


@pytest.mark.parametrize("frames", [1, 2, 10])
@torch.inference_mode()
def test_decode_is_diffusers_decode(pair, frames):
    ours, theirs = pair
    latents = noise(8, frames, seed=frames)
    found = ours.decode(latents)
    assert found.shape == (2, frames * ours.config.hop) and found.dtype == torch.float32
    assert relative_error(found, theirs.decode(latents)) <= 1e-5
    assert found.std() > 0.01, "silence would be equal, too"


@pytest.mark.parametrize("samples", [1.0, 2.0, 7.3])
@torch.inference_mode()
def test_encode_is_diffusers_mean(pair, samples):
    ours, theirs = pair
    waveform = noise(2, int(samples * ours.config.hop)).mul(0.3).clamp(-1, 1)
    found = ours.encode(waveform)
    assert found.shape == (8, math.ceil(samples)) and found.dtype == torch.float32
    assert relative_error(found, theirs.encode(waveform[None]).latent_dist.mode()[0]) <= 1e-5


@torch.inference_mode()
def test_half_precision_loses_no_more_than_diffusers():
    theirs, latents = random_codec(OTHER), noise(8, 10)
    truth, found = theirs.decode(latents), ours_of(theirs, torch.bfloat16).decode(latents)
    rounded = copy.deepcopy(theirs).bfloat16().decode(latents[None].bfloat16())[0]
    assert found.dtype == torch.float32 and relative_error(found, truth) < 1.1 * relative_error(rounded, truth)


@pytest.mark.parametrize("config", [{}, OTHER, TINY_CONFIG], ids=["published", "other", "tiny"])
def test_names_and_bytes_come_from_the_config_alone(config):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        module = Cosmos3AVAEAudioTokenizer.from_config(config)
    ours = SoundConfig.from_json(config, "some/sound_tokenizer")
    assert SoundCodec.names(ours) == {name: tuple(t.shape) for name, t in module.state_dict().items()}
    for half in ("encoder", "decoder"):
        folded = sum(math.prod(s) for n, s in SoundCodec.names(ours, (half,)).items() if n.endswith(("_v", ".weight")))
        kernels = cost.weights(ours, "float32")[f"sound_{half}"] / 4
        assert 0.98 < kernels / folded <= 1  # norms, biases and snakes are no kernels


def test_the_published_decode_is_counted_as_the_spec_has_it():
    assert cost.decoder(SoundConfig(), 197, 2).flops == pytest.approx(5.6e12, rel=0.01)


def test_a_loaded_codec_owns_its_memory():
    module = random_codec(OTHER)
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    config = SoundConfig.from_json(OTHER, "x")
    ours = SoundCodec.load(config, tensors.items(), device="cpu", dtype=torch.float32)
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(ours.decode(noise(8, 3)), ours_of(module).decode(noise(8, 3)))


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """By its codec: the tiny model in fp32 with a transformer of ordinary scale, and its pipeline."""

    @cache
    def made(codec: str):
        folder = peer.save_tiny(tmp_path_factory.mktemp(codec))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if codec == "other":
                shutil.rmtree(folder / "sound_tokenizer")
                random_codec(OTHER).save_pretrained(folder / "sound_tokenizer")
        return folder, peer.pipeline_of(folder)

    return made


SMALL = {"size": "48x80", "prompt": "a cup falls.", "negative_prompt": "hiss", "seed": 5, "sound": True, "steps": 4}
RUNS = {
    "t2vs": {"task": "t2v", "frames": 9},
    "t2vs at 23.976 fps": {"task": "t2v", "frames": 5, "fps": 23.976},
    "i2vs": {"task": "i2v", "frames": 9, "image": "unused: the pixels are handed over"},
    "v2vs": {"task": "v2v", "frames": 9, "video": "unused: the pixels are handed over"},
}


@pytest.mark.parametrize(("name", "codec"), [*((name, "tiny") for name in RUNS), ("t2vs", "other")])
def test_whole_run(repositories, name, codec):
    """Latents of both after all steps, and the waveform, from injected noise."""
    folder, pipeline = repositories(codec)
    model, given = open_model(str(folder)), SMALL | RUNS[name]
    request, _ = requests.resolve(given, "diffusers", model.facts, pick_seed=lambda: 0)
    pixels, task = clip(7, request.height, request.width), request.task
    engine = Engine(model, peer.reference_plan(model.config))
    vision, sound = items_of(request, model.config)
    drawn = [noise(*vision.shape, seed=1), noise(*sound.shape, seed=2)]
    inputs = Inputs(*engine_prompts(engine, request), (engine_pixels(request, pixels), None), drawn)
    state = engine.start(request, inputs)
    clean = state.latents()[0].clone()
    while not state.done:
        engine.step(state)

    media = {"i2v": {"image": _pil(pixels[0])}, "v2v": {"video": [_pil(frame) for frame in pixels]}}.get(task, {})
    shared = {"num_frames": request.frames, "height": request.height, "width": request.width, "fps": request.fps}
    shared |= {"num_inference_steps": request.steps, "guidance_scale": request.guidance, "enable_sound": True}
    # What diffusers is handed as latents it takes as they are: with the clean frames in them already.
    shared |= {"latents": clean[None], "sound_latents": drawn[1], "negative_prompt": given["negative_prompt"]}
    theirs = pipeline(request.prompt, output_type="latent", **media, **shared)
    assert relative_error(state.latents()[0], theirs.video[0]) <= 1e-4
    (waveform,) = engine.finish(state, "sound")
    size = sound_size(request, model.config.sound)
    assert waveform.shape == (2, size.samples) and theirs.sound.shape == (2, size.frames * model.config.sound.hop)
    assert relative_error(waveform, theirs.sound[:, : size.samples]) <= 1e-4
    assert sum(len(group) for group in engine.finish(state)) == request.frames


@torch.inference_mode()
def test_one_forward_with_a_sound_that_is_given():
    """Clean sound frames are attended to, get no timestep and are not predicted."""
    module = peer.diffusers_transformer(peer.TINY)
    ours, tokens = peer.towers(module), [7, 300, 2, 2, 91, 15]
    items = [Item("vision", (48, 3, 4, 5)), Item("sound", (8, 10), clean=tuple(range(10)))]
    packing, latents = Packing(items, ours.config, "cpu"), [noise(*item.shape, seed=i) for i, item in enumerate(items)]
    branches = ours.generation.branches(packing, [ours.understanding.prefill(tokens)])
    vision, sound = ours.generation.forward(branches, latents, 537.0)[0]
    theirs = module(**peer.diffusers_inputs(packing, tokens, latents, 537.0))
    assert relative_error(vision, theirs[0][0].view(vision.shape)) <= 1e-5 and not sound.any()


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "profile", "size"),
    [
        (189, 24, "reference", SoundSize(197, 378_000, 48_000)),
        (189, 24, "sglang", SoundSize(197, 378_240, 48_000)),
        (93, 24, "vllm-omni", SoundSize(97, 186_000, 48_000)),
        (93, 23.976, "reference", SoundSize(97, 186_186, 48_000)),
        (93, 23.976, "vllm-omni", SoundSize(97, 186_186, 48_000)),
        (5, 7, "diffusers", SoundSize(18, 34_285, 48_000)),
        (5, 7, "vllm-omni", SoundSize(18, 34_286, 48_000)),
        (5, 24, "sglang", SoundSize(5, 9_600, 48_000)),
        (121, 30, "reference", SoundSize(101, 193_600, 48_000)),
    ],
)
def test_how_long_the_sound_is(frames, fps, profile, size):
    facts = open_model(TINY_MODEL).facts
    given = {"prompt": "a cup", "sound": True, "frames": frames, "fps": fps}
    request, origin = requests.resolve(given, profile, facts, pick_seed=lambda: 0)
    assert sound_size(request, SoundConfig()) == size
    assert origin["sound_length"] == f"profile {profile}"


# --- what a codec's files may say ------------------------------------------------------------------------------------


ODD = [
    ("model_type", "autoencoder_v3", "model_type is 'autoencoder_v3'"),
    ("stereo", False, "stereo is False"),
    ("dec_final_tanh", True, "dec_final_tanh is True"),
    ("snake_logscale", False, "snake_logscale is False"),
    ("latent_mean", 0.1, "latent_mean is 0.1"),
    ("padding_mode", "reflect", "padding_mode is 'reflect'"),
    ("causal", True, "causal is True"),
    ("enc_use_snake", False, "enc_use_snake is False"),
    ("bottleneck", {"type": "rvq"}, "bottleneck_type is 'rvq'"),
    ("dec_out_channels", 1, "dec_out_channels is 1"),
    ("dec_strides", [2, 4, 5, 6], "dec_c_mults has 5 numbers and dec_strides 4"),
    ("dec_strides", [2, 4, 5, 6, 9], "its decoder makes 2160 samples of a latent frame, and its encoder takes 1920"),
    ("hop_size", 960, "its decoder makes 1920 samples of a latent frame, and its hop_size is 960"),
    ("dec_dim", 0, "dec_dim is 0"),
    ("dec_dim", 1 << 20, "dec_dim is 1048576, and 4096 is the most"),
    ("dec_c_mults", "x", "dec_c_mults is 'x', not a list"),
    ("enc_strides", [], "enc_strides is (), not a list"),
    ("sampling_rate", 48000.5, "sampling_rate is 48000.5"),
    ("normalize_volume", 1, "normalize_volume is 1"),
    ("enc_latent_dim", 64, "enc_latent_dim is 64, not twice"),
    ("enc_n_fft", 8, "enc_hop_length 16 is beyond enc_n_fft 8"),
]


@pytest.mark.parametrize(("key", "value", "found"), ODD)
def test_another_codec_is_refused(key, value, found):
    with pytest.raises(InputError) as raised:
        SoundConfig.from_json(TINY_CONFIG | {key: value}, "some/sound_tokenizer")
    assert raised.value.asked == "loading some/sound_tokenizer" and found in raised.value.found
    assert "\n" not in str(raised.value)


def test_what_a_config_leaves_out_is_the_published_codec():
    assert SoundConfig.from_json({"_class_name": "x", "enc_intermediate_dim": 768}, "x") == SoundConfig()
    assert SoundConfig().hop == 1920 and SoundConfig().frames(378_000) == 197


def a_codec(folder, change) -> None:
    """The tiny model with its codec's tensors changed."""
    shutil.copytree(TINY, folder)
    file = folder / "sound_tokenizer/diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file)


def test_a_codec_that_only_decodes_decodes(tmp_path):
    a_codec(tmp_path / "m", lambda tensors: {n: t for n, t in tensors.items() if n.startswith("decoder.")})
    weights = Weights(open_model(str(tmp_path / "m")))
    target = peer.reference_plan(weights.model.config).target(weights.model.config)
    assert weights.sound(target, "decoder").decode(noise(8, 2)).shape == (2, 3840)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: {n: x for n, x in t.items() if n != "decoder.conv2.weight_g"}, "missing: decoder.conv2.weight_g"),
        (lambda t: t | {"decoder.extra": torch.zeros(3)}, "not part of this model: decoder.extra"),
        (lambda t: t | {"decoder.conv1.bias": torch.zeros(3)}, "of the wrong shape: decoder.conv1.bias is [3]"),
        (lambda t: {n: x for n, x in t.items() if n.startswith("encoder.")}, "missing: decoder."),
    ],
)
def test_other_tensors_are_refused_by_their_names(tmp_path, change, found):
    a_codec(tmp_path / "m", change)
    weights = Weights(open_model(str(tmp_path / "m")))  # nothing to who wants no sound
    with pytest.raises(InputError, match="sound_tokenizer") as raised:
        weights.open_sound()
    assert found in raised.value.found


def test_sound_is_no_part_of_what_silent_runs_are_told_apart_by(tmp_path):
    a_codec(tmp_path / "m", lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    a_codec(tmp_path / "n", lambda tensors: tensors)
    one, other = (Weights(open_model(str(tmp_path / name))) for name in "mn")
    assert one.identity == other.identity and one.identity_with_sound != other.identity_with_sound


def test_a_waveform_is_cut_off_where_the_video_ends():
    model = open_model(TINY_MODEL)
    given = {"task": "t2v", "prompt": "x", "frames": 5, "fps": 7, "size": "64x64", "steps": 1, "sound": True}
    request, _ = requests.resolve(given, "reference", model.facts, int)
    engine = Engine(model, peer.reference_plan(model.config))
    state = engine.step(engine.start(request))
    (waveform,) = engine.finish(state, "sound")
    assert waveform.shape == (2, int(5 / 7 * 48000)) and np.isfinite(waveform.numpy()).all()
