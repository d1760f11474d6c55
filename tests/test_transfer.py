"""Transfer: whole runs against diffusers' modular pipeline and against a replay of the formulas, chunks, and what is
made of an input clip."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import peer
import pytest
import torch
from command import cosmos3
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3 import load as cosmos3_load
from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract import InputError, Residual
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files import video
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.rope import rotary_table
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.runs import generation, saved
from cosmos3_core.sampling.guidance import normalized
from cosmos3_core.sampling.noise import generator
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.chunks import Chunks
from cosmos3_core.scenarios.controls import bounced, derived
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.scenarios.transfer import EDGES
from cosmos3_core.settle import Settled, Wish, settle

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
    return peer.save_tiny(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def pipeline(repository):
    """diffusers' modular pipeline on it."""
    from diffusers.modular_pipelines.cosmos.modular_blocks_cosmos3 import Cosmos3OmniBlocks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peer.pipeline_of(repository)
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
    return generation.prepare(Engine(settled.model, settled.plan, placement=ALL_RESIDENT), settled)


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
        num_video_frames_per_chunk=request.chunk_frames or None,
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
    """Attention to one control at a time, written down once more on the halves of the layers: docs/model.md, sections
    2 and 4.9, with positions, patches, attention and the last norm of its own. That the halves are right is what the
    runs beside diffusers show."""

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
        repository,
        **given,
        **weights,
        profile=profile,
        size="48x80",
        guidance=3.0,
        control_guidance=1.7,
        negative_prompt="blurry",
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


@pytest.mark.parametrize(("rounded", "second"), [("ceil", 15109), ("floor", 15108)])
def test_controls_may_stand_before_the_clip(rounded, second):
    """At 10 frames a second the last of four latent frames is at 7.2, so the next item begins at 9 or at 8 more than
    its own beginning; without controls the clip begins where the first item does."""
    given = {"task": "transfer", "prompt": "x", "edge": "e", "frames": 13, "fps": 10, "size": "64x64"}
    model = open_model(TINY_MODEL)
    given |= {"chunk_frames": 0, "control_positions": rounded}
    request, _ = requests.resolve(given, "reference", model.facts, pick_seed=lambda: 0)
    packing = Packing(items_of(request.of_chunk(0), model.config), model.config, "cpu")
    assert [item.name for item in packing.items] == ["vision.edge", "vision"]
    control, made = packing.positions(100)[0].chunk(2)
    assert control[0] == 15100 and control[-1] == pytest.approx(15107.2, abs=2e-3)
    assert made[0] == second
    assert packing.without_controls("cpu").positions(100)[0, 0] == 15100


def test_a_context_without_control_guidance_has_none(repository, tmp_path):
    """A generation may leave control guidance out, and may not bring it where the third pass was not planned."""
    edge = lossless(tmp_path / "edge.png", moving(5))
    run = prepared(repository, edge=edge, steps=1, control_guidance=2.0)
    state, request = run.begin(), run.request.of_chunk(0)
    without = run.engine.begin(state.context, replace(request, control_guidance=1.0))
    assert not torch.equal(*run.engine.predict([state, without]))
    plain = prepared(repository, edge=edge, steps=1)
    context = plain.begin().context
    (alone,) = plain.engine.predict([plain.state])
    assert torch.equal(alone, run.engine.predict([without])[0])
    with pytest.raises(InputError, match="it has control guidance, and the request that was prepared had none"):
        plain.engine.begin(context, replace(plain.request.of_chunk(0), control_guidance=2.0))


# --- chunks ----------------------------------------------------------------------------------------------------------

FIVE = dict(
    size="48x32",
    frames=37,
    chunk_frames=9,
    carry_frames=2,
    control_guidance=2.0,
    guidance=3.0,
    negative_prompt="blurry",
)
"""Chunks that begin at 0, 7, 14, 21 and 28."""


def frames_of(run: generation.Generation) -> np.ndarray:
    return np.stack(list(run.frames()))


