"""Editing a picture: it stands beside what is made, as a clean item of its own, and what is made starts after it."""

from __future__ import annotations

import json
from pathlib import Path

import inputs
import numpy as np
import peer
import published
import pytest
import torch
from PIL import Image
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.memory import Media
from cosmos3_core.model.text import SYSTEM_PROMPTS
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.sizes import auto_size

TINY = ("--model", TINY_MODEL, "--backend", "reference", "--steps", "2")


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    inputs.photograph(160, 90).save("desk.png")
    return tmp_path


# Beside diffusers ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_whole_edit_equals_diffusers_transformer_and_scheduler(tmp_path):
    """No pipeline of diffusers edits. Its transformer on the two items, and its UniPC, are the oracle: the source is
    attended to and has no timestep, the positions of what is made start one after it, both branches see it."""
    from diffusers import UniPCMultistepScheduler
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    folder = published.repository(tmp_path / "model", "nvidia/Cosmos3-Nano")
    model, picture = open_model(str(folder)), np.asarray(inputs.photograph(80, 48))
    media = [Media.of("image", picture)]
    given = {"task": "edit", "prompt": "make the cup red", "negative_prompt": "blurry", "image": media[0].said}
    given |= {"size": "80x48", "seed": 5, "steps": 4}
    request, _ = requests.resolve(given, "reference", model.facts, pick_seed=lambda: 0)
    engine = Engine(model, peer.reference_plan(model.config))
    read = engine.read_inputs(request, media=media)
    state = engine.start(request, read)
    source, noise = (latent.clone() for latent in state.latents())
    while not state.done:
        engine.step(state)

    theirs = Cosmos3OmniTransformer.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    scheduler = UniPCMultistepScheduler.from_config(config | {"use_karras_sigmas": False, "flow_shift": 5.0})
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, 5)[:-1])
    x = noise
    for timestep in scheduler.timesteps:
        full, bare = (_velocity(theirs, ids, source, x, timestep) for ids in (read.prompt, read.negative))
        velocity = bare + request.guidance * (full - bare)
        x = scheduler.step(velocity[None], timestep, x[None], return_dict=False)[0][0]
    assert state.solver.timesteps == tuple(scheduler.timesteps.tolist())
    assert peer.relative_error(state.latents()[1], x) <= 1e-4
    assert torch.equal(state.latents()[0], source), "the picture is what it was, bit for bit"


