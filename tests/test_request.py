"""Requests: what each scenario, profile and model defaults to, what is refused and in which words, and replay."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TINY

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract.errors import InputError
from cosmos3_core.model.text import SYSTEM_PROMPTS, system_prompt_of
from cosmos3_core.sampling.guidance import guided
from cosmos3_core.scenarios.defaults import PROFILES, profile_source, read_defaults
from cosmos3_core.scenarios.facts import ModelFacts
from cosmos3_core.scenarios.families import TASKS
from cosmos3_core.scenarios.faults import RequestError
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.scenarios.request import Request, infer_task, resolve
from cosmos3_core.scenarios.sizes import TIERS, check_size, parse_size

VARIANTS = ("base", "edge", "distilled")
INPUTS: dict[str, dict[str, Any]] = {
    "i2v": {"image": "in.png"},
    "edit": {"image": "in.png"},
    "v2v": {"video": "in.mp4"},
    "extend": {"extend": "in.mp4"},
    "keyframes": {"keyframe": {"0": "in.png"}},
    "transfer": {"edge": "in.mp4", "depth": "in.png"},
}
ACTIONS = {"domain": "bridge_orig_lerobot"}
INPUTS |= dict.fromkeys(("policy", "forward-dynamics"), INPUTS["i2v"] | ACTIONS)
INPUTS |= dict.fromkeys(("inverse-dynamics", "video-policy"), INPUTS["v2v"] | ACTIONS)
INPUTS["forward-dynamics"] = INPUTS["policy"] | {"actions": "actions.npy"}
ROWS = [
    (task, profile, variant)
    for task, profile, variant in itertools.product(TASKS, PROFILES, VARIANTS)
    if variant in TASKS[task].variants
]


def facts(
    variant: str = "base", system_prompt: bool = True, negative: str | None = '{"subjects": "worst"}'
) -> ModelFacts:
    return ModelFacts(f"some/{variant}", variant, system_prompt, negative, 4 if variant == "distilled" else None)


def ask(task: str, profile: str = "reference", variant: str = "base", /, **given: Any):
    """(request, origin) of a prompt with `given`, and the input that the task needs. Chance picks seed 7."""
    given = {"task": task, "prompt": "A cat.", **INPUTS.get(task, {}), **given}
    return resolve(given, profile, facts(variant), pick_seed=lambda: 7)


def refused(*args: Any, **given: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        ask(*args, **given)
    error = raised.value
    assert error.asked and error.found and error.next_step
    return error


# Defaults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "profile", "variant"), ROWS)
def test_every_row_resolves_to_a_whole_request(task, profile, variant):
    request, origin = ask(task, profile, variant)
    assert all(hasattr(request, field.name) for field in fields(Request))
    assert set(origin) == set(FIELDS)
    assert request.task == task and request.prompt == "A cat."
    assert (request.frames == 1) == TASKS[task].single and request.frames % 4 == 1
    assert request.width % 16 == request.height % 16 == 0
    assert request.fps == (5.0 if profile == "sglang" and request.domain else 24.0)
    assert request.seed == (42 if profile == "vllm-omni" and not TASKS[task].single else 7), (
        "its pictures have a random seed"
    )
    if variant == "distilled":
        assert (request.steps, request.guidance, request.schedule) == (4, 1.0, "distilled")
        assert request.negative_prompt == "" and request.guidance_interval is None
    else:
        assert (request.guidance > 1 or request.domain) and request.schedule in ("native", "flow", "karras")


VIDEO = {"width": 1280, "height": 720, "steps": 35, "guidance_interval": None}
# The cells of the table in docs/model.md, section 4.12, that name a profile and a variant.
TABLE: dict[tuple[str, str, str], dict[str, Any]] = {
    ("t2i", "reference", "base"): {"steps": 50, "guidance": 4.0, "guidance_interval": None, "shift": 3.0},
    ("t2i", "diffusers", "base"): {"width": 1280, "height": 720, "steps": 35, "guidance": 6.0, "schedule": "karras"},
    ("t2i", "vllm-omni", "base"): {"width": 1024, "height": 1024, "steps": 50, "guidance": 7.0, "shift": 3.0},
    ("t2i", "vllm-omni", "edge"): {"guidance": 7.0, "guidance_interval": (400.0, 1000.0)},
    ("t2i", "sglang", "base"): {"guidance": 4.0, "shift": 3.0, "guidance_interval": (400.0, 1000.0)},
    ("t2i", "sglang", "edge"): {"guidance": 7.0, "shift": 3.0},
    ("t2v", "reference", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "native"},
    ("t2v", "reference", "edge"): {"frames": 121, "steps": 35},
    ("t2v", "diffusers", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "schedule": "karras"},
    ("t2v", "diffusers-docs", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "flow"},
    ("t2v", "vllm-omni", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "native"},
    ("t2v", "vllm-omni", "edge"): {"guidance": 5.0, "shift": 3.0},
    ("t2v", "sglang", "base"): VIDEO | {"frames": 81, "guidance": 4.0, "shift": 10.0, "schedule": "native"},
    ("t2v", "sglang", "edge"): {"guidance": 5.0, "shift": 3.0},
    ("i2v", "reference", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "native"},
    ("i2v", "diffusers", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "schedule": "karras"},
    ("i2v", "diffusers-docs", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "schedule": "karras"},
    ("i2v", "vllm-omni", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "native"},
    ("i2v", "vllm-omni", "edge"): {"guidance": 5.0, "shift": 3.0},
    ("i2v", "sglang", "base"): VIDEO | {"guidance": 4.0, "shift": 10.0, "schedule": "native"},
    ("v2v", "reference", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "native"},
    ("v2v", "diffusers", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "schedule": "karras"},
    ("v2v", "diffusers-docs", "base"): VIDEO | {"frames": 189, "guidance": 6.0, "shift": 10.0, "schedule": "flow"},
    ("v2v", "vllm-omni", "base"): VIDEO | {"guidance": 6.0, "shift": 10.0, "system_prompt": True},
    ("v2v", "sglang", "base"): VIDEO | {"guidance": 4.0, "shift": 10.0},
    # Section 1.4: the distilled image-to-video model is one of tier 480, the distilled text-to-image model of tier 768.
    ("i2v", "reference", "distilled"): {"width": 832, "height": 480},
    ("t2i", "reference", "distilled"): {"width": 1024, "height": 1024},
}


@pytest.mark.parametrize(("task", "profile", "variant"), TABLE)
def test_defaults_are_those_of_the_specification(task, profile, variant):
    request, _ = ask(task, profile, variant)
    expected = TABLE[task, profile, variant]
    assert {key: getattr(request, key) for key in expected} == expected


# The same table: how each engine treats text and pictures.
TREATMENT = {
    "reference": ("same", True, True, True, "bilinear", "crop", 0),
    "diffusers": ("inverse", True, True, False, "bilinear", "stretch", 0),
    "diffusers-docs": ("inverse", True, True, False, "bilinear", "stretch", 0),
    "vllm-omni": ("inverse", False, False, True, "lanczos", "crop", 4096),
    "sglang": ("none", True, False, False, "lanczos", "crop", 4094),
}
TREATMENT_OF_TRANSFER = {
    "diffusers": ("inverse", False, False, False, "bilinear", "stretch", 0),
    "diffusers-docs": ("inverse", False, False, False, "bilinear", "stretch", 0),
    "vllm-omni": ("same", True, True, True, "bilinear", "crop", 4096),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("task", TASKS)
def test_each_profile_treats_text_and_pictures_as_its_engine_does(task, profile):
    request, _ = ask(task, profile)
    treatment = TREATMENT[profile]
    if request.domain:  # an action's input is placed on a canvas
        treatment = (*treatment[:4], "diffusers" if profile.startswith("diffusers") else "bicubic", *treatment[5:])
    found = (
        request.negative_metadata,
        request.duration_template,
        request.resolution_template,
        request.json_metadata,
        request.image_filter,
        request.video_fit,
        request.max_text_tokens,
    )
    if task == "transfer":
        treatment = TREATMENT_OF_TRANSFER.get(profile, treatment)
    assert found == ((*treatment[:4], "lanczos", *treatment[5:]) if task == "edit" else treatment)
    assert request.condition_frame_indexes == (0, 1)
    assert request.condition_video_keep == ("last" if task in ("extend", "video-policy") else "first")
    assert profile_source(profile)


ENDS = {
    "reference": "open",
    "diffusers": "closed",
    "diffusers-docs": "closed",
    "vllm-omni": "closed",
    "sglang": "closed",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_guidance_is_what_the_engine_does(profile):
    """The framework's interval is open, and it guides below 1 too; vllm-omni and sglang guide above 1 alone."""
    request, origin = ask("t2i", profile, guidance=0.5)
    above_one = profile in ("vllm-omni", "sglang")
    assert request.guidance == (1.0 if above_one else 0.5)
    assert origin["guidance"] == (f"user (0.5); profile {profile} has no guidance up to 1" if above_one else "user")
    given = {"guidance": 3.0, "guidance_interval": [400, 1000]}
    request, _ = ask("t2i", profile, **given)
    assert (request.guidance, request.interval_ends) == (3.0, ENDS[profile])
    assert guided(3.0, request.guidance_interval, 400, request.interval_ends) is (ENDS[profile] == "closed")
    with pytest.raises(InputError, match="negative_prompt.*no negative branch"):
        ask("t2i", "sglang", guidance=0.5, negative_prompt="blur")


