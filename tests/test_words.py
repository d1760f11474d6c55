"""The words that people already type: options, requests and values of other programs, each with what becomes of it.

FLAGS and REQUESTS are those of public recipes, cookbooks and command lines (vllm-omni, sglang, diffusers, NVIDIA's
framework, NIM, TensorRT-LLM, OpenAI). A flag is answered with ours; a request is converted with one note, or refused
for what would be lost.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from command import cosmos3
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.cli import cli
from cosmos3_core.contract.errors import InputError
from cosmos3_core.runs.saved import read_request
from cosmos3_core.scenarios.aliases import CONTROL, HERE, INPUT, aliases, owners, table
from cosmos3_core.scenarios.defaults import PROFILES
from cosmos3_core.scenarios.facts import ModelFacts
from cosmos3_core.scenarios.families import TASKS
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.scenarios.foreign import MAKERS, convert
from cosmos3_core.scenarios.request import infer_task, resolve
from cosmos3_core.settle import Wish, settle
from scripts import pages

# --- options ---------------------------------------------------------------------------------------------------------

NOT_YET, NOT_HERE = "not yet: {}", "not here: {}"
OURS = "here it is {}"
FLAGS = {
    "--cfg 7": OURS.format("--guidance."),
    "--cfg-scale 7": OURS.format("--guidance."),
    "--guidance_scale 7": OURS.format("--guidance."),
    "--guidance-scale=7": OURS.format("--guidance."),
    "--num-inference-steps 30": OURS.format("--steps."),
    "--num_inference_steps 30": OURS.format("--steps."),
    "--num-steps 30": OURS.format("--steps."),
    "--sample_steps 30": OURS.format("--steps."),
    "--height 480": OURS.format("--size WIDTHxHEIGHT"),
    "--width 832": OURS.format("--size WIDTHxHEIGHT"),
    "--resolution 480": OURS.format("--size WIDTHxHEIGHT"),
    "--aspect-ratio 16,9": OURS.format("--size WIDTHxHEIGHT"),
    "--num-frames 93": OURS.format("--frames."),
    "--num_frames 93": OURS.format("--frames."),
    "--seconds 4": OURS.format("--frames."),
    "--frame-rate 24": OURS.format("--fps."),
    "--flow-shift 5": OURS.format("--shift."),
    "--sample_shift 5": OURS.format("--shift."),
    "--negative_prompt fog": OURS.format("--negative-prompt."),
    "--neg-prompt fog": OURS.format("--negative-prompt."),
    "--prompt 'a cup'": OURS.format("the argument PROMPT, a text or @FILE."),
    "--prompt-path cup.txt": OURS.format("the argument PROMPT, a text or @FILE."),
    "--model-mode text2video": OURS.format("--task."),
    "--vision-path desk.jpg": OURS.format("--image FILE or --video FILE."),
    "--image-path desk.jpg": OURS.format("--image."),
    "--video-path pan.mp4": OURS.format("--video."),
    "--model-path nvidia/Cosmos3-Nano": OURS.format("--model."),
    "--checkpoint-path Cosmos3-Nano": OURS.format("--model."),
    "--ckpt x": OURS.format("--model."),
    "--output-path out.mp4": OURS.format("--output."),
    "--output_dir out": OURS.format("--output."),
    "--save_file out.mp4": OURS.format("--output."),
    "-i spec.json": OURS.format("--request FILE."),
    "--torch-dtype bf16": OURS.format("--dtype."),
    "--dit-precision bf16": OURS.format("--dtype."),
    "--quantization fp8": OURS.format("--format FORMAT, such as fp8."),
    "--attention-backend FLASH_ATTN": OURS.format("--kernel attention=NAME."),
    "--schedule karras": OURS.format("--set schedule=VALUE."),
    "--sampler unipc": OURS.format("--set schedule=VALUE."),
    "--max-sequence-length 4096": OURS.format("--set max_text_tokens=VALUE."),
    "--random-seed 1": OURS.format("--seed."),
    "--tp-size 2": OURS.format("--parallel cfg=2,ulysses=4."),
    "--sp-degree 2": OURS.format("--parallel cfg=2,ulysses=4."),
    "--num-gpus 4": OURS.format("--devices."),
    "--use-fsdp-inference": OURS.format("--parallel cfg=2,ulysses=4."),
    "--cpu-offload": "not here: weights lie where they fit, and on the host by --placement",
    "--dit-cpu-offload true": "not here: weights lie where they fit",
    "--cache-backend sea_cache": NOT_YET.format("caches between steps."),
    "--enable-teacache": NOT_YET.format("caches between steps."),
    "--lora-path x": NOT_YET.format("LoRA."),
    "--generate-sound": OURS.format("--sound."),
    "--enable-audio": OURS.format("--sound."),
    "--sound-duration 5": NOT_YET.format("sound of another length than the video."),
    "--action-mode policy": OURS.format("--task"),
    "--domain-name av": OURS.format("--domain"),
    "--raw-action-dim 9": OURS.format("--set action_width="),
    "--control-path d.mp4": OURS.format("--edge FILE, or --blur"),
    "--num-conditional-frames 5": OURS.format("--set carry_frames="),
    "--show-input": OURS.format("--set show_input=VALUE"),
    "--show-control-condition": OURS.format("--set show_controls="),
    "--normalize-cfg": OURS.format("--set normalize_guidance="),
    "--no-guardrails": NOT_YET.format("guardrails."),
    "--num-outputs 4": NOT_YET.format("several outputs of one run."),
    "--port 8000": NOT_YET.format("a server."),
    "--prompt-upsampling": NOT_YET.format("prompt upsampling."),
    "--vae-use-tiling": NOT_HERE.format("tiles are taken where memory does not suffice; --tile sets them."),
    "--enforce-eager": NOT_HERE.format("the plan says what is compiled and captured."),
    "--use-torch-compile": NOT_HERE.format("the plan says what is compiled and captured."),
    "-p 'a cup'": OURS.format("the argument PROMPT, a text or @FILE."),
    "--prompts cups.txt": OURS.format("the argument PROMPT, a text or @FILE."),
    "--outdir out": OURS.format("--output."),
    "--seeds 1": OURS.format("--seed."),
    "--gpu 0": OURS.format("--backend."),
    "--fp16": OURS.format("--dtype."),
    "--bf16": OURS.format("--dtype."),
    "--karras": OURS.format("--set schedule=VALUE."),
    "--no-system-prompt": OURS.format("--set system_prompt=false."),
    "--tp 2": OURS.format("--parallel cfg=2,ulysses=4."),
    "--strength 0.5": NOT_HERE.format("an edit follows the text: none of the picture is made noise."),
    "--disable-guardrails": NOT_YET.format("guardrails."),
    "--vae-slicing": NOT_HERE.format("tiles are taken where memory does not suffice; --tile sets them."),
    "--torch-compile": NOT_HERE.format("the plan says what is compiled and captured."),
    "--enable-frame-interpolation": NOT_HERE.format("frames come from the model"),
    "--video-save-quality 9": NOT_HERE.format("files are written at one quality."),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_habitual_flag_is_answered_with_ours(flag, capsys, monkeypatch):
    words = flag.replace("'", "").split(maxsplit=1)
    code, out, err = cosmos3(capsys, monkeypatch, "run", "a cup", *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: No such option '{words[0].partition('=')[0]}': {FLAGS[flag]}")


def test_a_run_is_told_where_to_run_by_its_backend(capsys, monkeypatch):
    """`--device`, which others have for that, names one to forecast for."""
    code, out, err = cosmos3(capsys, monkeypatch, "run", "a cup", "--device", "cpu")
    assert (code, out) == (2, "") and err.endswith("add --dry-run; what is here is named by --backend\n")


def test_there_are_more_flags_than_the_issue_counts():
    assert len({flag.split()[0].strip("-").replace("_", "-") for flag in FLAGS}) >= 42


@pytest.mark.parametrize(
    ("flag", "hint"),
    [("--stpes", "--steps"), ("--outptu", "--output"), ("--guidence", "--guidance"), ("--negativ-prompt", None)],
)
def test_letters_decide_where_nobody_has_the_word(flag, hint, capsys, monkeypatch):
    _, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", flag, "3")
    assert f"No such option '{flag}'. Did you mean '{hint or '--negative-prompt'}'?" in err


@pytest.mark.parametrize("flag", ["--zap", "--gpu-id", "--foo", "--top"])
def test_a_word_like_no_other_gets_no_guess(flag, capsys, monkeypatch):
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", flag, "3")
    assert code == 2 and err == f"error: No such option '{flag}'. Type cosmos3 run --help\n"


def test_the_other_commands_answer_too(capsys, monkeypatch):
    for command, flag, answer in [
        ("plan", "--num_frames", "--frames."),
        ("warmup", "--resolution", "--size WIDTHxHEIGHT"),
        ("capabilities", "--fps", "--fps of cosmos3 run."),
        ("capabilities", "--model-path", "--model."),
    ]:
        _, _, err = cosmos3(capsys, monkeypatch, command, flag, "1")
        assert f"No such option '{flag}': here it is {answer}" in err


def test_what_a_row_leads_to_is_there():
    """Ours is a field or an option of run; no row has the name of one; every owner is one of the list."""
    run = cli.commands["run"]
    options = {p.name for p in run.get_params(click.Context(run))} | {o[2:] for p in run.params for o in p.opts}
    for name, row in aliases().items():
        assert row.kind != HERE or row.means in {*FIELDS, *options, INPUT, CONTROL}, name
        assert set(row.owners) <= set(owners()) and row.whose
        assert name == "prompt" or name not in FIELDS, f"{name} is a field of ours"
    assert set(MAKERS) <= {*FIELDS, *aliases()} and set(table()["off"]) <= set(aliases())
    assert {*table()["profiles"].values(), *table()["values"]["profile"].values()} <= set(PROFILES)


# --- fields and values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("num_inference_steps", "Here it is `steps`"),
        ("guidance-scale", "Here it is `guidance`"),
        ("height", "Here it is `size` WIDTHxHEIGHT"),
        ("generate_sound", "Here it is `sound`"),
        ("lora", "Not yet: LoRA"),
        ("true_cfg_scale", "Not here: other models have it"),
        ("stesp", "Did you mean steps?"),
        ("Prompt", "Did you mean prompt?"),
        ("guidance-Interval", "Did you mean guidance_interval?"),
        ("model", "It is chosen with the model: `model`, from Python load(model=...)"),
        ("format", "It is chosen with the model: `format`, from Python load(formats=...)"),
        ("mixed_precision_first_steps", "It is chosen with the model: `high_precision_steps`, from Python load(high_"),
        ("attention_backend", "It is chosen with the model: `kernel`, from Python load(kernels=...)"),
        ("torch_dtype", "It is chosen with the model: `dtype`, from Python load(dtype=...)"),
    ],
)
def test_a_key_of_others_is_answered_from_python_too(key, answer):
    with pytest.raises(InputError) as raised:
        resolve({"prompt": "a cup", key: 1}, "reference", FACTS, pick_seed=lambda: 0)
    assert raised.value.asked == f"request field {key!r}" and raised.value.next_step.startswith(answer)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("t3v", f"Tasks are {', '.join(TASKS)}"),
    ],
)
def test_a_task_that_is_not_here_is_answered(task, answer):
    with pytest.raises(InputError) as raised:
        resolve({"prompt": "a cup", "task": task}, "reference", FACTS, pick_seed=lambda: 0)
    assert raised.value.asked == f"task {task!r}" and raised.value.next_step == answer


def test_a_set_of_another_is_answered_with_the_option(capsys, monkeypatch):
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", "--model", TINY_MODEL, "--set", "num_inference_steps=3")
    assert code == 2 and err.strip().endswith("there is no such field. Here it is --steps")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ({"dtype": "bf16"}, {"dtype": "bfloat16"}),
        ({"dtype": "torch.float16"}, {"dtype": "float16"}),
        ({"dtype": "half"}, {"dtype": "float16"}),
        ({"dtype": "FP32"}, {"dtype": "float32"}),
        ({"dtype": "auto"}, {"dtype": None}),
        ({"dtype": "int8"}, {"dtype": "int8"}),
        ({"backend": "cpu"}, {"backend": "reference"}),
        ({"backend": "acme:0"}, {"backend": "acme"}),
        ({"backend": "My_Own"}, {"backend": "My_Own"}),
        ({"profile": "vllm_omni"}, {"profile": "vllm-omni"}),
        ({"profile": "Diffusers_Docs"}, {"profile": "diffusers-docs"}),
        ({"profile": "framework"}, {"profile": "reference"}),
        ({"profile": "comfyui"}, {"profile": "comfyui"}),
    ],
)
def test_a_value_goes_by_its_other_names(typed, meant):
    wish = Wish(model=TINY_MODEL, **typed)
    assert {name: getattr(wish, name) for name in meant} == meant


def test_another_device_than_the_first_is_refused():
    with pytest.raises(InputError, match="takes the first device"):
        Wish(model=TINY_MODEL, backend="acme:1")


def test_a_run_with_the_values_of_others(capsys, monkeypatch):
    typed = ["--size", "64*64", "--dtype", "bf16", "--backend", "cpu", "--profile", "vllm_omni", "--task", "text2video"]
    code, out, err = cosmos3(
        capsys,
        monkeypatch,
        "run",
        "a cup",
        "--model",
        TINY_MODEL,
        "--frames",
        5,
        "--seed",
        -1,
        *typed,
        "--dry-run",
        "--json",
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["request"]["size"] == "64x64" and told["request"]["task"] == "t2v" and told["request"]["seed"] >= 0
    assert (told["profile"]["name"], told["plan"]["backend"], told["plan"]["dtype"]) == (
        "vllm-omni",
        "reference",
        "bfloat16",
    )
    code, out, _ = cosmos3(capsys, monkeypatch, "plan", "--model", TINY_MODEL, "--task", "image2video", "--json")
    assert json.loads(out)["request"]["task"] == "i2v"


# --- requests --------------------------------------------------------------------------------------------------------

FACTS = ModelFacts("some/model", "base", True, "{}")
NANO = "nvidia/Cosmos3-Nano"
B720 = {
    "size": "1280x720",
    "num_frames": 189,
    "fps": 24,
    "num_inference_steps": 35,
    "guidance_scale": 6.0,
    "max_sequence_length": 4096,
    "flow_shift": 10.0,
}
X0 = {"use_resolution_template": False, "use_duration_template": False, "guardrails": True}
V720 = {"task": "t2v", "width": 1280, "height": 720, "frames": 189, "steps": 35, "guidance": 6.0, "shift": 10.0}
V720 |= {"resolution_template": False, "duration_template": False, "max_text_tokens": 4096, "schedule": "native"}
I720 = V720 | {"task": "i2v", "image": "in/reference.jpg"}
CLIP720 = V720 | {"task": "v2v", "video": "in/reference.mp4", "system_prompt": True}
IMAGES = {"response_format": "b64_json", "n": 1}

# What is asked, and either the profile with a part of the request that it becomes, or a part of the refusal.
REQUESTS: dict[str, tuple[dict[str, Any], str, dict[str, Any]] | tuple[dict[str, Any], str]] = {
    # The rows of vllm-omni's recipes.
    "picture": (
        {"model": NANO, "negative_prompt": "blurry", "size": "1024x1024", **IMAGES, "seed": 42}
        | {"num_inference_steps": 50, "guidance_scale": 7.0},
        "vllm-omni",
        {"task": "t2i", "width": 1024, "height": 1024, "steps": 50, "guidance": 7.0, "seed": 42, "model": NANO},
    ),
    "text to video": (B720 | {"model": NANO, "extra_params": json.dumps(X0), "seed": 123}, "vllm-omni", V720),
    "text to video, an object": (B720 | {"extra_params": X0}, "vllm-omni", V720 | {"seed": 42}),
    "image to video": (B720 | {"extra_params": X0, "input_reference": "reference.jpg"}, "vllm-omni", I720),
    "video to video": (
        B720
        | {"input_reference": "reference.mp4"}
        | {"extra_params": X0 | {"condition_frame_indexes_vision": "0,1", "condition_video_keep": "last"}},
        "vllm-omni",
        CLIP720 | {"condition_frame_indexes": (0, 1), "condition_video_keep": "last"},
    ),
    "video to video by URL": (
        B720 | {"video_reference": {"video_url": "https://example.com/reference.mp4"}},
        "video_reference: files are not fetched",
    ),
    "transfer": (
        B720 | {"extra_params": {"depth": {"control_path": "/d.mp4"}, "max_frames": 121, "resolution": "720"}},
        "vllm-omni",
        {
            "task": "transfer",
            "depth": "/d.mp4",
            "max_frames": 121,
            "control_guidance": 1.5,
            "control_formula": "separate",
        },
    ),
    "transfer by upload": (
        {"num_frames": 121, "control_reference": "wsm.mp4", "control_type": "wsm"},
        "vllm-omni",
        {"task": "transfer", "wsm": "in/wsm.mp4", "max_frames": 121, "fps": 10.0, "guidance": 1.0, "chunk_frames": 101},
    ),
    "video with sound": (
        B720 | {"generate_sound": True, "sound_duration": 7.875, "extra_params": X0},
        "vllm-omni",
        {"task": "t2v", "sound": True, "sound_length": "nearest"},
    ),
    "video with a longer sound": (
        B720 | {"generate_sound": True, "sound_duration": 9, "extra_params": X0},
        "not yet: sound of another length than the video (sound_duration 9)",
    ),
    "video without sound": (B720 | {"generate_sound": False, "sound_duration": 7.875}, "vllm-omni", {"task": "t2v"}),
    "forward dynamics": (
        {"input_reference": "f.jpg", "size": "640x480", "num_frames": 61, "fps": 10, "flow_shift": 5.0}
        | {"extra_params": {"action_mode": "forward_dynamics", "domain_name": "av", "action": [[1.0]]}},
        "vllm-omni",
        {"task": "forward-dynamics", "domain": "av", "chunk": 60, "frames": 61, "canvas": (640, 480), "shift": 5.0},
    ),
    "a short one for another device": (
        {"input_reference": "reference.jpg", "num_frames": 25, "fps": 8, "num_inference_steps": 10},
        "vllm-omni",
        {"task": "i2v", "frames": 25, "fps": 8.0, "steps": 10, "shift": 10.0, "image_filter": "lanczos"},
    ),
    "numbers as in a form": (
        {"num_frames": "93", "fps": "24", "num_inference_steps": "35", "flow_shift": "10.0", "seed": "-1"},
        "vllm-omni",
        {"frames": 93, "fps": 24.0, "seed": 7},
    ),
    "seconds": ({"seconds": "4", "fps": 16, "num_inference_steps": 8}, "vllm-omni", {"task": "t2v", "frames": 65}),
    "a LoRA": (B720 | {"lora": {"name": "x"}}, "not yet: LoRA (lora)"),
    "four pictures": (IMAGES | {"n": 4, "size": "1024x1024"}, "not yet: several outputs of one run (n)"),
    # OpenAI's.
    "OpenAI's picture": (IMAGES | {"size": "auto", "model": "gpt-image-1"}, "reference", {"task": "t2i", "steps": 50}),
    "OpenAI's video": (
        {"model": "sora-2", "size": "1280x720", "seconds": "4"},
        "reference",
        {"task": "t2v", "frames": 97, "guidance": 6.0, "negative_prompt": "{}"},
    ),
    # The framework's.
    "framework t2i": (
        {"model_mode": "text2image", "resolution": "720", "aspect_ratio": "16,9", "num_frames": 1, "seed": 0},
        "reference",
        {"task": "t2i", "width": 1280, "height": 720, "steps": 50, "guidance": 4.0, "seed": 0},
    ),
    "framework t2v": (
        {"model_mode": "text2video", "name": "t2v", "num_steps": 35, "guidance": 6.0, "shift": 10.0, "fps": 16}
        | {"resolution": "480", "aspect_ratio": "16,9", "num_frames": 93, "enable_sound": False},
        "reference",
        {"task": "t2v", "width": 832, "height": 480, "frames": 93, "fps": 16.0, "negative_prompt": "{}"},
    ),
    "framework i2v": (
        {"model_mode": "image2video", "vision_path": "robot.jpg", "num_frames": 48},
        "reference",
        {"task": "i2v", "image": "in/robot.jpg", "frames": 49, "json_metadata": True},
    ),
    "framework v2v": (
        {"model_mode": "video2video", "vision_path": "pan.mp4", "condition_frame_indexes_vision": [0]},
        "reference",
        {"task": "v2v", "video": "in/pan.mp4", "condition_frame_indexes": (0,)},
    ),
    "framework templates": (
        {"model_mode": "text2video", "duration_template": "", "resolution_template": "It is {height}x{width}."}
        | {"negative_metadata_mode": "none", "negative_prompt_keep_metadata": True},
        "reference",
        {"duration_template": False, "resolution_template": True, "negative_metadata": "same"},
    ),
    "framework sound": (
        {"model_mode": "audio_image2video", "vision_path": "r.jpg", "sound_path": "a.wav"},
        "reference",
        {"task": "i2v", "image": "in/r.jpg", "audio": "in/a.wav", "sound": True},
    ),
    "framework policy": (
        {"model_mode": "policy", "vision_path": "f.jpg", "domain_name": "av", "action_chunk_size": 16},
        "reference",
        {"task": "policy", "domain": "av", "chunk": 16, "frames": 17, "shift": 10.0},
    ),
    "framework transfer": (
        {"model_mode": "video2video", "vision_path": "p.mp4", "edge": {"preset_edge_threshold": "medium"}},
        "reference",
        {"task": "transfer", "edge": "auto", "video": "in/p.mp4", "guidance": 3.0, "control_formula": "nested"},
    ),
    "framework transfer of two": (
        {"edge": {"control_path": "e.mp4", "control_weight": 2}, "depth": {"control_path": "d.mp4"}, "num_steps": 9}
        | {"share_vision_temporal_positions": False, "num_video_frames_per_chunk": 61, "num_conditional_frames": 5},
        "reference",
        {"control_weights": (("edge", 2.0),), "control_positions": "ceil", "chunk_frames": 61, "carry_frames": 5},
    ),
    "framework transfer with a slip": (
        {"edge": {"control_pth": "e.mp4"}, "num_steps": 9},
        "edge: there is no key control_pth in it",
    ),
    "depth of nothing": ({"depth": True, "num_steps": 9}, "depth: it is not made of a clip here"),
    "controls shown": (
        {"edge": {"control_path": "e.mp4"}, "vision_path": "p.mp4", "num_steps": 9, "show_control_condition": True}
        | {"show_input": True, "normalize_cfg": True},
        "reference",
        {"show_controls": True, "show_input": True, "normalize_guidance": True},
    ),
    "framework URL": ({"model_mode": "image2video", "vision_path": "https://example.com/r.jpg"}, "vision_path: files"),
    "framework of old": ({"inference_type": "text2world", "name": "x", "num_steps": 35}, "reference", {"task": "t2v"}),
    "framework with a slip": ({"model_mode": "text2image", "guidence": 4}, "no key guidence (did you mean guidance?)"),
    # NIM's, of both generations, TensorRT-LLM's, sglang's and diffusers'.
    "NIM t2i": (
        {"model_mode": "text2image", "negative_prompt": "", "resolution": "720_1_1", "num_frames": 1, "fps": 24.0},
        "reference",
        {"task": "t2i", "width": 960, "height": 960, "steps": 50},
    ),
    "NIM v2v": (
        {"model_mode": "video2video", "input_reference": "car.mp4", "resolution": "720", "num_frames": 93, "fps": 24.0}
        | {"num_inference_steps": 35, "guidance_scale": 6.0, "flow_shift": 10.0},
        "reference",
        {"task": "v2v", "video": "in/car.mp4", "width": 1280, "height": 720, "frames": 93},
    ),
    "NIM data URL": ({"model_mode": "image2video", "input_reference": "data:image/jpeg;base64,AA"}, "Save it, and"),
    "NIM of old": (
        {"image": "car.jpg", "steps": 8, "num_output_frames": 25},
        "reference",
        {"task": "i2v", "image": "in/car.jpg", "steps": 8, "frames": 25},
    ),
    "TensorRT-LLM": (
        {"num_inference_steps": 50, "extra_params": {"use_guardrails": True, "output_type": "image"}},
        "reference",
        {"task": "t2i", "steps": 50},
    ),
    "sglang": (
        {
            "num_frames": 80,
            "num_inference_steps": 35,
            "max_sequence_length": 4096,
            "enable_teacache": False,
            "seed": [3],
        }
        | {"reference_url": "r.png"},
        "sglang",
        {"task": "i2v", "frames": 77, "max_text_tokens": 4094, "guidance": 4.0, "seed": 3},
    ),
    "diffusers": (
        {"output_type": "pil", "num_frames": 93}
        | {"height": 480, "width": 832, "num_inference_steps": 35, "guidance_scale": 6.0}
        | {"add_resolution_template": True, "enable_safety_check": True},
        "diffusers",
        {"task": "t2v", "width": 832, "height": 480, "frames": 93, "schedule": "karras"},
    ),
    "what a plan decides": (
        B720 | {"quantization": "fp8", "output_path": "/tmp/x"},
        "quantization is no part of a request: here it is `format`",
    ),
    "sizes are no framework's": (
        {"size": "832x480", "num_frames": 93, "seed": 1, "output_path": "x", "enforce_eager": False},
        "vllm-omni",
        {"task": "t2v", "width": 832, "frames": 93},
    ),
    "one side": ({"height": 480, "num_frames": 5}, "one of width and height alone is no size"),
    "two sizes": ({"size": "832x480", "width": 1280, "height": 720}, "size '832x480' and width 1280 do not agree"),
    "a size of another tier": ({"size": "832x480", "resolution": "720"}, "size '832x480' and resolution 720 do not"),
    "a size of another shape": (
        {"width": 832, "height": 480, "aspect_ratio": "9,16"},
        "width and height '832x480' and aspect_ratio '9,16' do not agree",
    ),
    "sizes that agree": (
        {"size": "832x480", "width": "832", "height": 480, "resolution": "480", "aspect_ratio": "16,9"},
        "reference",
        {"width": 832, "height": 480},
    ),
    "two lengths": ({"seconds": 4, "num_frames": 33}, "seconds 4 and 33 frames at 24 a second do not agree"),
    "two lengths by the rate": (
        {"seconds": "4", "num_frames": 93, "fps": 10},
        "seconds 4 and 93 frames at 10 a second",
    ),
    "lengths that agree": ({"seconds": "4", "num_frames": 93}, "vllm-omni", {"frames": 93}),
    "inside and outside": (
        {"num_inference_steps": 5, "extra_params": {"num_inference_steps": 9}},
        "num_inference_steps is 5 at the top and 9 inside",
    ),
    "alike inside and outside": (
        {"num_inference_steps": 5, "extra_params": '{"num_inference_steps": "5"}'},
        "vllm-omni",
        {"steps": 5},
    ),
    "inside and outside, where one is known to win": (
        {"flow_shift": 5, "extra_params": {"flow_shift": 9}},
        "vllm-omni",
        {"shift": 9.0},
    ),
    "no output": ({"num_frames": 5, "n": 0}, "n = 0: a run makes one output"),
    "a form's switches": (
        {"num_frames": "5", "n": "1", "use_system_prompt": "True", "enable_teacache": "False"},
        "sglang",
        {"system_prompt": True},
    ),
    "frames in another order": (
        {"video_path": "a.mp4", "save_output": True, "condition_frame_indexes_vision": [0, 1]},
        "sglang",
        {"condition_frame_indexes": (0, 1)},
    ),
    "a path of a URL": ({"model_mode": "image2video", "vision_path": "https:/e.com/r.jpg"}, "vision_path: files are"),
    "said twice": ({"steps": 5, "num_inference_steps": 6, "num_frames": 5}, "set steps, to 6 and 5"),
}


def given_of(keys: dict[str, Any]):
    return read_request(json.dumps({"prompt": "a cup"} | keys), "--request q.json", "in/q.json")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_of_another_program(name):
    keys, *expected = REQUESTS[name]
    if len(expected) == 1:
        with pytest.raises(InputError) as raised:
            given_of(keys)
        assert raised.value.asked.startswith("--request q.json, a request of ") and expected[0] in str(raised.value)
        return
    profile, parts = expected
    earlier = given_of(keys)
    given = earlier.given | {"task": earlier.given.get("task") or infer_task(earlier.given, None)}
    request, _ = resolve(given, profile, FACTS, pick_seed=lambda: 7)
    found = {key: earlier.model if key == "model" else getattr(request, key) for key in parts}
    assert (earlier.profile, found) == (profile, parts)
    assert earlier.note.startswith("--request q.json, a request of ")
    # Every key is ours, or the note says what became of it.
    told = [key for key in keys if key not in FIELDS and key != "extra_params"]
    assert not [key for key in told if key not in earlier.note]


def test_no_junk_makes_a_traceback():
    """Any JSON under any key of theirs: a request of ours or an InputError."""
    junk: list[Any] = [None, True, False, 0, 1, -1, 1.5, 1e400, float("nan"), 10**400, "", "x", "5", "\0", "[" * 40]
    junk += [[], [[]], [0], [1, 2], {}, {"a": 1}, {"image_url": 5}, '{"x', "16,9", "9" * 5000]
    for key in (*aliases(), *FIELDS, "extra_params", "nonsense"):
        for value in junk:
            try:
                given_of({"num_frames": 5, key: value})
            except InputError as error:
                assert error.asked and error.found and error.next_step


def test_a_request_from_elsewhere_names_no_file():
    keys = {"model_mode": "image2video", "prompt_path": "/etc/passwd", "vision_path": "/etc/passwd"}
    with pytest.raises(InputError) as raised:
        convert(keys, "the request", None)
    assert raised.value.found.count("may not name files of this machine") == 2


def test_what_is_ignored_says_why():
    note = given_of(B720 | {"extra_params": X0, "user": "me", "quality": "high"}).note
    assert "guardrails (not yet: guardrails)" in note and "quality (files are written at one quality)" in note
    assert "num_inference_steps → steps, guidance_scale → guidance" in note


def test_what_asks_for_nothing_is_named_too():
    keys = {"num_frames": 5, "guardrails": False, "teacache": "False", "lora": None, "n": 1, "seed": None}
    note = given_of(keys).note
    for said in ("guardrails (false", 'teacache ("False"', "lora (null", "n (1"):
        assert f"{said} asks for nothing more)" in note
    assert "seed null (the default)" in note


def test_what_wins_inside_is_named():
    assert (
        "flow_shift 5 (in extra_params it is 9, which wins)"
        in given_of({"flow_shift": 5, "extra_params": {"flow_shift": 9}}).note
    )


@pytest.mark.parametrize(
    ("keys", "profile", "others"),
    [
        ({"extra_params": {"guidance_interval": [400, 1000]}}, "vllm-omni", "sglang (profile sglang)"),
        ({"extra_params": {"guidance_interval": [4, 10]}, "num_frames": 5}, "vllm-omni", "sglang (profile sglang)"),
        ({"extra_params": {}, "num_frames": 5, "shift": 3, "guidance": 2}, "vllm-omni", "sglang (profile sglang)"),
        ({"extra_params": {}, "reference_url": "a.png"}, "sglang", ""),
        ({"extra_body": {"num_frames": 5}}, "sglang", ""),
        ({"num_frames": 5, "enforce_eager": True}, "vllm-omni", ""),
        ({"num_frames": 5, "num_output_frames": 5}, "reference", ""),
        ({"num_frames": 5, "add_resolution_template": True}, "diffusers", ""),
        ({"num_inference_steps": 5, "size": "64x64"}, "vllm-omni", "sglang (profile sglang)"),
    ],
)
def test_whose_a_request_is(keys, profile, others):
    """The wrapper says it, then the keys that one program alone has; where that leaves several, the note names them."""
    earlier = given_of(keys)
    assert earlier.profile == profile and ("it may also be one of" in earlier.note) == bool(others)
    assert others in earlier.note


OWN = [
    {"size": "1024x1024", "seed": 42},
    {"image": "a.png", "frames": 25, "steps": 5, "guidance": 2, "shift": 3, "guidance_interval": [400, 1000]},
    {"task": "v2v", "video": "a.mp4", "condition_frame_indexes": [0], "system_prompt": True},
]


@pytest.mark.parametrize("given", OWN)
def test_a_request_of_ours_is_never_taken_for_anothers(given):
    earlier = given_of(given)
    assert earlier.given == {"prompt": "a cup"} | given
    assert (earlier.note, earlier.profile, earlier.model) == ("", None, None)


@pytest.mark.parametrize("task", ["t2i", "t2v"])
def test_a_whole_request_of_ours_stays(task):
    request, _ = resolve({"task": task, "prompt": "a cup"}, "sglang", FACTS, pick_seed=lambda: 7)
    whole = json.loads(json.dumps(request.to_json()))
    assert given_of(whole).given == whole and not given_of(whole).note


@pytest.mark.parametrize(
    ("model", "suffix", "task"),
    [
        ("nvidia/Cosmos3-Super-Text2Image", None, "t2i"),
        ("nvidia/Cosmos3-Super-Text2Image-4Step", None, "t2i"),
        ("nvidia/Cosmos3-Super-Text2Image", ".mp4", "t2v"),
        ("nvidia/Cosmos3-Super", ".png", "t2i"),
        ("nvidia/Cosmos3-Super", None, "t2v"),
    ],
)
def test_a_request_without_a_task_is_what_its_model_makes(model, suffix, task):
    given = given_of({"size": "1024x1024", "seed": 42}).given
    assert settle(Wish(model=model, described=True, given=given, suffix=suffix)).request.task == task


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        ('[{"prompt": "a"}, {"prompt": "b"}]', "jq '.[0]' q.json"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "sed -n 1p q.json"),
    ],
)
def test_of_several_requests_one_is_chosen(text, pick):
    with pytest.raises(InputError) as raised:
        read_request(text, "--request q.json", "q.json")
    assert raised.value.found == "it holds 2 requests, and a run makes one"
    assert raised.value.next_step == f"Give it one of them: {pick} | cosmos3 run `request` -"


@pytest.mark.parametrize("text", ['[{"prompt": "a", "num_steps": 4}]', '\n{"prompt": "a", "num_steps": 4}\n'])
def test_a_list_of_one_is_that_one(text):
    assert read_request(text, "--request q.json", "q.json").given == {"prompt": "a", "steps": 4}


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_from_the_frameworks_json(tmp_path: Path, capsys, monkeypatch):
    """The paths of a request begin beside it; what is typed wins; the profile is the framework's."""
    (tmp_path / "specs").mkdir()
    Image.new("RGB", (64, 64), (180, 40, 40)).save(tmp_path / "specs/first.png")
    (tmp_path / "specs/prompt.json").write_text('{"subjects": "a cup"}')
    spec = {"name": "x", "model_mode": "image2video", "prompt_path": "prompt.json", "vision_path": "first.png"}
    (tmp_path / "specs/i2v.json").write_text(json.dumps(spec | {"num_frames": 5, "num_steps": 9, "fps": 10}))
    monkeypatch.chdir(tmp_path)
    typed = ["--model", TINY_MODEL, "--size", "64x64", "--steps", 2, "-o", "out.mp4"]
    code, out, err = cosmos3(capsys, monkeypatch, "run", "--request", "specs/i2v.json", *typed)
    assert (code, out) == (0, "out.mp4\n"), err
    (note,) = [line for line in err.splitlines() if "a request of" in line]
    assert note.startswith("note: --request specs/i2v.json, a request of NVIDIA's framework: model_mode → task")
    assert note.endswith("; defaults of profile reference (--profile chooses another)")
    manifest = json.loads((tmp_path / "out.mp4.json").read_text())
    asked = manifest["request"]
    assert (asked["task"], asked["steps"], asked["frames"], asked["fps"]) == ("i2v", 2, 5, 10.0)
    assert asked["prompt"] == '{"subjects": "a cup"}' and asked["image"] == str(tmp_path / "specs/first.png")
    assert manifest["profile"]["name"] == "reference"


