"""Actions against diffusers 0.42.1, and where it has no such mode against its transformer stepped here by the formulas:
whole runs in fp32 on the same random weights, from the same noise. Bounds are of the norm of the difference by the norm
of diffusers' result, for the latents of vision and of actions."""

from __future__ import annotations

import numpy as np
import peer
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import (
    get_3d_mrope_ids_text_tokens,
    get_3d_mrope_ids_vae_tokens,
)
from inputs import photograph

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.action import shown_size
from cosmos3_core.scenarios.action_kinds import canvas_for

BOUND = 1e-4


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The tiny model in fp32 with a transformer of ordinary scale, saved by diffusers; and its pipeline."""
    from diffusers import UniPCMultistepScheduler

    folder = peer.save_tiny(tmp_path_factory.mktemp("repository"))
    pipeline = peer.pipeline_of(folder)
    changes = {"use_karras_sigmas": False, "flow_shift": 10.0}
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, **changes)
    return folder, pipeline


def engine_of(folder) -> Engine:
    model = open_model(str(folder))
    return Engine(model, peer.reference_plan(model.config))


def resolved(engine: Engine, source: tuple[int, int], given: dict):
    """A request by diffusers' documented profile, as `settle` makes it of an input of this size."""
    canvas = canvas_for("256", source)
    size = shown_size(tuple(side // 16 * 16 for side in source), canvas)
    given = {"steps": 5, "fps": 5.0, "prompt": "pick it up", "seed": 5, "shift": 10.0} | given
    given |= {f"{name}": f"{w}x{h}" for name, (w, h) in (("canvas", canvas), ("size", size))}
    request, _ = requests.resolve(given, "diffusers-docs", engine.model.facts, pick_seed=lambda: 0)
    return request


def ours(engine: Engine, request):
    state = engine.start(request, engine.read_inputs(request))
    while not state.done:
        engine.step(state)
    vision, action = state.latents()
    return vision, action, state


def theirs(pipeline, request, condition: dict):
    """diffusers' final latents [1, C, T, h, w], and its actions or None."""
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition

    kept = {}
    step = pipeline.transformer.forward

    def spy(*arguments, **options):
        kept["action_tokens"] = options["action_tokens"][0]
        return step(*arguments, **options)

    pipeline.transformer.forward = spy
    try:
        result = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            fps=request.fps,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            use_system_prompt=False,
            output_type="latent",
            action=CosmosActionCondition(
                chunk_size=request.chunk, domain_name=request.domain, resolution_tier=256, **condition
            ),
        )
    finally:
        pipeline.transformer.forward = step
    return result.video, result.action, kept["action_tokens"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A picture, and a clip that is not compressed: what is read is what was made."""
    import av
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    photograph(200, 150).save(folder / "desk.png")
    frames = [photograph(400, 300).crop((3 * i, 2 * i, 3 * i + 352, 2 * i + 264)) for i in range(9)]
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 352, 264, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return folder, Image.open(folder / "desk.png"), frames


ACTIONS = np.random.default_rng(2).normal(0, 0.7, (4, 10))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_policy(repository, media, guidance):
    (folder, pipeline), (files, picture, _) = repository, media
    engine = engine_of(folder)
    given = dict(task="policy", image=str(files / "desk.png"), domain="bridge_orig_lerobot", chunk=4, view="wrist_view")
    given |= {"guidance": guidance} | ({"negative_prompt": "blurry"} if guidance > 1 else {})
    request = resolved(engine, picture.size, given)
    vision, action, state = ours(engine, request)
    latents, (actions,), _ = theirs(pipeline, request, dict(mode="policy", image=picture, view_point="wrist_view"))
    assert peer.relative_error(vision, latents[0]) <= BOUND
    assert peer.relative_error(action[:, :10], actions) <= BOUND
    assert not action[:, 10:].any(), "channels that the embodiment has not are exactly zero"
    (decoded,) = engine.finish(state, "action")
    assert torch.equal(decoded, action[:, :10])


def test_forward_dynamics(repository, media):
    (folder, pipeline), (files, picture, _) = repository, media
    engine = engine_of(folder)
    given = dict(task="forward-dynamics", image=str(files / "desk.png"), domain="bridge_orig_lerobot", chunk=4)
    request = resolved(engine, picture.size, given | {"actions": ACTIONS.tolist()})
    vision, action, _ = ours(engine, request)
    raw = torch.tensor(ACTIONS, dtype=torch.float32)
    condition = dict(mode="forward_dynamics", image=picture, raw_actions=raw)
    latents, predicted, tokens = theirs(pipeline, request, condition)
    assert predicted is None and torch.equal(action, tokens), "the actions stay as they were given"
    assert peer.relative_error(vision, latents[0]) <= BOUND


def test_inverse_dynamics(repository, media):
    """From a clip that is scaled down onto the canvas. Its latents stay bit-equal."""
    (folder, pipeline), (files, _, frames) = repository, media
    engine = engine_of(folder)
    given = dict(task="inverse-dynamics", video=str(files / "clip.mkv"), domain="robomind-ur", chunk=8)
    request = resolved(engine, frames[0].size, given)
    vision, action, state = ours(engine, request)
    latents, (actions,), _ = theirs(pipeline, request, dict(mode="inverse_dynamics", video=frames))
    assert torch.equal(vision, state.context.clean[: vision.numel()].view(vision.shape))
    assert peer.relative_error(vision, latents[0]) <= BOUND
    assert peer.relative_error(action[:, :10], actions) <= BOUND


HISTORY = np.random.default_rng(3).normal(0, 0.5, (5, 8))
STATE = np.random.default_rng(4).normal(0, 0.5, (1, 8))


@pytest.mark.parametrize(("history", "state"), [(3, True), (2, False), (0, True)])
def test_a_policy_from_a_video_with_history_and_state(repository, media, history, state):
    """diffusers has no such run: its VAE, its transformer and its solver are stepped here by the formulas of
    docs/model.md, sections 2.3 and 4.4. Known rows stand before the predicted ones, and the first begins 1 - known
    frames after the first frame."""
    (folder, pipeline), (files, _, frames) = repository, media
    engine = engine_of(folder)
    given = dict(task="video-policy", video=str(files / "clip.mkv"), domain="droid_lerobot", action_space="joints")
    given |= {"chunk": 8, "guidance": 3.0, "negative_prompt": "blurry", "view": "concat_view"}
    given |= {"history": HISTORY[:history].tolist()} if history else {}
    given |= {"state": STATE.tolist()} if state else {}
    request = resolved(engine, frames[0].size, given)
    inputs = engine.read_inputs(request)
    vision, action, _ = ours(engine, request)

    known = np.concatenate([HISTORY[:history], STATE[: int(state)]]).astype(np.float32)
    expected = replay(pipeline, request, frames[-5:], torch.from_numpy(known), (inputs.prompt, inputs.negative))
    assert peer.relative_error(vision, expected[0][0]) <= BOUND
    assert peer.relative_error(action, expected[1]) <= BOUND
    assert torch.equal(action[: len(known), :8], torch.from_numpy(known)) and not action[:, 8:].any()


@torch.inference_mode()
def replay(pipeline, request, frames, known, texts):
    """Final latents [1, C, T, h, w] and [A, D] of clean frames 0 and 1 and `known` first rows of actions."""
    import copy

    tensor, size, _, _ = pipeline._prepare_action_video_conditioning(frames, 256, request.frames, "cpu", torch.float32)
    x0 = pipeline._remove_action_video_padding_from_latent(pipeline._encode_video(tensor).float(), size)
    rows, width = len(known) + request.chunk, known.shape[1]
    stream = torch.Generator().manual_seed(request.seed)
    vision, action = torch.randn(x0.shape, generator=stream), torch.randn(rows, 16, generator=stream)
    vision[:, :, :2] = x0[:, :, :2]
    action[: len(known), :width] = known
    action[:, width:] = 0
    pipeline.scheduler.set_timesteps(request.steps)
    solvers = [copy.deepcopy(pipeline.scheduler) for _ in range(2)]
    for t in solvers[0].timesteps:
        (cond, uncond) = (
            velocity(pipeline.transformer, ids, vision, action, len(known), width, t, request.fps) for ids in texts
        )
        vision, action = (
            solver.step((u + request.guidance * (c - u))[None], t, x[None], return_dict=False)[0][0]
            for solver, c, u, x in zip(solvers, cond, uncond, (vision, action), strict=True)
        )
        action[:, width:] = 0
    return vision, action


def velocity(transformer, ids, vision, action, known, width, t, fps):
    """What the transformer predicts of vision and actions, zero where nothing is to be predicted."""
    _, _, frames, height, width_latent = vision.shape
    grid = (frames, -(-height // 2), -(-width_latent // 2))
    per_frame, length = grid[1] * grid[2], len(ids)
    tokens, offset = frames * per_frame, length + 15000
    positions = [
        get_3d_mrope_ids_text_tokens(length, 0, True)[0],
        get_3d_mrope_ids_vae_tokens(*grid, temporal_offset=offset, base_fps=24.0, fps=fps)[0],
        get_3d_mrope_ids_vae_tokens(
            len(action),
            1,
            1,
            temporal_offset=offset,
            base_fps=24.0,
            fps=fps,
            temporal_compression_factor=1,
            base_temporal_compression_factor=4,
            start_frame_offset=1 - known,
        )[0],
    ]
    at = torch.arange(length, length + tokens + len(action))
    seen, acted = at[:tokens], at[tokens:]
    noisy_vision, noisy_action = seen[2 * per_frame :], acted[known:]
    predicted = transformer(
        input_ids=torch.tensor(ids),
        text_indexes=torch.arange(length),
        position_ids=torch.cat([p.float() for p in positions], dim=1),
        und_len=length,
        sequence_length=length + tokens + len(action),
        vision_tokens=[vision],
        vision_token_shapes=[grid],
        vision_sequence_indexes=seen,
        vision_mse_loss_indexes=noisy_vision,
        vision_timesteps=torch.full((len(noisy_vision),), float(t)),
        vision_noisy_frame_indexes=[torch.arange(2, frames)],
        action_tokens=[action],
        action_token_shapes=[(len(action), 1, 1)],
        action_sequence_indexes=acted,
        action_mse_loss_indexes=noisy_action,
        action_timesteps=torch.full((len(noisy_action),), float(t)),
        action_noisy_frame_indexes=[torch.arange(known, len(action))],
        action_domain_ids=[torch.tensor([8])],
        return_dict=False,
    )
    of_vision, of_action = predicted[0][0].clone(), predicted[2][0].clone()
    of_vision[:, :, :2], of_action[:known], of_action[:, width:] = 0, 0, 0
    return of_vision, of_action