@pytest.mark.parametrize(
    ("karras", "native", "found"),
    [(True, True, "karras"), (True, False, "karras"), (False, True, "native"), (False, False, "flow")],
)
def test_diffusers_schedule_is_what_the_checkpoint_says(tmp_path, karras, native, found):
    """While Karras' sigmas are on, diffusers drops the native grid."""
    scheduler = {"use_karras_sigmas": karras, "flow_shift": 8.0}
    edits = {"scheduler/scheduler_config.json": scheduler, "model_index.json": {"use_native_flow_schedule": native}}
    model = open_model(checkpoint(tmp_path / "model", edits))
    request, origin = resolve({"task": "t2v", "prompt": "x"}, "diffusers", model.facts, lambda: 0)
    assert (request.schedule, request.shift) == (found, 1.0 if karras else 8.0)
    assert origin["schedule"].startswith("checkpoint")


def test_edge_has_its_native_grid_in_the_examples_of_diffusers():
    assert [ask("t2v", "diffusers-docs", variant)[0].schedule for variant in ("base", "edge")] == ["flow", "native"]


def test_the_system_prompt_has_the_spelling_of_its_engine():
    wordings = {profile: ask("t2i", profile, system_prompt=True)[0].system_prompt_text for profile in PROFILES}
    assert wordings == dict.fromkeys(PROFILES, "trained") | {"sglang": "corrected"}
    assert system_prompt_of("image", "corrected") == (
        "You are a helpful assistant who will generate images from a given prompt."
    )
    assert system_prompt_of("video", "trained") == SYSTEM_PROMPTS["video"]
    with pytest.raises(InputError, match="there is no system_prompt"):
        ask("t2i", "reference", system_prompt_text="corrected")


