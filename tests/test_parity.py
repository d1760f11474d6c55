"""Against diffusers 0.42.1 on the same random weights, in fp32: one forward, positions, whole runs, checkpoints."""

from __future__ import annotations

import numpy as np
import peer
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import (
    get_3d_mrope_ids_text_tokens,
    get_3d_mrope_ids_vae_tokens,
)
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.tensors import save_tensors
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.rope import rotary_table, text_positions
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.branches import NEGATIVE, branches_of
from cosmos3_core.scenarios.items import items_of

TOKENS = [7, 300, 2, 2, 91, 15, 263, 44, 101, 9, 5]


@pytest.fixture(scope="module", params=list(peer.FAMILIES))
def pair(request):
    module = peer.diffusers_transformer(peer.FAMILIES[request.param])
    return module, peer.towers(module)


def items(fps: float, clean: bool) -> list[Item]:
    """Text, vision with odd rows and columns, sound and action together."""
    return [
        Item("vision", (48, 3, 5, 7), clean=(0,) if clean else (), fps=fps),
        Item("sound", (8, 10)),
        Item("action", (8, 16), clean=(1, 4) if clean else (), fps=fps, domain=5),
    ]


@torch.inference_mode()
def both(pair, packed: list[Item], timestep: float = 537.0):
    module, ours = pair
    latents = [torch.randn(item.shape, generator=torch.Generator().manual_seed(i)) for i, item in enumerate(packed)]
    packing = Packing(packed, ours.config, "cpu")
    branches = ours.generation.branches(packing, [ours.understanding.prefill(TOKENS)])
    theirs = module(**peer.diffusers_inputs(packing, TOKENS, latents, timestep))
    by_modality = dict(zip(("vision", "sound", "action"), theirs, strict=True))
    expected = [by_modality[item.modality][0] for item in packed]
    return ours.generation.forward(branches, latents, timestep)[0], expected


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("fps", [12.0, 24.0])
def test_one_forward(pair, fps, clean):
    for item, ours, theirs in zip(items(fps, clean), *both(pair, items(fps, clean)), strict=True):
        theirs = theirs.view(item.shape)
        assert peer.relative_error(ours, theirs) <= 1e-5
        for frame in item.clean:
            assert not ours.select(0 if item.modality == "action" else 1, frame).any()


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_the_order_of_items_does_not_matter(pair, alone):
    """Any item may come first: only its own tokens move. (Diffusers always packs a vision item first.)"""
    _, ours = pair
    packed = items(24.0, clean=True)
    order = [alone] + [i for i in range(3) if i != alone]
    latents = [torch.randn(item.shape, generator=torch.Generator().manual_seed(7)) for item in packed]
    with torch.inference_mode():
        text = ours.understanding.prefill(TOKENS)
        plain = ours.generation.branches(Packing(packed, ours.config, "cpu"), [text])
        moved = ours.generation.branches(Packing([packed[i] for i in order], ours.config, "cpu"), [text])
        expected = ours.generation.forward(plain, latents, 411.0)[0]
        actual = ours.generation.forward(moved, [latents[i] for i in order], 411.0)[0]
    for position, i in enumerate(order):
        assert peer.relative_error(actual[position], expected[i]) <= 1e-5


def test_a_single_frame_and_an_unmodulated_clip(pair):
    """One frame, or fps modulation switched off, counts positions in whole numbers."""
    module, _ = pair
    (ours,), (theirs,) = both(pair, [Item("vision", (48, 1, 6, 5), fps=12.0)])
    assert peer.relative_error(ours, theirs[0]) <= 1e-5
    config = TransformerConfig.from_json(dict(module.config) | {"enable_fps_modulation": False}, "test")
    found = Item("vision", (48, 3, 2, 2), fps=12.0).positions(config, 15011.0)
    assert found[0].tolist() == [15011.0, 15012.0, 15013.0]


@torch.inference_mode()
def test_reusing_the_prompt_is_bit_equal_to_reading_it_again(pair):
    _, ours = pair
    packing = Packing(items(24.0, clean=True), ours.config, "cpu")
    latents = [torch.randn(item.shape, generator=torch.Generator().manual_seed(3)) for item in packing.items]
    kept = ours.generation.branches(packing, [ours.understanding.prefill(TOKENS)])
    ours.generation.forward(kept, latents, 900.0)  # a step in between leaves the prompt's keys and values alone
    again = ours.generation.branches(packing, [ours.understanding.prefill(TOKENS)])
    for reused, fresh in zip(
        ours.generation.forward(kept, latents, 250.0)[0], ours.generation.forward(again, latents, 250.0)[0], strict=True
    ):
        assert torch.equal(reused, fresh)


