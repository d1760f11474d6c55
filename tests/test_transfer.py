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


# --- the formulas, replayed ------------------------------------------------------------------------------------------


class Replay:
    """Attention to one control at a time, both formulas and NVIDIA's chunks, from the weights alone: docs/model.md,
    sections 2 and 4.9, written down once more, without the engine. `read` has a text's keys and values per layer."""

    def __init__(self, running: Engine, run: generation.Generation):
        self.running, self.request, self.inputs = running, run.request, run.inputs
        self.tower = running._pool.lease("generation")
        reader = running._pool.lease("understanding")
        self.texts = [reader.prefill(ids) for ids in (run.inputs.prompt, run.inputs.negative) if ids]
        self.weights = dict(run.request.control_weights)

    def velocity(self, text, controls: dict[str, torch.Tensor], x: torch.Tensor, timestep: float) -> torch.Tensor:
        """Of what is made, which attends with each control alone; of the sums, weighted."""
        tower, config = self.tower, self.tower.config
        grid = (x.shape[1], -(-x.shape[2] // 2), -(-x.shape[3] // 2))
        t = torch.arange(grid[0], dtype=torch.float32) / (self.request.fps / 4) * (config.base_fps / 4)
        t = (t if grid[0] > 1 else torch.arange(1.0)) + (text.length + 15000)
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in grid[1:])
        where = torch.stack([axis.flatten() for axis in torch.meshgrid(t, rows, columns, indexing="ij")])
        cos, sin = (table[None] for table in self.rotation(where))

        def rows_of(latent, noisy):
            padded = torch.nn.functional.pad(latent, (0, latent.shape[3] % 2, 0, latent.shape[2] % 2))
            split = padded.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # C T h a w b
            tokens = split.permute(1, 2, 4, 3, 5, 0).flatten(3).flatten(0, 2) @ tower.vision_in[0].T
            tokens = tokens + tower.vision_in[1]
            return tokens + noisy * tower.timestep_vector(timestep)

        streams = {hint: rows_of(latent, 0) for hint, latent in controls.items()} | {"made": rows_of(x, 1)}
        total = sum(self.weights.get(hint, 1.0) for hint in controls)
        from cosmos3_core.contract import Residual

        for i, layer in enumerate(tower.layers):
            residuals = {name: Residual(rows.clone()) for name, rows in streams.items()}
            qkv = {name: layer.project(residual, cos, sin)[:3] for name, residual in residuals.items()}
            k_text, v_text = text.segments[i]
            attended: dict[str, torch.Tensor] = {"made": torch.zeros_like(qkv["made"][0])}
            for hint in controls or [None]:
                names = [hint, "made"] if hint else ["made"]
                q, k, v = (torch.cat([qkv[name][j] for name in names], 1) for j in range(3))
                k, v = torch.cat([k_text, k], 1), torch.cat([v_text, v], 1)
                k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
                score = torch.einsum("bshd,bthd->bhst", q, k) / q.shape[-1] ** 0.5
                seen = torch.einsum("bhst,bthd->bshd", score.softmax(-1), v)
                count = qkv[hint][0].shape[1] if hint else 0
                attended["made"] += seen[:, count:] * (self.weights.get(hint, 1.0) / total if hint else 1.0)
                if hint:
                    attended[hint] = seen[:, :count]
            for name, residual in residuals.items():
                layer.finish(residual, attended[name])
                streams[name] = residual.x_MI if residual.delta_MI is None else residual.x_MI + residual.delta_MI
        y = streams["made"]
        y = y * (y.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * tower.norm_final
        tokens = tower.project_out["vision"](y).view(*grid, 2, 2, 48).permute(5, 0, 1, 3, 2, 4)
        return tokens.reshape(48, grid[0], 2 * grid[1], 2 * grid[2])[:, :, : x.shape[2], : x.shape[3]]

    def rotation(self, where):
        from cosmos3_core.model.rope import rotary_table

        c = self.tower.config
        return rotary_table(where, c.head_dim, c.rope_theta, c.rope_axes_dim, torch.float32)


@pytest.mark.parametrize(
    ("profile", "names"),
    [("reference", NAMES[:1]), ("reference", NAMES), ("vllm-omni", NAMES[:2]), ("vllm-omni", NAMES)],
)
@torch.inference_mode()
def test_weights_and_both_formulas_equal_a_replay(repository, tmp_path, profile, names):
    """Whole runs of one chunk: NVIDIA's framework multiplies the control's term by the text's guidance, and vllm-omni
    0.32 does not."""
    given = {hint: lossless(tmp_path / f"{hint}.png", moving(9, i)) for i, hint in enumerate(names)}
    weights = {"control_weights": {"edge": 2.0, "depth": 0.5}} if len(names) > 1 else {}
    run = prepared(
        repository, **given, **weights, profile=profile, guidance=3.0, control_guidance=1.7, negative_prompt="blurry"
    )
    running = run.engine
    state = run.begin()
    g, c, replay = run.request.guidance, run.request.control_guidance, Replay(running, run)
    assert run.request.control_formula == ("nested" if profile == "reference" else "separate")
    parts = dict(zip([item.name for item in state.items], state.latents(), strict=True))
    controls = {hint: parts[f"vision.{hint}"].clone() for hint in names}
    x, memory, stream = parts["vision"].clone(), None, torch.Generator()
    solver = state.solver
    memory = solver.start(x.flatten())
    while not run.done:
        i = state.index
        timestep = solver.timesteps[i]
        full = replay.velocity(replay.texts[0], controls, x, timestep)
        bare = replay.velocity(replay.texts[0], {}, x, timestep)
        negative = replay.velocity(replay.texts[1], controls, x, timestep)
        if profile == "reference":
            v = negative + g * (bare + c * (full - bare) - negative)
        else:
            v = negative + g * (bare - negative) + c * (full - bare)
        flat, memory = solver.step(v.flatten(), x.flatten(), i, memory, stream)
        x = flat.view_as(x)
        run.step()
    assert peer.relative_error(state.latents()[-1], x) <= 1e-4
    for hint, latent in controls.items():
        now = dict(zip([item.name for item in state.items], state.latents(), strict=True))[f"vision.{hint}"]
        assert torch.equal(now, latent), "a control is what it was, bit for bit"