def test_the_framework_has_one_size_of_2_to_3():
    request, _ = ask("t2v", "reference", size="480p:2:3")
    assert (request.width, request.height) == (512, 768)
    with pytest.raises(InputError, match="no aspect ratio 2:3"):
        ask("t2v", "reference", size="720p:2:3")


@pytest.mark.parametrize("default", [True, False])
def test_the_system_prompt_follows_the_checkpoint_where_the_engine_does(default):
    found = {}
    for task, profile in itertools.product(TASKS, PROFILES):
        given = {"task": task, "prompt": "A cat.", **INPUTS.get(task, {})}
        request, _ = resolve(given, profile, facts(system_prompt=default), pick_seed=lambda: 0)
        found[profile, task] = request.system_prompt
    own = [found.pop((profile, task)) for profile, task in itertools.product(PROFILES, ("transfer", "edit"))]
    assert all(own), "they have a system prompt of their own"
    assert {value for (profile, _), value in found.items() if profile == "diffusers"} == {default}
    assert not any(value for (profile, _), value in found.items() if profile in ("reference", "sglang"))
    with_prompt = [task for (profile, task), value in found.items() if profile == "vllm-omni" and value]
    assert with_prompt == ["v2v", "extend", "keyframes"]


@pytest.mark.parametrize("variant", ["base", "edge"])
def test_the_stock_negative_prompt_is_for_videos_of_the_reference_profile(variant):
    tasks = [name for name, task in TASKS.items() if variant in task.variants]
    for task, profile in itertools.product(tasks, PROFILES):
        stock = profile == "reference" and not TASKS[task].single and "action" not in TASKS[task].latents
        assert ask(task, profile, variant)[0].negative_prompt == ('{"subjects": "worst"}' if stock else "")


def test_an_empty_stock_negative_prompt_is_no_failure():
    given = {"task": "t2v", "prompt": "A cat."}
    request, origin = resolve(given, "reference", facts(negative=None), pick_seed=lambda: 0)
    assert request.negative_prompt == "" and "checkpoint has no file" in origin["negative_prompt"]


# Provenance ------------------------------------------------------------------------------------------------------


def test_every_value_says_where_it_came_from():
    _, origin = ask("v2v", steps=9, size="320x192", condition_frame_indexes=[0], guidance=6.0)
    assert set(origin) == set(FIELDS)
    users = {"task", "prompt", "video", "steps", "size", "condition_frame_indexes"}
    assert {key for key, source in origin.items() if source == "user"} == users
    assert origin["system_prompt"] == "profile reference"
    assert origin["negative_prompt"] == "checkpoint (assets/negative_prompt.json)"
    assert origin["seed"] == "random"
    rest = set(FIELDS) - users - {"system_prompt", "negative_prompt", "seed"}
    others = {"image", "audio", "tile", *(name for name in rest if "v2v" not in FIELDS[name].tasks)}
    others -= {name for name in others if not origin[name] == "not given"}
    rest -= others
    files = {"image", "audio", "keyframe", "extend", "edge", "blur", "depth", "seg", "wsm", "actions"}
    assert others >= files | {"tile", "control_weights", "domain"}
    assert {origin[key] for key in rest} == {"profile reference"}, "6.0 is the default: repeating it is no change"


def test_a_choice_of_the_users_overrides_each_source():
    request, origin = ask("t2v", seed=11, system_prompt=True, negative_prompt="blurry")
    assert (request.seed, request.system_prompt, request.negative_prompt) == (11, True, "blurry")
    assert origin["seed"] == origin["system_prompt"] == origin["negative_prompt"] == "user"
    _, origin = ask("t2v", "vllm-omni")
    assert origin["seed"] == "profile vllm-omni" == origin["system_prompt"]


