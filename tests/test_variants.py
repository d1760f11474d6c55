"""Edge, the distilled models and the others that are published: what each is, whole runs beside diffusers 0.42.1, and
what each refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import peer
import published
import pytest
import torch
from command import cosmos3

from cosmos3_core.checkpoint.model import Weights, describe, open_model
from cosmos3_core.contract import InputError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.memory import Media
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.families import TASKS
from cosmos3_core.scenarios.variants import able, check_able, checkpoints

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
    from diffusers import UniPCMultistepScheduler

    pipeline = peer.pipeline_of(folder(EDGE))
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


# What each refuses -----------------------------------------------------------------------------------------------

CLIP = ("--size", "64x64", "--frames", "9")
DISTILLED_ONLY = "is distilled for t2i and i2v only. Use --model nvidia/Cosmos3-Nano or nvidia/Cosmos3-Super"
SETTLED = "is distilled: its steps and guidance are fixed"
TRANSFER = ("--depth", "a.png", *CLIP)
REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "transfer on Edge": (EDGE, TRANSFER, "was not trained for it, but for t2i, "),
    "transfer on Edge names who can": (EDGE, TRANSFER, "Use --model nvidia/Cosmos3-Nano or nvidia/Cosmos3-Super"),
    "transfer, distilled": (CLIPS, TRANSFER, DISTILLED_ONLY),
    "t2v, distilled": (PICTURES, ("-o", "out.mp4", *CLIP), DISTILLED_ONLY),
    "v2v, distilled": (CLIPS, ("--video", "c.mp4", *CLIP), DISTILLED_ONLY),
    "keyframes, distilled": (CLIPS, ("--keyframe", "0=a.png", *CLIP), DISTILLED_ONLY),
    "extend, distilled": (CLIPS, ("--extend", "c.mp4", *CLIP), DISTILLED_ONLY),
    "edit, distilled": (PICTURES, ("--image", "a.png", "-o", "out.png"), DISTILLED_ONLY),
    "steps, distilled": (PICTURES, ("--task", "t2i", "--steps", "8"), SETTLED),
    "guidance, distilled": (PICTURES, ("--task", "t2i", "--guidance", "4"), f"{SETTLED}. Drop guidance"),
    "a negative prompt, distilled": (CLIPS, ("--image", "a.png", "--negative-prompt", "blur", *CLIP), SETTLED),
    "a shift, distilled": (CLIPS, ("--image", "a.png", "--shift", "3", *CLIP), SETTLED),
    "another schedule, distilled": (PICTURES, ("--task", "t2i", "--set", "schedule=native"), SETTLED),
    "an interval, distilled": (PICTURES, ("--task", "t2i", "--set", "guidance_interval=[1, 9]"), SETTLED),
    "the distilled schedule on Edge": (EDGE, ("--set", "schedule=distilled", *CLIP), "is not a distilled model"),
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A published checkpoint without weights: who reads one finds none."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = published.repository(tmp_path_factory.mktemp("bare"), name, weights=False)
        return made[name]

    return get


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_checkpoint_cannot_do_is_one_error_before_loading(case, bare, run, tmp_path):
    name, typed, said = REFUSED[case]
    inputs.photograph(64, 64).save("a.png")
    inputs.clip(Path("c.mp4"))
    code, out, err = run("a cup", "--model", bare(name), "--backend", "reference", *typed)
    assert (code, out) == (2, "") and said in " ".join(err.split()), err
    assert err.count("error:") == 1 and "weights" not in err and "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "c.mp4"}


@pytest.mark.parametrize(
    ("name", "typed", "plan"),
    [
        (EDGE, (), {"task": "t2v", "size": "832x480", "frames": 121, "guidance": 5.0, "shift": 3.0, "steps": 35}),
        (EDGE, ("--task", "t2i"), {"size": "640x640", "guidance": 7.0, "schedule": "native"}),
        (EDGE, ("--task", "v2v", "--profile", "vllm-omni"), {"size": "832x480", "guidance": 5.0, "shift": 3.0}),
        (EDGE, ("--task", "t2i", "--profile", "vllm-omni"), {"size": "640x640", "guidance": 7.0}),
        (PICTURES, (), {"task": "t2i", "size": "1024x1024", "steps": 4, "guidance": 1.0, "schedule": "distilled"}),
        (CLIPS, ("--task", "i2v"), {"size": "832x480", "frames": 189, "fps": 24.0, "steps": 4, "negative_prompt": ""}),
        ("nvidia/Cosmos3-Super-Text2Image", (), {"task": "t2i", "size": "1024x1024", "steps": 50, "guidance": 4.0}),
        ("nvidia/Cosmos3-Super-Image2Video", ("--task", "i2v"), {"size": "1280x720", "shift": 10.0, "guidance": 6.0}),
    ],
)
def test_defaults_are_the_checkpoints_own(name, typed, plan, run):
    code, out, err = run("--model", name, *typed, "--dry-run", "--json")
    assert code == 0 or "does not fit" in err or json.loads(out)["estimate"]["fits"] is False, err
    request = json.loads(out)["request"]
    assert {key: request[key] for key in plan} == plan


def test_advice_begins_with_checkpoints_for_every_task():
    assert able(TASKS["transfer"])[:2] == ["nvidia/Cosmos3-Nano", "nvidia/Cosmos3-Super"]
    assert able(TASKS["t2i"], ["sound"])[:2] == ["nvidia/Cosmos3-Nano", "nvidia/Cosmos3-Super"]
    assert not [name for name in able(TASKS["t2v"], ["sound"]) if "Edge" in name or "4Step" in name]
    assert "4Step" not in "".join(able(TASKS["transfer"]))


def test_a_head_that_is_not_there_is_named():
    edge = describe(EDGE).facts
    with pytest.raises(InputError, match="task t2v with sound: nvidia/Cosmos3-Edge has no sound head"):
        check_able(TASKS["t2v"], edge, ["sound"])
    check_able(TASKS["t2v"], edge, ["action"])


def test_capabilities_say_what_a_checkpoint_cannot_do_and_who_can(capsys, monkeypatch):
    code, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", "edge", "--json")
    told = json.loads(out)
    assert code == 0 and list(told["cannot"]) == ["transfer"] and "transfer" not in told["tasks"]
    assert told["cannot"]["transfer"]["instead"][0] == "nvidia/Cosmos3-Nano"
    assert told["model"]["trained"]["frames"] == {"256": [50, 150], "480": [50, 150]}
    assert told["model"]["modalities"] == ["vision", "action"]


@pytest.mark.parametrize("name", [name for name, row in checkpoints().items() if row.preset == "droid"])
def test_a_policy_of_droid_is_asked_as_its_robots_ask_it(name):
    """Section 4.11 of docs/model.md: the command line's defaults are those of `cosmos3.Policy`."""
    from cosmos3.policy import presets
    from cosmos3_core.scenarios.defaults import defaults

    wanted = dict(presets()["droid"]["fields"])
    wanted["frames"] = wanted.pop("chunk") + 1
    for profile in ("reference", "vllm-omni"):
        values, origin = defaults("policy", profile, describe(name).facts)
        shared = {key: value for key, value in wanted.items() if "droid" in origin.get(key, "")}
        assert shared.keys() >= {"frames", "steps", "guidance", "shift", "fps", "canvas", "view", "view_detail"}
        assert {key: values[key] for key in shared} == shared
        assert (values["domain"], values["action_space"]) == (wanted["domain"], wanted["action_space"])


def test_another_domain_than_a_policy_was_trained_for_has_its_own_layout():
    import cosmos3

    for given, wanted in (
        ({"domain": "bridge_orig_lerobot"}, ("bridge_orig_lerobot", "arm", 10)),
        ({}, ("droid_lerobot", "joints", 8)),
    ):
        planned = cosmos3.plan(model="nvidia/Cosmos3-Nano-Policy-DROID", task="policy", backend="reference", **given)
        assert tuple(planned.request[name] for name in ("domain", "action_space", "action_width")) == wanted
