"""Edge, the distilled models and the others that are published: what each is, whole runs beside diffusers 0.42.1, and
what each refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peer
import published
import pytest
import torch

from cosmos3_core.checkpoint.model import Weights, describe, open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.memory import Media
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.variants import checkpoints

EDGE = "nvidia/Cosmos3-Edge"
PICTURES, CLIPS = (f"nvidia/Cosmos3-Super-{made_for}-4Step" for made_for in ("Text2Image", "Image2Video"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published checkpoint at tiny width, by name."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = published.repository(tmp_path_factory.mktemp("model"), name)
        return made[name]

    return get


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """A moving gradient with texture, uint8 [F, H, W, 3]."""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float64)
    channels = [np.sin(x / 9 + t / 3), np.cos(y / 7 - t / 5), np.sin((x + y) / 5 + t)]
    return (127.5 + 100 * np.stack(channels, -1)).astype(np.uint8)


# What each is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", checkpoints())
def test_a_checkpoints_own_files_say_what_the_table_says(name, folder):
    known, own, listed = checkpoints()[name], open_model(str(folder(name))), describe(name)
    for facts in (own.facts, listed.facts):
        assert (facts.variant, facts.modalities, facts.steps) == (known.variant, ("vision", *known.heads), known.steps)
        assert facts.system_prompt is (known.variant != "edge")
    assert (listed.facts.made_for, listed.facts.preset) == (known.made_for, known.preset)
    if known.variant == "edge":
        assert own.facts.schedule == "karras", "as diffusers has it, whatever use_native_flow_schedule says"
    Weights(own)
    wide = published.config(name)
    for key, value in vars(listed.config).items():
        if key not in ("sound_dim", "action_dim") or wide[key] is not None:
            assert value == (tuple(wide[key]) if key == "rope_axes_dim" else wide.get(key, value)), key


def test_the_distilled_video_model_counts_time_by_16_frames_a_second(folder):
    """Its base_fps is in its config; the others' is 24. At 16 frames a second its positions are whole."""
    from cosmos3_core.model.packing import Item

    item = Item("vision", (48, 3, 2, 2), fps=16.0)
    steps = {name: item.positions(open_model(str(folder(name))).config, 0.0)[0].tolist() for name in (CLIPS, PICTURES)}
    assert steps == {CLIPS: [0.0, 1.0, 2.0], PICTURES: [0.0, 1.5, 3.0]}


# Whole runs ------------------------------------------------------------------------------------------------------


def ours(folder: Path, given: dict[str, Any], clip: np.ndarray | None = None):
    """A finished state of a request in fp32, and the request."""
    model, media = open_model(str(folder)), []
    name = {"i2v": "image", "v2v": "video"}.get(given["task"])
    if name:
        assert clip is not None
        media = [Media.of(name, clip if name == "video" else clip[0])]
        given = given | {name: media[0].said}
    request, _ = requests.resolve(given | {"seed": 5}, "diffusers", model.facts, pick_seed=lambda: 0)
    engine = Engine(model, peer.reference_plan(model.config))
    state = engine.start(request, engine.read_inputs(request, media=media))
    while not state.done:
        engine.step(state)
    return engine, request, state


def theirs_of(request, clip: np.ndarray | None) -> dict[str, Any]:
    """The arguments of diffusers' pipeline for the same."""
    from PIL import Image

    media: dict[str, Any] = {}
    if request.task == "i2v":
        media = {"image": Image.fromarray(clip[0])}
    if request.task == "v2v":
        media = {"video": [Image.fromarray(frame) for frame in clip]}
        media["condition_frame_indexes_vision"] = request.condition_frame_indexes
    return media | {
        "prompt": request.prompt,
        "num_frames": request.frames,
        "height": request.height,
        "width": request.width,
        "fps": request.fps,
        "generator": torch.Generator().manual_seed(request.seed),
    }


EDGE_RUNS = {
    "t2i": dict(task="t2i", frames=1, size="80x96", guidance=7.0),
    "t2v": dict(task="t2v", frames=9, size="80x48", guidance=5.0),
    "i2v": dict(task="i2v", frames=9, size="80x48", guidance=5.0),
    "v2v": dict(task="v2v", frames=13, size="80x48", guidance=5.0),
}


@pytest.fixture(scope="module")
def edge_pipeline(folder):
    from diffusers import Cosmos3OmniPipeline, UniPCMultistepScheduler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = Cosmos3OmniPipeline.from_pretrained(
            folder(EDGE), enable_safety_checker=False, torch_dtype=torch.float32
        )
    pipeline.set_progress_bar_config(disable=True)
    config = dict(pipeline.scheduler.config) | {"use_karras_sigmas": False, "flow_shift": 3.0}
    pipeline.scheduler = UniPCMultistepScheduler.from_config(config)
    return pipeline


@pytest.mark.parametrize("name", EDGE_RUNS)
def test_edge_runs_as_in_diffusers(name, folder, edge_pipeline):
    """On its native schedule of shift 3: squared ReLU, text keys with a norm of their own for gen, no system prompt."""
    given = EDGE_RUNS[name] | {"prompt": "a robot arm pours coffee.", "negative_prompt": "blurry", "steps": 4}
    clip = moving(7, 48, 80) if name in ("i2v", "v2v") else None
    engine, request, state = ours(folder(EDGE), given | {"schedule": "native", "shift": 3.0}, clip)
    assert edge_pipeline.config.use_native_flow_schedule is True and request.system_prompt is False
    result = edge_pipeline(
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        output_type="latent",
        **theirs_of(request, clip),
    ).video[0]
    latent = state.latents()[0]
    assert peer.relative_error(latent, result) <= 1e-4
    _check_clean(state)


@pytest.mark.parametrize("name", ["t2i", "i2v"])
def test_a_distilled_model_runs_as_in_diffusers(name, folder):
    """Four fixed noise levels, the stochastic sampler on the request's own stream, no guidance."""
    from diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3_distilled import Cosmos3DistilledBlocks

    where = folder(PICTURES if name == "t2i" else CLIPS)
    given = dict(task=name, prompt="a robot arm pours coffee.", size="80x96", frames=1 if name == "t2i" else 9)
    clip = moving(1, 96, 80) if name == "i2v" else None
    engine, request, state = ours(where, given, clip)
    assert (request.steps, request.guidance, request.schedule) == (4, 1.0, "distilled")
    assert state.solver.timesteps == pytest.approx((1000, 937.5, 833.3333, 625))

    pipeline = distilled_pipeline(where, Cosmos3DistilledBlocks)
    result = pipeline(output="latents", **theirs_of(request, clip))
    assert peer.relative_error(state.latents()[0], result.reshape(state.latents()[0].shape)) <= 1e-4
    _check_clean(state)


def distilled_pipeline(where: Path, blocks: Any) -> Any:
    from diffusers import AutoencoderKLWan, Cosmos3OmniTransformer, FlowMatchEulerDiscreteScheduler
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = blocks().init_pipeline(str(where))
        pipeline.update_components(
            transformer=Cosmos3OmniTransformer.from_pretrained(where / "transformer", torch_dtype=torch.float32),
            vae=AutoencoderKLWan.from_pretrained(where / "vae", torch_dtype=torch.float32),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(where / "scheduler"),
            text_tokenizer=AutoTokenizer.from_pretrained(where / "text_tokenizer"),
        )
    pipeline.disable_safety_checker()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_clean(state) -> None:
    """The clean frames are the encoded input, bit by bit."""
    clean = state.context.clean
    for frame in state.items[0].clean:
        assert torch.equal(state.latents()[0][:, frame], clean.view(state.items[0].shape)[:, frame])