@pytest.mark.parametrize("chance", [-1, "random"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_of_minus_one_is_left_to_chance(profile, chance):
    request, origin = ask("t2v", profile, seed=chance)
    assert (request.seed, origin["seed"]) == (7, "random"), "also where the profile has a seed of its own"


@pytest.mark.parametrize("word", ["text2video", "text-to-video", "text_to_video", "Text2World", "txt2vid", "T2V"])
def test_a_task_goes_by_its_other_names(word):
    assert ask(word)[0] == ask("t2v")[0]


def test_lists_can_be_typed_without_brackets():
    assert ask("v2v", condition_frame_indexes="0,1")[0].condition_frame_indexes == (0, 1)
    assert ask("t2v", guidance_interval="(400, 1000)")[0].guidance_interval == (400, 1000)


def test_a_profile_like_another_differs_in_its_own_rows_only():
    """The two schedules that users of diffusers meet: the checkpoint's, and the flow sigmas of the examples."""
    for task in TASKS:
        plain, docs = (ask(task, profile)[0] for profile in ("diffusers", "diffusers-docs"))
        found = {key for key, value in vars(plain).items() if getattr(docs, key) != value}
        of_actions = {"schedule", "shift", "guidance", "system_prompt"} if plain.domain else set()
        assert found == ({"schedule", "shift"} if task in ("t2v", "v2v", "extend", "keyframes") else of_actions)
        assert plain.schedule == ("native" if task == "edit" else "karras"), "no engine but NVIDIA's edits"


# Replay ----------------------------------------------------------------------------------------------------------


def replay(request: Request, profile: str, variant: str) -> Request:
    """The request from its own JSON, where chance would choose another seed."""
    given = json.loads(json.dumps(request.to_json()))
    assert set(given) == set(FIELDS)
    return resolve(given, profile, facts(variant), pick_seed=lambda: 8)[0]


@pytest.mark.parametrize(("task", "profile", "variant"), ROWS)
def test_a_request_given_back_is_the_same_request(task, profile, variant):
    changes: list[dict[str, Any]] = [{}, {"prompt": '{"a": "\u00e9"}', "size": [48, 64], "tile": None}]
    if "action" in TASKS[task].latents:
        changes = [{}, {"prompt": '{"a": 1}', "size": "320x256", "canvas": "320x256", "tile": None, "fps": 10}]
        changes += [{"guidance": 2.0, "negative_prompt": "no"}, {"action_prompt": "text", "duration_template": False}]
        changes += [{"state": [0.5] * 10, "history": [[0.1] * 10] * 3}, {"chunk": 8}]
        changes += [{"domain": "libero", "action_width": 7}, {"action_stats": "stats.json"}]
    elif variant != "distilled":
        changes += [
            {"guidance": 1.0},
            {"guidance": 1},
            {"schedule": "karras"},
            {"guidance_interval": [100, 200.5], "negative_prompt": "no"},
            {"guidance_interval": None},
            {"steps": 3.0, "schedule": "flow", "shift": 2, "seed": 2**64 - 1},
            {"system_prompt": False, "resolution_template": True, "negative_metadata": "none", "json_metadata": False},
        ]
    if task == "v2v":
        changes.append({"condition_frame_indexes": [0, 3], "condition_video_keep": "last", "video_fit": "stretch"})
    if task in ("i2v", "v2v"):
        changes += [{"image_filter": "lanczos"}, {"image_filter": "bilinear"}]
    if not TASKS[task].single and "action" not in TASKS[task].latents:
        changes.append({"fps": 12, "frames": 21, "duration_template": False, "tile": 64})
    for change in changes:
        request, _ = ask(task, profile, variant, **change)
        assert replay(request, profile, variant) == request, change


def test_random_requests_given_back_are_the_same():
    """Whatever is accepted can be repeated."""
    dice = random.Random(0)
    choices: dict[str, Any] = {
        "size": ["256p", "480p:9:16", "64x96", [112, 80]],
        "steps": [1, 4, 50],
        "guidance": [0, 1, 1.0, 4.5],
        "guidance_interval": [None, [], [0, 1000], [400, 999]],
        "schedule": ["native", "flow", "karras"],
        "shift": [1, 3.0, 10],
        "seed": [0, 5, 2**64 - 1],
        "negative_prompt": ["", "bad"],
        "negative_metadata": ["none", "same", "inverse"],
        "system_prompt": [True, False],
        "duration_template": [True, False],
        "resolution_template": [True, False],
        "json_metadata": [True, False],
        "image_filter": ["bilinear", "lanczos"],
        "video_fit": ["crop", "stretch"],
        "video_fps": ["resample", "keep"],
        "condition_frame_indexes": [[0], [0, 1], [1, 2]],
        "condition_video_keep": ["first", "last"],
        "max_text_tokens": [0, 77],
        "tile": [None, 64, 256],
        "frames": [1, 5, 17],
        "fps": [24, 10.0, 23.976],
    }
    accepted = 0
    for _ in range(2000):
        task, profile, variant = dice.choice(ROWS)
        keys = dice.sample(sorted(choices), dice.randint(0, 4))
        try:
            request, origin = ask(task, profile, variant, **{key: dice.choice(choices[key]) for key in keys})
        except InputError:
            continue
        accepted += 1
        assert set(origin) == set(FIELDS)
        assert replay(request, profile, variant) == request
    assert accepted > 300


# Keys and values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "hint"), [("promt", "prompt"), ("frame", "frames"), ("guidence", "guidance"), ("stesp", "steps")]
)
def test_an_unknown_key_suggests_the_nearest(key, hint):
    error = refused("t2v", **{key: 1})
    assert repr(key) in error.asked and error.next_step == f"Did you mean {hint}?"


def test_an_unknown_key_like_no_other_lists_all():
    assert all(key in refused("t2v", qqqq=1).next_step for key in FIELDS)


def test_width_and_height_are_said_as_size():
    assert {"width", "height"}.isdisjoint(FIELDS) and "size" in FIELDS
    refused("t2v", width=64)


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("prompt", ["", " \n", None, 5, "a\0b", "a\ud800b", "x" * 100_001]),
        ("negative_prompt", [None, 5, "\0", "x" * 100_001]),
        ("frames", [0, -3, 5.5, "5", True, None, 4005, math.nan, math.inf, 10**400]),
        ("fps", [0, 0.5, 241, "24", None, math.nan]),
        ("steps", [0, 1001, 2.5, True, "4"]),
        ("guidance", [-0.1, 20.1, math.inf, math.nan, "6"]),
        ("guidance_interval", [5, [5], [1, 2, 3], [400, 300], [-1, 5], [0, 1001], ["a", "b"], "400", "4,x"]),
        ("schedule", ["linear", None, 5, []]),
        ("shift", [0, -1, 101, "3"]),
        ("seed", [-2, 2**64, 1.5, "1", 10**400]),
        ("system_prompt", [1, "yes", None]),
        ("duration_template", [0, "no"]),
        ("resolution_template", [0]),
        ("json_metadata", ["true"]),
        ("negative_metadata", ["opposite", None]),
        ("max_text_tokens", [-1, 100_001, 0.5, None]),
        ("tile", [0, 63, 100, 32, 64.5, 4160, True, "64", []]),
        ("image", [5, [], {}, "a\0b"]),
        ("video", [5, "a\0b"]),
        ("size", ["big", "", None, 5, [64], [64, 64, 64], ["64", "64"], [64.0, 64.0], {}, "64x", "-64x64"]),
        ("task", ["t3v", None, ["t2v"], {}, 5]),
    ],
)
def test_a_bad_value_is_named(key, bad):
    for value in bad:
        error = refused("t2v", **{key: value})
        assert key in str(error) or (key == "frames" and "frames" in error.asked), str(error)