@pytest.mark.parametrize("profile", [None, "reference"])
def test_a_run_from_a_request_of_vllm_omni(profile, tmp_path: Path, capsys, monkeypatch):
    request = IMAGES | {"model": TINY_MODEL, "prompt": "a cup", "size": "64x64", "num_inference_steps": 2, "seed": 3}
    (tmp_path / "q.json").write_text(json.dumps(request))
    monkeypatch.chdir(tmp_path)
    typed = ["--profile", profile] if profile else []
    code, out, err = cosmos3(capsys, monkeypatch, "run", "--request", "q.json", "-o", "out.png", *typed)
    assert (code, out) == (0, "out.png\n"), err
    manifest = json.loads((tmp_path / "out.png.json").read_text())
    assert manifest["profile"]["name"] == (profile or "vllm-omni")
    assert manifest["request"]["guidance"] == (4.0 if profile else 7.0)
    assert f"; defaults of profile {profile or 'vllm-omni (--profile chooses another)'}\n" in err
    assert err.count("a request of") == 1


@pytest.mark.parametrize(
    ("keys", "frames"),
    [({"seconds": 0.5}, 13), ({"seconds": "0.5", "model": "sora-2"}, 13), ({"duration": 0.25, "fps": 16}, 5)],
)
def test_parts_of_a_second_are_taken(keys, frames):
    assert given_of({"num_inference_steps": 4} | keys).given["frames"] == frames


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seconds": 0.01}, "seconds = 0.01: at 24 fps a clip has at least 5 frames"),
        ({"num_frames": 0.5}, "num_frames = 0.5: it is no number of frames"),
        ({"input_reference": "@desk.jpg"}, "curl's @ uploads a file. Give the path alone, desk.jpg"),
        ({"input_reference": "data:image/png;base64,AAAA"}, "Save it, and give its path"),
        ({"messages": [{"role": "user", "content": "a cup"}]}, "a chat; give its text as `prompt`"),
    ],
)
def test_what_stands_in_the_way_is_explained(keys, said):
    with pytest.raises(InputError, match=re.escape(said)):
        given_of({"num_inference_steps": 4} | keys)