@pytest.mark.parametrize(("profile", "stops"), [("reference", (3,)), ("vllm-omni", (6,))])
def test_a_run_of_five_chunks_goes_on_bit_equal_from_wherever_it_stopped(repository, tmp_path, profile, stops):
    """Stopped within a chunk, and between two."""
    given = FIVE | {"edge": lossless(tmp_path / "edge.png", moving(37)), "profile": profile, "steps": 2}
    run = whole(prepared(repository, **given))
    assert (run.steps, run.request.chunks.count) == (10, 5)
    expected, latents = frames_of(run), run.latents()
    assert len(expected) == 37
    for stop in stops:
        first = prepared(repository, **given)
        for _ in range(stop):
            first.step()
        kept = tmp_path / f"{stop}.safetensors"
        assert first.index == stop and first.keep(kept)
        stopped = saved.read_stopped(str(kept), "resume")
        again = generation.prepare(first.engine, first.settled, stopped=stopped)
        assert again.index == stop and again.resolved["resumed_at_step"] == stop
        whole(again)
        assert again.latents().keys() == latents.keys()
        assert all(torch.equal(latents[name], one) for name, one in again.latents().items())
        assert np.array_equal(frames_of(again), expected)


def test_the_noise_of_chunks_is_the_profiles(repository, tmp_path):
    """The framework begins each with the seed and its number; others go on in one stream."""
    edge = lossless(tmp_path / "edge.png", moving(19))
    found = {}
    for noise in ("seed", "stream"):
        run = prepared(repository, edge=edge, frames=19, chunk_frames=9, steps=1, seed=2**64 - 1, chunk_noise=noise)
        found[noise] = []
        while not run.done:
            run.step()
            found[noise].append(run.state.noise[0])
    shape = found["seed"][0].shape
    assert torch.equal(found["seed"][1], torch.randn(shape, generator=generator(0)))
    stream = generator(2**64 - 1)
    for noise in found["stream"]:
        assert torch.equal(noise, torch.randn(shape, generator=stream))


@pytest.mark.parametrize(
    ("total", "frames", "carry", "starts", "kept"),
    [
        (93, 93, 1, [0], [93]),
        (94, 93, 1, [0, 92], [93, 1]),
        (189, 93, 1, [0, 92, 184], [93, 92, 4]),
        (20, 9, 5, [0, 4, 8, 12], [9, 4, 4, 3]),
        (5, 93, 1, [0], [5]),
    ],
)
def test_chunks_cover_the_whole_once(total, frames, carry, starts, kept):
    chunks = Chunks(total, frames, carry)
    assert [chunks.start(i) for i in range(chunks.count)] == starts
    assert [len(chunks.kept(i)) for i in range(chunks.count)] == kept and sum(kept) == total


def test_a_damaged_chunk_is_refused(repository, tmp_path):
    given = FIVE | {"edge": lossless(tmp_path / "edge.png", moving(37)), "steps": 1}
    run = prepared(repository, **given)
    run.step()
    run.step()
    tensors, numbers = run.computed()
    for change in (
        {"carried": tensors["carried"][:, :1].contiguous()},
        {"carried": tensors["carried"] * torch.nan},
        {"done.0.vision": tensors["done.0.vision"][:, :1].contiguous()},
        {"done.7.vision": tensors["done.0.vision"].clone()},
    ):
        assert saved.save(tmp_path / "x.safetensors", tensors | change, numbers, run.resumable)
        stopped = saved.read_stopped(str(tmp_path / "x.safetensors"), "resume")
        with pytest.raises(InputError, match="the saved chunks do not fit the saved request"):
            generation.prepare(run.engine, run.settled, stopped=stopped)


# --- controls that are made here -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(EDGES))
def test_edges_are_cannys(preset):
    low, high = {"none": (20, 50), "very_low": (20, 50), "low": (50, 100)}.get(preset) or {
        "medium": (100, 200),
        "high": (200, 300),
        "very_high": (300, 400),
    }[preset]
    frames = moving(3)
    frames[:, 20:50, 30:70], frames[:, 30:40, 40:60] = 255, 0
    found = derived("edge", torch.from_numpy(frames).permute(3, 0, 1, 2) / 127.5 - 1, preset)
    for i, frame in enumerate(frames):
        white = cv2.Canny(frame, low, high) > 0
        assert white.any() and torch.equal(found[:, i], torch.from_numpy(2.0 * white - 1).float().expand(3, -1, -1))


BLURRED = {"none": (1, 1), "very_low": (1, 4), "low": (4, 4), "medium": (2, 10), "high": (1, 16), "very_high": (4, 16)}