def test_no_junk_makes_a_traceback():
    """Any JSON in any field: a request or an InputError. Each row takes a quarter of it, the next row the next."""
    junk: list[Any] = [None, True, False, 0, 1, -1, 5, 1.5, math.inf, math.nan, 10**400, "", "x", "5", "\0", "\ud800"]
    junk += [[], [[]], [0], [1, 2], [0, [1]], ["a", "b"], [math.nan, 1], {}, {"a": 1}, "9" * 5000 + "x64", "\u0663x16"]
    for n, (task, profile, variant) in enumerate(ROWS):
        for key, value in itertools.product(FIELDS, junk[n % 4 :: 4]):
            try:
                ask(task, profile, variant, **{key: value})
            except InputError as error:
                assert error.asked and error.found and error.next_step


def test_there_are_the_named_profiles_only():
    assert all(
        name in refused("t2v", "comfyui").next_step for name in ("reference", "diffusers", "vllm-omni", "sglang")
    )


def test_a_prompt_is_needed():
    with pytest.raises(InputError, match="without a prompt"):
        resolve({"task": "t2v"}, "reference", facts(), pick_seed=lambda: 0)


def test_all_faults_come_together():
    """Those of the fields themselves; then what the model and the values together do not allow."""
    error = refused("i2v", "comfyui", image=None, frames=8, size="99x99", stesp=4, seed=-2)
    assert isinstance(error, RequestError)
    asked = ["profile 'comfyui'", "8 frames", "size '99x99'", "request field 'stesp'", "seed = -2", "task i2v"]
    assert [fault.asked for fault in error.faults] == asked
    first, *lines = str(error).split("\n  ")
    assert first == "6 faults in one request:" and lines == [str(fault) for fault in error.faults]
    error = refused("t2v", guidance=1, negative_prompt="x", image_filter="lanczos", schedule="distilled")
    assert [fault.next_step for fault in error.faults] == ["Drop schedule", "Drop negative_prompt", "Drop image_filter"]
    error = refused("t2i", "reference", "distilled", steps=5, guidance=2)
    assert [fault.next_step for fault in error.faults] == ["Drop steps", "Drop guidance"]
    with pytest.raises(InputError) as raised:
        resolve({"image": "a", "video": "b", "fps": 0}, "reference", facts(), pick_seed=lambda: 0)
    assert [fault.asked for fault in raised.value.faults] == [
        "`image` with `video`",
        "fps = 0",
        "a run without a prompt",
    ]


DEFAULTS = (Path(__file__).parents[1] / "cosmos3_core/scenarios/defaults.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "asked", "found"),
    [
        ("fps = 24.0\n", "", "task t2v, profile reference", "there is no default for fps"),
        ("[t2v.sglang]\n", "[t2w.sglang]\n", "task t2v, profile sglang", "no default for frames, guidance, negative_"),
        ("shift = 10.0\n", "shif = 10.0\n", "task t2v, profile reference", "there is no default for shift"),
        ("guidance = 7.0\n", "guidance = 7.0\nguidence = 7\n", "task t2i, profile vllm-omni", "the name guidence"),
        ("edge = { ", "edge = { stesp = 5, ", "task t2i, profile reference", "the name stesp"),
    ],
)
def test_a_default_that_is_missing_or_misspelt_is_named(old, new, asked, found):
    read_defaults(DEFAULTS)
    with pytest.raises(InputError) as raised:
        read_defaults(DEFAULTS.replace(old, new, 1))
    assert asked in raised.value.asked and found in raised.value.found