def test_the_note_names_the_model_that_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text(json.dumps({"prompt": "a cup", "model": "nvidia/Cosmos3-Nano", "num_inference_steps": 2}))
    small = ("--size", "64x64", "--frames", "1", "--backend", "reference", "-o", "a.png")
    code, _, err = cosmos3(capsys, monkeypatch, "plan", "--request", "q.json", "--model", TINY_MODEL, *small)
    assert code == 0 and f"; model {TINY_MODEL} in the place of nvidia/Cosmos3-Nano; defaults of profile" in err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("serve", "'serve': not yet: a server. Type cosmos3 --help"),
        ("generate", "'generate'. Did you mean cosmos3 run? Type cosmos3 --help"),
        ("warmpu", "'warmpu'. Did you mean cosmos3 warmup? Type cosmos3 --help"),
        ("zap", "'zap'. Type cosmos3 --help"),
    ],
)
def test_a_command_that_is_not_here_is_answered_in_one_line(word, said, capsys, monkeypatch):
    assert cosmos3(capsys, monkeypatch, word, "a cup") == (2, "", f"error: No such command {said}\n")


@pytest.mark.parametrize("letter", pages.EXAMPLES)
def test_the_page_s_examples_are_requests_of_their_programs(letter):
    earlier = given_of(pages.EXAMPLES[letter])
    assert f"a request of {owners()[letter]}: " in earlier.note and earlier.profile == table()["profiles"][letter]
    given = earlier.given | {"task": earlier.given.get("task") or infer_task(earlier.given, None)}
    resolve(given, earlier.profile, FACTS, pick_seed=lambda: 7)