def _velocity(module, ids, source, x, timestep):
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import get_3d_mrope_ids_vae_tokens

    from cosmos3_core.model.rope import text_positions

    grid, length = (1, -(-x.shape[2] // 2), -(-x.shape[3] // 2)), len(ids)
    count, margin = grid[1] * grid[2], length + 15000
    positions = [
        get_3d_mrope_ids_vae_tokens(*grid, temporal_offset=margin + i, base_fps=24.0, fps=24.0)[0] for i in (0, 1)
    ]
    predicted = torch.arange(length + count, length + 2 * count)
    result = module(
        input_ids=torch.tensor(ids),
        text_indexes=torch.arange(length),
        position_ids=torch.cat([text_positions(length), *positions], dim=1),
        und_len=length,
        sequence_length=length + 2 * count,
        vision_tokens=[source[None], x[None]],
        vision_token_shapes=[grid, grid],
        vision_sequence_indexes=torch.arange(length, length + 2 * count),
        vision_mse_loss_indexes=predicted,
        vision_timesteps=torch.full((count,), float(timestep)),
        vision_noisy_frame_indexes=[torch.tensor([], dtype=torch.long), torch.tensor([0])],
        return_dict=False,
    )
    return result[0][-1].view(x.shape)


# The command line and Python -------------------------------------------------------------------------------------


def test_a_picture_and_a_pictures_name_are_an_edit(desk, run):
    code, out, err = run("make the cup red", *TINY, "--image", "desk.png", "-o", "red.png")
    assert code == 0 and out == "red.png\n", err
    told = json.loads(Path("red.png.json").read_text())
    request, origin = told["request"], told["origin"]
    defaults = {"task": "edit", "frames": 1, "guidance": 6.0, "shift": 5.0, "schedule": "native", "system_prompt": True}
    assert {key: request[key] for key in defaults} == defaults and request["negative_prompt"] == ""
    assert (request["size"], origin["size"]) == ("512x288", "auto512: nearest to the input's 160x90")
    assert told["tokens"]["media"] == 2 * 16 * 9 and list(told["inputs"]) == ["image"]
    assert Image.open("red.png").size == (512, 288) and "loses" not in err
    assert run("--request", "red.png", "-o", "again.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(Image.open("red.png")))


def test_a_plan_of_an_edit_needs_no_picture_and_counts_both(run):
    code, out, err = run("--task", "edit", "--model", "nano", "--dry-run", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["request"]["size"] == "512x512" and told["request"]["steps"] == 35
    assert told["estimate"]["tokens"]["media"] == 2 * 16 * 16


@pytest.mark.parametrize(
    ("source", "size"),
    [((160, 90), (512, 288)), ((90, 160), (288, 512)), ((4000, 3000), (512, 384)), ((600, 401), (512, 320))]
    + [((2000, 30), (512, 32)), ((512, 512), (512, 512))],
)
def test_the_size_is_the_pictures_with_a_longer_side_of_512(source, size):
    assert auto_size("auto512", source, (1, 1)) == size


def test_a_named_size_crops_and_says_so(desk, run):
    code, _, err = run("make it red", *TINY, "--image", "desk.png", "--size", "64x64", "-o", "red.png")
    assert code == 0 and "the picture of 160x90 loses 44% of itself to the size 64x64" in err


def test_the_prompt_has_the_system_prompt_of_editing(desk):
    pipe = cosmos3.load(TINY_MODEL, backend="reference")
    run = pipe.start("make it red", task="edit", image=Image.open("desk.png"), size="64x64")
    engine = run._generation.engine
    text = "make it red. This image is of 64x64 resolution."
    assert run._generation.inputs.prompt == engine.tokenizer.encode(text, SYSTEM_PROMPTS["edit"])


def test_an_edit_is_saved_and_goes_on(desk):
    pipe, picture = cosmos3.load(TINY_MODEL, backend="reference", dtype="float32"), Image.open("desk.png")
    given = {"task": "edit", "image": picture, "size": "64x64", "steps": 3, "seed": 4}
    whole = pipe("make it red", **given)
    run = pipe.start("make it red", **given)
    run.step()
    run.save("half.safetensors")
    assert torch.equal(pipe.resume("half.safetensors", image=picture).run().latents, whole.latents)
    assert whole.latents.shape == (48, 1, 4, 4) == whole.noise.shape
    assert not torch.equal(whole.latents, pipe("make it blue", **given).latents)


BAD = {
    "an edit of nothing": (["--task", "edit"], "there is no input image. Add --image FILE"),
    "an edit into a clip": (["--task", "edit", "--image", "desk.png", "-o", "red.mp4"], "red.mp4"),
    "an edit of several frames": (["--task", "edit", "--image", "desk.png", "--frames", "9"], "an image has one frame"),
    "a clip to edit": (["--task", "edit", "--video", "desk.png"], "editing a picture takes no video"),
    "an edit with frames a second": (
        ["--task", "edit", "--image", "desk.png", "--fps", "12"],
        "has no duration",
    ),
    "an edit that is no picture": (["--task", "edit", "--image", "note.png"], "note.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_error(name, desk, run):
    typed, said = BAD[name]
    Path("note.png").write_text("a note")
    code, out, err = run("make it red", *TINY, *typed, *(() if "-o" in typed else ("-o", "red.png")))
    assert (code, out) == (2, "") and said in err and err.count("error:") == 1, err
    assert not Path("red.png").exists() and not Path("red.mp4").exists()


@pytest.mark.parametrize("name", ["nvidia/Cosmos3-Super-Text2Image-4Step", "nvidia/Cosmos3-Super-Image2Video-4Step"])
def test_a_distilled_model_names_one_that_edits(name, run):
    code, _, err = run("--task", "edit", "--model", name, "--dry-run")
    assert code == 2 and "is distilled for t2i and i2v only" in err and "Use --model nvidia/Cosmos3-Nano" in err