# Frames and sizes ------------------------------------------------------------------------------------------------


def test_eight_frames_name_five_and_nine():
    error = refused("t2v", frames=8)
    assert error.asked == "8 frames" and error.next_step == "The nearest are 5 and 9"


def test_frame_errors_name_the_nearest_valid_numbers():
    dice = random.Random(1)
    for frames in dice.sample(range(2, 4001), 400):
        if frames % 4 == 1:
            assert ask("t2v", frames=frames)[0].frames == frames
            continue
        named = [int(n) for n in re.findall(r"\d+", refused("t2v", frames=frames).next_step)]
        assert named == [frames - (frames - 1) % 4, frames - (frames - 1) % 4 + 4]
        assert named[0] < frames < named[1]
        for valid in named:
            assert ask("t2v" if valid > 1 else "t2i", frames=valid)[0].frames == valid


def test_size_errors_name_the_nearest_valid_size():
    valid = range(32, 4097, 16)
    dice = random.Random(2)
    for _ in range(500):
        width, height = (dice.choice([dice.randrange(1, 5000), dice.choice(valid)]) for _ in range(2))
        if width in valid and height in valid:
            request, _ = ask("t2v", size=f"{width}x{height}")
            assert (request.width, request.height) == (width, height)
            continue
        error = refused("t2v", size=f"{width}x{height}")
        named = re.fullmatch(r"The nearest is (\d+)x(\d+)", error.next_step)
        for asked, found in zip((width, height), map(int, named.groups()), strict=True):
            assert found in valid
            assert abs(found - asked) == min(abs(n - asked) for n in valid)


SIZES = {
    "256": [(256, 256), (320, 256), (256, 320), (320, 192), (192, 320)],
    "480": [(640, 640), (736, 544), (544, 736), (832, 480), (480, 832)],
    "704": [(960, 960), (1088, 832), (832, 1088), (1280, 704), (704, 1280)],
    "720": [(960, 960), (1104, 832), (832, 1104), (1280, 720), (720, 1280)],
    "768": [(1024, 1024), (1184, 880), (880, 1184), (1360, 768), (768, 1360)],
}
ASPECTS = ("1:1", "4:3", "3:4", "16:9", "9:16")


def test_the_tiers_are_those_of_the_specification():
    tiers = {tier: dict(zip(ASPECTS, sizes, strict=True)) for tier, sizes in SIZES.items()}
    assert TIERS == tiers | {"480": tiers["480"] | {"2:3": (512, 768)}}


@pytest.mark.parametrize("tier", SIZES)
def test_tiers_can_be_typed_in_every_form(tier):
    for aspect, size in zip(ASPECTS, SIZES[tier], strict=True):
        for text in (f"{tier}p:{aspect}", f"{tier}:{aspect}", f" {tier}p:{aspect.replace(':', ',')} "):
            assert parse_size(text, "1:1") == size
        assert parse_size(f"{tier}p:{aspect.replace(':', '/')}", "1:1") == size
        assert parse_size(tier, aspect) == parse_size(f"{tier}p", aspect) == size
    assert ask("t2v", size=tier)[0].width == SIZES[tier][3][0], "a video's tier is 16:9"
    assert ask("t2i", size=f"{tier}p")[0].width == SIZES[tier][0][0], "a picture's tier is square"


OTHERS = ["1280*720", "(1280, 720)", "[1280,720]", "1280,720", "720P", "720_16_9", "720p:16,9"]
"""As vllm-omni, Python, NIM and the framework write it."""


@pytest.mark.parametrize(
    "text", ["1280x720", "1280X720", "1280×720", " 1280 x 720 ", [1280, 720], (1280, 720), *OTHERS]
)
def test_pixels_can_be_typed_in_every_form(text):
    request, _ = ask("t2v", size=text)
    assert (request.width, request.height) == (1280, 720)


def test_size_errors_list_what_there_is():
    assert refused("t2v", size="1080p").next_step == "Tiers are 256p, 480p, 704p, 720p, 768p"
    assert refused("t2v", size="720p:21:9").next_step == "Aspect ratios are 1:1, 4:3, 3:4, 16:9, 9:16"
    assert "1280x720" in refused("t2v", size="huge").next_step
    assert check_size(64, 48, "x") == (64, 48)


@pytest.mark.parametrize("text", ["16,9", "16:9", "9/16"])
def test_an_aspect_ratio_alone_asks_for_its_tier(text):
    error = refused("t2v", size=text)
    assert "aspect ratio" in error.found and error.next_step.endswith(f"720p:{re.sub('[,/]', ':', text)}")


# Values against each other ---------------------------------------------------------------------------------------