@pytest.mark.parametrize("preset", list(BLURRED))
def test_blur_is_a_bilateral_filter_and_a_coarser_grid(preset):
    (frame,) = moving(1, size=(320, 448))
    found = derived("blur", torch.from_numpy(frame[None]).permute(3, 0, 1, 2) / 127.5 - 1, preset)[:, 0]
    (before, after), expected = BLURRED[preset], frame
    if preset != "none":
        if before > 1:
            expected = cv2.resize(expected, (448 // before, 320 // before), interpolation=cv2.INTER_AREA)
        scale = 448 // before / 720
        diameter = round(30 * scale) | 1
        expected = cv2.bilateralFilter(expected, diameter, max(1, 150 * scale), max(1, 100 * scale))
        if before > 1:
            expected = cv2.resize(expected, (448, 320), interpolation=cv2.INTER_LINEAR)
        if after > 1:
            expected = cv2.resize(expected, (448 // after, 320 // after), interpolation=cv2.INTER_CUBIC)
            expected = cv2.resize(expected, (448, 320), interpolation=cv2.INTER_CUBIC)
    assert torch.equal(((found + 1) * 127.5).round(), torch.from_numpy(expected).permute(2, 0, 1).float().round())
    assert (preset == "none") == np.array_equal(expected, frame)


@pytest.mark.parametrize(
    ("length", "wanted", "found"),
    [
        (3, 3, [0, 1, 2]),
        (3, 5, [0, 1, 2, 2, 1]),
        (3, 9, [0, 1, 2, 2, 1, 1, 2, 2, 1]),
        (1, 4, [0, 0, 0, 0]),
        (2, 4, [0, 1, 1, 1]),
    ],
)
def test_short_controls_go_back_and_forth(length, wanted, found):
    """As diffusers' and vllm-omni's, which reverse what they have and leave out its end, again and again."""
    assert bounced(list(range(length)), wanted) == found


def test_a_control_of_the_clip_is_that_of_the_file(repository, tmp_path):
    """Edges made of the input clip, and the same edges as a clip of their own, in two chunks; what was found is in the
    manifest."""
    seen = moving(14)
    edges = derived("edge", torch.from_numpy(seen).permute(3, 0, 1, 2) / 127.5 - 1, "low")
    edges = ((edges + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    video = lossless(tmp_path / "video.png", seen)
    made = whole(prepared(repository, edge="auto", video=video, edge_preset="low", chunk_frames=9))
    own = whole(prepared(repository, edge=lossless(tmp_path / "edge.png", edges), chunk_frames=9, fps=made.request.fps))
    assert made.request.frames == own.request.frames == 14
    assert np.array_equal(frames_of(made), frames_of(own))
    assert made.manifest()["inputs"]["video"]["sha256"] and own.manifest()["inputs"]["edge"]["sha256"]
    assert made.manifest()["chunks"] == {"count": 2, "frames": 9, "carry": 1}
    assert not made.manifest()["plan"]["execution"]["control"]


def test_a_picture_is_a_control_of_any_length_and_a_second_clip_may_be_short(repository, tmp_path):
    edge, depth = lossless(tmp_path / "edge.png", moving(1)), lossless(tmp_path / "depth.png", moving(4))
    run = prepared(repository, edge=edge, depth=depth, frames=4, steps=1)
    assert run.inputs.given[0].shape == (3, 5, *SIZE) and (run.inputs.given[0] == run.inputs.given[0][:, :1]).all()
    assert torch.equal(run.inputs.given[1][:, 4], run.inputs.given[1][:, 3])
    longer = prepared(repository, edge=lossless(tmp_path / "nine.png", moving(9)), depth=depth, steps=1)
    assert longer.request.frames == 9 and "the depth control has 4 of 9 frames, and goes back and forth" in "".join(
        longer.inputs.notes
    )


def test_controls_and_the_input_are_shown_left_of_what_is_made(repository, tmp_path):
    """Over chunks, in the order of the frameworks: the input clip, then each control; what is made stays as it is."""
    pipe = cosmos3_load(repository, backend="reference", dtype="float32")
    clip, depth = lossless(tmp_path / "in.gif", moving(9, size=(64, 64))), moving(9, seed=2, size=(64, 64))
    given = dict(video=clip, edge="auto", depth=depth, frames=9, size="64x64", steps=1, seed=1, chunk_frames=5)
    alone = pipe("a wave", **given)
    shown = pipe("a wave", **given, show_controls=True, show_input=True, output=tmp_path / "shown.mp4")
    assert shown.numpy.shape == (9, 64, 4 * 64, 3)
    source, edges, deep, made = (torch.from_numpy(part) for part in np.split(shown.numpy, 4, axis=2))
    assert torch.equal(made, alone.tensor)
    assert np.abs(deep.numpy().astype(int) - depth).max() <= 1
    read = video.read_video(tmp_path / "in.gif", 9, "first").frames
    assert np.abs(source.numpy().astype(int) - read).max() <= 1
    canny = np.stack([cv2.Canny(frame, *EDGES["medium"]) for frame in source.numpy()])
    assert (edges.numpy()[..., 0] == canny).mean() > 0.98  # of pixels that were rounded once more
    written = json.loads((tmp_path / "shown.mp4.json").read_text())
    assert written["output"]["width"] == 256 and written["request"]["size"] == "64x64"
    only = pipe("a wave", **given, show_controls=True)
    assert only.numpy.shape == (9, 64, 3 * 64, 3)


def test_showing_an_input_that_is_not_there_would_change_nothing(repository):
    pipe = cosmos3_load(repository, backend="reference")
    with pytest.raises(InputError, match="show_input = True: it would change nothing: there is no input clip"):
        pipe.start("a wave", depth=moving(5), frames=5, size="64x64", steps=1, show_input=True)
    with pytest.raises(InputError, match="show_controls = True: it would change nothing: text to video has no contro"):
        pipe.start("a wave", frames=5, size="64x64", steps=1, show_controls=True)


def test_controls_in_memory_are_those_of_files_and_are_handed_over_again(repository, tmp_path):
    pipe, frames = cosmos3_load(repository, backend="reference", dtype="float32"), moving(5)
    given = dict(frames=5, size="64x64", steps=2, seed=1, control_weights={"edge": 2, "seg": 1})
    files = {"edge": lossless(tmp_path / "e.gif", frames), "seg": lossless(tmp_path / "s.gif", moving(5, 3))}
    readings = {name: video.read_video(Path(path), 5, "first").frames for name, path in files.items()}
    expected = pipe("a wave", **given, **files)
    assert torch.equal(pipe("a wave", **given, **readings).tensor, expected.tensor)
    run = pipe.start("a wave", **given, **readings)
    run.step()
    run.save(tmp_path / "state.safetensors")
    with pytest.raises(InputError, match="handed it over in memory"):
        pipe.resume(tmp_path / "state.safetensors")
    with pytest.raises(InputError, match="has changed since"):
        pipe.resume(tmp_path / "state.safetensors", edge=readings["seg"], seg=readings["seg"])
    assert torch.equal(pipe.resume(tmp_path / "state.safetensors", **readings).run().tensor, expected.tensor)


def test_normalized_guidance_keeps_each_latent_as_long_as_the_prompts_own():
    items = (Item("vision", (2, 3, 4, 4)), Item("action", (3, 5)))
    prompt, guided = torch.randn(2 * 3 * 16 + 15), torch.randn(2 * 3 * 16 + 15)
    guided[:96] *= 7  # longer than the prompt's
    guided[96:] *= 0.1  # shorter, and left alone
    found = normalized(guided, prompt, items)
    torch.testing.assert_close(found[:96], guided[:96] * prompt[:96].norm() / guided[:96].norm())
    assert torch.equal(found[96:], guided[96:])


def test_normalized_guidance_is_a_field(repository):
    pipe = cosmos3_load(repository, backend="reference", dtype="float32")
    given = dict(frames=5, size="64x64", steps=1, seed=1, guidance=9)
    plain, kept = pipe("a wave", **given), pipe("a wave", **given, normalize_guidance=True)
    moved = [
        (result.latents - result.noise).norm() for result in (plain, kept, pipe("a wave", **given | {"guidance": 1}))
    ]
    assert moved[1] < moved[0] and moved[1] <= moved[2] * (1 + 1e-5)
    with pytest.raises(InputError, match="normalize_guidance = True: it would change nothing: guidance 1"):
        pipe.start("a wave", **given | {"guidance": 1}, normalize_guidance=True)


def test_what_the_model_reads_of_controls(repository, tmp_path):
    """The system prompt of transfer, and emphasis after the sentences on length and size."""
    edge, seg = (lossless(tmp_path / f"{name}.png", moving(9)) for name in ("edge", "seg"))
    run = prepared(repository, edge=edge, seg=seg, profile="reference", prompt="A cup.")
    text = run.engine.tokenizer.tokenizer.decode(run.inputs.prompt, skip_special_tokens=False)
    assert "control signals (edge maps, blur, depth, or segmentation)." in text
    said = "A cup. The video is 3.9 seconds long and is of 24 FPS. This video is of 80x112 resolution. Follow the edge,"
    assert (
        f"{said} seg control video precisely: shape, contour, silhouette, position, and motion of every visible" in text
    )
    assert "must align with the edge, seg signal at every frame." in text
    negative = run.engine.tokenizer.tokenizer.decode(run.inputs.negative, skip_special_tokens=False)
    assert "Follow the" not in negative


# --- the plan --------------------------------------------------------------------------------------------------------


def planned(**given) -> Settled:
    wish = {"task": "transfer", "size": "480p:16:9", "frames": 93} | given
    return settle(Wish(model="nvidia/Cosmos3-Nano", described=True, partial=True, given=wish, backend="reference"))


def test_the_plan_counts_the_third_branch_and_the_controls():
    one = planned(edge="e")
    run, tokens = one.execution, 24 * 15 * 26
    assert (run.tokens, run.made) == (2 * tokens, tokens)
    assert [(p.branches, p.rows) for p in run.passes] == [
        (("prompt",), 2 * tokens),
        (("negative prompt",), 2 * tokens),
        (("prompt without controls",), tokens),
    ]
    assert run.guidance == "three passes"
    alone = planned(edge="e", control_guidance=1)
    assert alone.execution.guidance == "two passes" and alone.execution.control == ()
    flops = lambda settled: sum(work.flops for work in settled.estimate.parts["steps"])  # noqa: E731
    config = one.model.config
    lin = 2 * config.hidden_size * (2 * config.query_width + 2 * config.kv_width + 3 * config.intermediate_size)
    attended = 4 * config.query_width * tokens * (512 + tokens)
    assert flops(one) - flops(alone) == pytest.approx(35 * config.num_hidden_layers * (tokens * lin + attended))
    steps = one.estimate.stage("steps")
    assert (
        steps.activations
        == alone.estimate.stage("steps").activations
        > planned(task="t2v").estimate.stage("steps").activations
    )


def test_the_plan_counts_attention_to_one_control_at_a_time_and_chunks():
    given = dict(edge="e", depth="d", seg="s", control_guidance=1, guidance=1)
    weighted, joint = planned(**given), planned(**given, control_attention="joint")
    config, tokens = weighted.model.config, 24 * 15 * 26
    flops = [sum(work.flops for work in one.estimate.step(False)) for one in (joint, weighted)]
    saved_ = 4 * tokens * (512 + 4 * tokens) - 3 * 2 * tokens * (512 + 2 * tokens)
    assert flops[0] - flops[1] == pytest.approx(config.num_hidden_layers * 4 * config.query_width * saved_)
    long = planned(**given | {"frames": 185})
    assert long.request.chunks.count == 2
    for stage, times in (("steps", 2), ("encode input", 2), ("decode", 3), ("read prompts", 1)):
        counted = [sum(work.flops for work in one.estimate.parts[stage]) for one in (weighted, long)]
        assert counted[1] == pytest.approx(times * counted[0])
    assert long.estimate.peak == weighted.estimate.peak, "a chunk is what has to fit"


def test_what_does_not_fit_names_the_chunk(capsys, monkeypatch):
    """Frames beyond a chunk take no more memory, so fewer of them would not help."""
    arguments = ("--model", "nano", "--backend", "reference", "--edge", "e.mp4", "--frames", "400", "--size", "720p")
    arguments += ("--placement", "generation=staged")
    code, out, err = cosmos3(capsys, monkeypatch, "plan", *arguments, "--memory", "18", "--json")
    options = [change["options"] for change in json.loads(out)["estimate"]["nearest"]]
    assert code == 1 and err.count("\n") <= 1
    assert any("--chunk-frames " in typed for typed in options) and not any("--frames" in typed for typed in options)
    (typed,) = [typed for typed in options if "--chunk-frames " in typed]
    code, out, _ = cosmos3(capsys, monkeypatch, "plan", *arguments, "--memory", "18", *typed.split(), "--json")
    assert code == 0 and json.loads(out)["estimate"]["fits"]