@torch.inference_mode()
def test_two_branches_in_one_pass_are_each_their_own(pair):
    """Prompts of different lengths, so different positions and different keys, in one batch."""
    _, ours = pair
    packing = Packing(items(24.0, clean=False), ours.config, "cpu")
    latents = [torch.randn(item.shape, generator=torch.Generator().manual_seed(4)) for item in packing.items]
    texts = [ours.understanding.prefill(TOKENS), ours.understanding.prefill(TOKENS[:4])]
    together = ours.generation.forward(ours.generation.branches(packing, texts), latents, 640.0)
    for text, batched in zip(texts, together, strict=True):
        alone = ours.generation.forward(ours.generation.branches(packing, [text]), latents, 640.0)[0]
        for a, b in zip(batched, alone, strict=True):
            assert peer.relative_error(a, b) <= 1e-5


@pytest.mark.parametrize("fps", [5, 10, 12, 24, 30])
@pytest.mark.parametrize("frames", [1, 2, 48])
def test_positions_over_the_grid(fps, frames):
    """Exactly equal for prompts of 1 to 5000 tokens, as diffusers' and as an fp64 evaluation rounds."""
    config = TransformerConfig()
    for length in range(1, 5001):
        origin = length + 15000
        items_and_grids = [(Item("vision", (48, frames, 3, 5), fps=fps), (frames, 2, 3), dict(fps=fps))]
        if length % 100 == 1:
            # The same arithmetic with other rates; a coarser grid keeps the test short.
            items_and_grids += [
                (Item("sound", (64, frames)), (frames, 1, 1), dict(fps=25.0, temporal_compression_factor=1)),
                (
                    Item("action", (frames, 64), fps=fps),
                    (frames, 1, 1),
                    dict(
                        fps=fps, temporal_compression_factor=1, base_temporal_compression_factor=4, start_frame_offset=1
                    ),
                ),
            ]
        for item, grid, options in items_and_grids:
            theirs, _ = get_3d_mrope_ids_vae_tokens(*grid, temporal_offset=origin, base_fps=24.0, **options)
            ours = item.positions(config, origin)
            assert torch.equal(ours, theirs.float())
    k = np.arange(frames, dtype=np.float64)
    exact = 20000 + (k / (fps / 4) * (24 / 4) if frames > 1 else k)
    vision = Item("vision", (48, frames, 2, 2), fps=fps).positions(config, 20000.0)
    assert np.abs(vision[0].numpy() - exact).max() <= 2e-3  # two roundings at this magnitude
    assert torch.equal(text_positions(5000), get_3d_mrope_ids_text_tokens(5000, 0, True)[0])