USELESS = [
    ("t2v", "reference", {"guidance": 1, "negative_prompt": "bad"}, "negative_prompt"),
    ("t2v", "reference", {"guidance": 1, "guidance_interval": [1, 2]}, "guidance_interval"),
    ("t2v", "reference", {"guidance": 1, "negative_metadata": "none"}, "negative_metadata"),
    ("t2v", "reference", {"schedule": "karras", "shift": 3}, "shift"),
    ("t2i", "diffusers", {"shift": 3}, "shift"),
    ("t2v", "reference", {"condition_frame_indexes": [0]}, "condition_frame_indexes"),
    ("i2v", "reference", {"condition_frame_indexes": [0]}, "condition_frame_indexes"),
    ("i2v", "reference", {"condition_video_keep": "last"}, "condition_video_keep"),
    ("i2v", "reference", {"video_fit": "stretch"}, "video_fit"),
    ("t2v", "reference", {"image_filter": "lanczos"}, "image_filter"),
    ("t2i", "reference", {"image_filter": "lanczos"}, "image_filter"),
    ("t2i", "reference", {"duration_template": False}, "duration_template"),
    ("t2i", "reference", {"fps": 12}, "fps"),
    ("t2v", "vllm-omni", {"negative_metadata": "same"}, "negative_metadata"),
    ("t2i", "sglang", {"negative_metadata": "same"}, "negative_metadata"),
    ("t2v", "reference", {"size": "64x64", "tile": 64}, "tile"),
    ("t2v", "reference", {"size": "256x192", "tile": 256}, "tile"),
]


@pytest.mark.parametrize(("task", "profile", "given", "key"), USELESS)
def test_an_option_that_would_change_nothing_is_refused(task, profile, given, key):
    error = refused(task, profile, **given)
    assert error.asked.startswith(f"{key} = ") and "change nothing" in error.found and error.next_step == f"Drop {key}"


@pytest.mark.parametrize(
    ("task", "profile", "given"),
    [
        ("t2v", "reference", {"guidance": 1, "negative_metadata": "same", "guidance_interval": []}),
        ("t2v", "reference", {"schedule": "karras", "shift": 10.0}),
        ("t2i", "reference", {"fps": 24, "duration_template": True, "condition_frame_indexes": [0, 1]}),
        ("t2v", "reference", {"image_filter": "bilinear", "video_fit": "crop"}),
    ],
)
def test_repeating_a_default_is_no_option(task, profile, given):
    assert ask(task, profile, **given)


@pytest.mark.parametrize(
    ("task", "profile", "given"),
    [
        ("t2v", "reference", {"guidance": 2, "negative_prompt": "bad", "guidance_interval": [1, 2]}),
        ("t2i", "diffusers", {"schedule": "flow", "shift": 3}),
        ("v2v", "reference", {"condition_frame_indexes": [0], "condition_video_keep": "last", "video_fit": "stretch"}),
        ("v2v", "diffusers", {"image_filter": "lanczos"}),
        ("i2v", "reference", {"image_filter": "lanczos", "fps": 12, "duration_template": False}),
        ("t2v", "vllm-omni", {"duration_template": True, "negative_metadata": "same"}),
        ("t2v", "reference", {"size": "80x64", "tile": 64}),
    ],
)
def test_the_same_options_are_taken_where_they_do_something(task, profile, given):
    request, origin = ask(task, profile, **given)
    assert {origin[key] for key in given} == {"user"}
    for key, value in given.items():
        if key != "size":
            assert getattr(request, key) == (tuple(value) if isinstance(value, list) else value)


def test_inputs_belong_to_their_task():
    assert "`image`" in refused("i2v", image=None).next_step
    assert "`video`" in refused("v2v", video=None).next_step
    assert "`task` i2v" in refused("t2v", image="a.png").next_step
    assert "`task` v2v" in refused("i2v", video="a.mp4").next_step
    assert "one frame" in refused("t2i", frames=5).found
    assert "one frame" in refused("t2v", frames=1).found


def test_conditioning_has_to_fit_and_leave_something():
    error = refused("v2v", frames=9, condition_frame_indexes=[0, 3])
    assert error.found == "9 frames are 3 latent frames" and error.next_step == "Use indices from 0 to 2"
    assert "nothing left" in refused("v2v", frames=5).found
    assert "nothing left" in refused("v2v", frames=9, condition_frame_indexes=[0, 1, 2]).found
    for bad in ([], [-1], [0.0], ["0"], 0, None, [True]):
        refused("v2v", condition_frame_indexes=bad)


@pytest.mark.parametrize(
    ("task", "given", "clean", "pixels"),
    [
        ("t2i", {}, (), 0),
        ("t2v", {}, (), 0),
        ("i2v", {}, (0,), 1),
        ("v2v", {}, (0, 1), 5),
        ("v2v", {"condition_frame_indexes": [0]}, (0,), 1),
        ("v2v", {"condition_frame_indexes": [2, 5]}, (2, 5), 21),
    ],
)
def test_what_is_taken_from_the_input(task, given, clean, pixels):
    request, _ = ask(task, **given)
    assert request.clean_frames == clean and request.conditioning_pixel_frames == pixels
    assert request.is_video is (task != "t2i")


