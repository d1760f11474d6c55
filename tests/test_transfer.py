"""Transfer: whole runs against diffusers' modular pipeline and against a replay of the formulas, chunks, and what is
made of an input clip."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import peer
import pytest
import torch
from PIL import Image

from cosmos3_core.engine.engine import Engine
from cosmos3_core.runs import generation
from cosmos3_core.settle import Wish, settle

SIZE = 80, 112
"""Height and width: odd latent rows and columns."""


def moving(frames: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A moving gradient with texture, uint8 [F, H, W, 3]."""
    t, y, x = np.mgrid[0:frames, 0 : size[0], 0 : size[1]].astype(np.float64)
    channels = [np.sin(x / (9 + seed) + t / 3), np.cos(y / 7 - t / 5 + seed), np.sin((x + y) / 5 + t * (1 + seed))]
    return (127.5 + 100 * np.stack(channels, -1)).astype(np.uint8)


def lossless(path: Path, frames: np.ndarray, fps: float = 24.0) -> str:
    """A clip whose pixels come back as they are."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 / fps, loop=0)
    return str(path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The tiny model in fp32 with a transformer of ordinary scale, saved by diffusers."""
    folder = tmp_path_factory.mktemp("repository")
    return peer.save_repository(folder, peer.diffusers_transformer(peer.TINY, seed=11, scale=0.12))


@pytest.fixture(scope="module")
def pipeline(repository):
    """diffusers' modular pipeline on it."""
    from diffusers import Cosmos3OmniPipeline
    from diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3 import Cosmos3OmniBlocks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Cosmos3OmniPipeline.from_pretrained(repository, enable_safety_checker=False, torch_dtype=torch.float32)
        modular = Cosmos3OmniBlocks().init_pipeline()
    modular.update_components(
        transformer=whole.transformer, vae=whole.vae, text_tokenizer=whole.text_tokenizer, scheduler=whole.scheduler
    )
    modular.disable_safety_checker()
    modular.set_progress_bar_config(disable=True)
    return modular


def prepared(repository, **given) -> generation.Generation:
    given = {"prompt": "a robot arm pours coffee.", "size": f"{SIZE[1]}x{SIZE[0]}", "seed": 5, "steps": 4} | given
    profile = given.pop("profile", "diffusers")
    settled = settle(Wish(model=str(repository), given=given, profile=profile, backend="reference", dtype="float32"))
    return generation.prepare(Engine(settled.model, settled.plan, resident=True), settled)


def whole(run: generation.Generation) -> generation.Generation:
    while not run.done:
        run.step()
    return run


NAMES = ("edge", "depth", "wsm")
CASES = {
    "one control": dict(names=NAMES[:1], frames=9),
    "two": dict(names=NAMES[:2], frames=9, control_guidance=2.0, guidance=3.0),
    "three": dict(names=NAMES, frames=9, control_guidance=1.5),
    "control guidance alone": dict(names=NAMES[:1], frames=9, control_guidance=2.0, guidance=1.0),
    "intervals": dict(
        names=NAMES[:2],
        frames=9,
        control_guidance=2.0,
        guidance=3.0,
        guidance_interval=[0, 900],
        control_guidance_interval=[700, 1000],
    ),
    "chunks": dict(names=NAMES[:1], frames=19, chunk_frames=9, control_guidance=2.0),
    "chunks of two controls": dict(names=NAMES[1:], frames=20, chunk_frames=9, carry_frames=5, first_frames=3),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_runs_equal_diffusers(repository, pipeline, tmp_path, name):
    """The latents of the last chunk within 1e-4 of their norm, and all pixels, from equal noise."""
    case = dict(CASES[name])
    clips = {hint: moving(case["frames"], i) for i, hint in enumerate(case.pop("names"))}
    seen = moving(case["frames"], 9)
    given = {hint: lossless(tmp_path / f"{hint}.png", frames) for hint, frames in clips.items()}
    if case.get("first_frames"):
        given["video"] = lossless(tmp_path / "video.png", seen)
    negative = {} if case.get("guidance") == 1.0 else {"negative_prompt": "blurry"}
    run = whole(prepared(repository, **given, **negative, **case, fps=24.0))

    request = run.request
    found = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        control_videos={hint: [Image.fromarray(frame) for frame in frames] for hint, frames in clips.items()},
        video=[Image.fromarray(frame) for frame in seen],
        height=request.height,
        width=request.width,
        num_frames=request.frames,
        num_video_frames_per_chunk=request.chunk_frames,
        num_conditional_frames=request.carry_frames,
        num_first_chunk_conditional_frames=request.first_frames,
        fps=request.fps,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        control_guidance=request.control_guidance,
        guidance_interval=request.guidance_interval,
        control_guidance_interval=request.control_guidance_interval,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="pt",
        output=["latents", "videos"],
    )
    assert peer.relative_error(run.latents()["final.vision"], found["latents"][0]) <= 1e-4
    ours = torch.stack([torch.from_numpy(frame) for frame in run.frames()]).float()
    theirs = found["videos"].permute(0, 2, 3, 1) * 255
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 0.75  # rounding to bytes, and 1e-4 of the range