@pytest.mark.parametrize("dim, sections", [(128, (24, 20, 20)), (16, (4, 2, 2))])
def test_rotary_table(dim, sections):
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3VLTextRotaryEmbedding

    positions = torch.rand(3, 50) * 16000
    theirs = Cosmos3VLTextRotaryEmbedding(dim, 5e6, sections)(positions[:, None], "cpu", torch.float32)
    for ours, expected in zip(rotary_table(positions, dim, 5e6, sections, torch.float32), theirs, strict=True):
        assert torch.equal(ours, expected[0])


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The tiny model in fp32 with a transformer of ordinary scale, saved by diffusers; and its pipeline."""
    folder = peer.save_tiny(tmp_path_factory.mktemp("repository"))
    return folder, peer.pipeline_of(folder)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """A moving gradient with texture, uint8 [F, H, W, 3]."""
    t, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float64)
    channels = [np.sin(x / 9 + t / 3), np.cos(y / 7 - t / 5), np.sin((x + y) / 5 + t)]
    return (127.5 + 100 * np.stack(channels, -1)).astype(np.uint8)


RUNS = {
    "t2i": dict(task="t2i", frames=1, size="80x96", steps=6, guidance=4.0),
    "t2i without guidance": dict(task="t2i", frames=1, size="80x96", steps=4, guidance=1.0),
    "t2v": dict(task="t2v", frames=9, size="80x112", steps=6),
    "t2v at 12 fps": dict(task="t2v", frames=9, size="80x112", steps=4, fps=12.0),
    "i2v": dict(task="i2v", frames=9, size="80x112", steps=6),
    "v2v": dict(task="v2v", frames=13, size="80x112", steps=6),
    "v2v from the end": dict(
        task="v2v", frames=13, size="80x112", steps=4, condition_video_keep="last", condition_frame_indexes=[0]
    ),
}


CASES = [(name, "karras") for name in RUNS] + [(name, s) for name in ("t2i", "v2v") for s in ("flow", "native")]


@pytest.mark.parametrize("name, schedule", CASES)
def test_whole_run(repository, name, schedule):
    """Latents after all steps, and for the published schedule the pixels, from equal initial noise."""
    folder, pipeline = repository
    given = RUNS[name] | {"prompt": "a robot arm pours coffee.", "negative_prompt": "blurry", "seed": 5}
    if given.get("guidance") == 1.0:
        del given["negative_prompt"]
    given |= {"schedule": schedule} | ({} if schedule == "karras" else {"shift": 10.0})
    width, height = (int(n) for n in given["size"].split("x"))
    media, pixels = {}, clip(7, height, width)
    if given["task"] == "i2v":
        given["image"] = "unused: the pixels are handed over"
        media = {"image": _pil(pixels[0])}
    if given["task"] == "v2v":
        given["video"] = "unused: the pixels are handed over"
        media = {"video": [_pil(frame) for frame in pixels]}

    model = open_model(str(folder))
    request, _ = requests.resolve(given, "diffusers", model.facts, pick_seed=lambda: 0)
    engine = Engine(model, peer.reference_plan(model.config))
    inputs = Inputs(*engine_prompts(engine, request), (engine_pixels(request, pixels),))
    state = engine.start(request, inputs)
    while not state.done:
        engine.step(state)

    result = run_diffusers(pipeline, request, schedule, media, given, output_type="latent")
    assert peer.relative_error(state.latents()[0], result[0]) <= 1e-4
    if schedule == "karras":
        ours = torch.cat(list(engine.finish(state))).float()
        theirs = run_diffusers(pipeline, request, schedule, media, given, output_type="pt").permute(0, 2, 3, 1) * 255
        assert (ours - theirs).abs().max() <= 0.75  # rounding to bytes, and 1e-4 of the range


def engine_prompts(engine, request):
    from cosmos3_core.model.text import SYSTEM_PROMPTS
    from cosmos3_core.scenarios.prompts import negative_text, positive_text

    system = SYSTEM_PROMPTS["video" if request.is_video else "image"] if request.system_prompt else None
    texts = (positive_text(request), negative_text(request) if NEGATIVE in branches_of(request.guidance) else None)
    return tuple([] if text is None else engine.tokenizer.encode(text, system) for text in texts)


def engine_pixels(request, pixels):
    count = request.conditioning_pixel_frames
    if not count:
        return None
    chosen = pixels[-count:] if request.condition_video_keep == "last" else pixels[:count]
    return torch.from_numpy(chosen).permute(3, 0, 1, 2).float() / 127.5 - 1


def _pil(frame):
    from PIL import Image

    return Image.fromarray(frame)


def run_diffusers(pipeline, request, schedule, media, given, output_type):
    from diffusers import UniPCMultistepScheduler

    native = schedule == "native"
    changes = {} if schedule == "karras" else {"use_karras_sigmas": False, "flow_shift": request.shift}
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, **changes)
    if schedule == "karras":
        pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.register_to_config(use_native_flow_schedule=native)
    extra = {}
    if request.task == "v2v":
        extra = dict(
            condition_frame_indexes_vision=request.condition_frame_indexes,
            condition_video_keep=request.condition_video_keep,
        )
    return pipeline(
        prompt=request.prompt,
        negative_prompt=given.get("negative_prompt"),
        num_frames=request.frames,
        height=request.height,
        width=request.width,
        fps=request.fps,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type=output_type,
        **media,
        **extra,
    ).video


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_saved_by_diffusers_loads_here(repository):
    folder, pipeline = repository
    weights = Weights(open_model(str(folder)))
    plan = peer.reference_plan(weights.model.config)
    tower = weights.generation(plan.target(weights.model.config))
    assert torch.equal(
        tower.layers[1].tensors()["finish.down.weight"], pipeline.transformer.layers[1].mlp_moe_gen.down_proj.weight
    )


@pytest.mark.parametrize("shard_bytes", [10**9, 100_000])
def test_a_checkpoint_saved_here_loads_in_diffusers(tmp_path, shard_bytes):
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    module = peer.diffusers_transformer(peer.FAMILIES["edge"], seed=2)
    module.save_config(tmp_path)
    save_tensors(tmp_path, module.state_dict(), max_shard_bytes=shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_bytes == 100_000)
    loaded, report = Cosmos3OmniTransformer.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_items_follow_the_request():
    model = open_model(TINY_MODEL)
    request, _ = requests.resolve(
        {"task": "i2v", "image": "x.png", "prompt": "x", "frames": 13, "size": "112x80"}, "reference", model.facts, int
    )
    assert items_of(request, model.config) == (Item("vision", (48, 4, 5, 7), clean=(0,), fps=24.0),)