@pytest.mark.parametrize(
    ("given", "suffix", "task"),
    [
        ({}, None, "t2v"),
        ({}, ".mp4", "t2v"),
        ({}, ".png", "t2i"),
        ({"frames": 1}, None, "t2i"),
        ({"frames": 9}, ".png", "t2i"),
        ({"image": "a"}, None, "i2v"),
        ({"image": "a"}, ".png", "edit"),
        ({"image": "a", "frames": 1}, None, "edit"),
        ({"image": "a"}, ".mp4", "i2v"),
        ({"keyframe": "0=a"}, None, "keyframes"),
        ({"extend": "a"}, ".mp4", "extend"),
        ({"video": "a"}, ".mp4", "v2v"),
        ({"video": "a", "image": None}, None, "v2v"),
    ],
)
def test_the_task_follows_from_the_inputs(given, suffix, task):
    assert infer_task(given, suffix) == task


def test_an_image_and_a_video_are_too_much():
    with pytest.raises(InputError, match="Drop one"):
        infer_task({"image": "a", "video": "b"}, None)


# Model variants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["t2v", "v2v"])
def test_a_distilled_model_has_two_tasks(task):
    assert "t2i and i2v" in refused(task, "reference", "distilled").found


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 5},
        {"guidance": 2},
        {"shift": 2.0},
        {"schedule": "native"},
        {"negative_prompt": "bad"},
        {"guidance_interval": [0, 500]},
        {"negative_metadata": "none"},
    ],
)
@pytest.mark.parametrize("task", ["t2i", "i2v"])
def test_what_distillation_fixed_stays_fixed(task, given):
    (key,) = given
    assert refused(task, "reference", "distilled", **given).next_step == f"Drop {key}"


@pytest.mark.parametrize("variant", ["base", "edge"])
def test_the_distilled_schedule_is_for_distilled_models(variant):
    assert "not a distilled model" in refused("t2i", "reference", variant, schedule="distilled").found


def checkpoint(folder: Path, edits: dict[str, dict[str, Any]]) -> str:
    """The tiny model's JSON files with keys replaced (None: removed); no weights."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, changes in edits.items():
        path = folder / name
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))
    return str(folder)


EDGE = {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True, "rms_norm_eps": 1e-5}
NO_FLAG = {"default_use_system_prompt": None}


@pytest.mark.parametrize(
    ("edits", "variant", "system_prompt"),
    [
        ({}, "base", True),
        ({"model_index.json": NO_FLAG}, "base", True),
        ({"model_index.json": {"default_use_system_prompt": False}}, "base", False),
        ({"transformer/config.json": EDGE, "model_index.json": NO_FLAG}, "edge", False),
        ({"transformer/config.json": EDGE, "model_index.json": {"default_use_system_prompt": True}}, "edge", True),
    ],
)
def test_the_checkpoint_says_which_variant_it_is(tmp_path, edits, variant, system_prompt):
    model = open_model(checkpoint(tmp_path / "model", edits))
    assert (model.facts.variant, model.facts.system_prompt) == (variant, system_prompt)
    assert model.distilled_sigmas is None
    request, _ = resolve({"task": "t2v", "prompt": "x"}, "reference", model.facts, pick_seed=lambda: 0)
    assert request.frames == {"base": 189, "edge": 121}[variant] and request.system_prompt is False
    assert resolve({"prompt": "x"}, "diffusers", model.facts, lambda: 0)[0].system_prompt is system_prompt
    stock = json.loads((TINY / "assets/negative_prompt.json").read_text())
    assert json.loads(request.negative_prompt) == stock


SIGMAS = [1.0, 0.9375, 5 / 6, 0.625]


@pytest.mark.parametrize(
    "edits",
    [
        {"scheduler/scheduler_config.json": {"fixed_step_sampler_config": {"sample_type": "sde", "t_list": SIGMAS}}},
        {"scheduler/scheduler_config.json": {"fixed_step_sampler_config": {"t_list": [*SIGMAS, 0.0]}}},
        {"modular_model_index.json": {"is_distilled": True, "distilled_sigmas": SIGMAS}},
    ],
)
def test_a_distilled_checkpoint_brings_its_sigmas(tmp_path, edits):
    model = open_model(checkpoint(tmp_path / "model", edits))
    assert model.facts.variant == "distilled" and model.distilled_sigmas == tuple(SIGMAS)
    request, _ = resolve({"task": "t2i", "prompt": "x"}, "reference", model.facts, pick_seed=lambda: 0)
    assert request.schedule == "distilled" and request.steps == len(SIGMAS)


def test_a_distilled_checkpoint_without_sigmas_is_incomplete(tmp_path):
    with pytest.raises(InputError, match="distilled sigmas"):
        open_model(checkpoint(tmp_path / "model", {"modular_model_index.json": {"is_distilled": True}}))


def test_a_value_that_is_not_the_profiles_own_names_its_source():
    """NVIDIA's framework has no Edge row for these, so the reference profile takes them from others and says so."""
    _, origin = ask("t2v", "reference", "edge")
    assert "vllm-omni" in origin["guidance"] and origin["fps"] == "profile reference"
    _, origin = ask("t2i", "reference", "distilled")
    assert origin["steps"] == "checkpoint (its distilled sigmas)"


def test_a_distilled_model_runs_as_many_steps_as_it_has_sigmas():
    three = ModelFacts("some/distilled", "distilled", True, None, 3)
    request, _ = resolve({"task": "t2i", "prompt": "A cat."}, "reference", three, pick_seed=lambda: 7)
    assert request.steps == 3
