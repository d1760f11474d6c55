"""`cosmos3 capabilities` as a user and a program meet it, and the rows of fields that it is made of."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.cli.options import HEADINGS, flag
from cosmos3_core.contract import InputError
from cosmos3_core.scenarios.capabilities import capabilities
from cosmos3_core.scenarios.defaults import PROFILES
from cosmos3_core.scenarios.domains import domains
from cosmos3_core.scenarios.families import TASKS
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.scenarios.request import Request, resolve
from cosmos3_core.scenarios.task import Task

RECIPES = Path(__file__).parents[1] / "cosmos3_core" / "recipes"
BESIDE = {
    "interval_ends": {"guidance_interval": [1, 9]},
    "system_prompt_text": {"system_prompt": True},
    "edge_preset": {"edge": "auto", "video": "a"},
    "blur_preset": {"blur": "auto", "video": "a"},
    "control_formula": {"control_guidance": 2},
    "chunk_noise": {"frames": 200},
    "action_normalization": {"action_stats": "a"},
}
"""What a field needs beside it to do something."""
DISTILLED = "nvidia/Cosmos3-Super-Image2Video-4Step"


def inputs_of(task: Task) -> dict[str, str]:
    """The files that a request of this task has."""
    acting = {"domain": "droid_lerobot"} if "action" in task.latents else {}
    files = ["edge", "depth"] if "edge" in task.takes else [task.input, *task.needs]
    return acting | {name: "0=a" for name in files if name}


def beside(task: Task, name: str, choice: str) -> dict[str, Any]:
    """What a field with this choice needs beside it to do something."""
    found = BESIDE.get(name, {})
    if name == "sound_length":
        return found | {"sound": True}
    if "action" not in task.latents:
        return found
    if name in ("interval_ends", "negative_metadata"):  # actions have no guidance, if nothing is said of it
        return found | {"guidance": 2.0} | ({"action_prompt": "text"} if name == "negative_metadata" else {})
    if name == "action_space":
        return {"domain": next((row.name for row in domains().values() if choice in row.spaces), "av")}
    if name == "domain" and domains()[choice].channels() is None:
        return {"action_width": 7}
    return found


@pytest.fixture
def told(capsys, monkeypatch):
    def call(*arguments: str) -> dict[str, Any]:
        code, out, err = cosmos3(capsys, monkeypatch, "capabilities", "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    return call


def test_it_lists_every_task_field_size_and_format(told):
    found = told("--model", TINY_MODEL)
    assert (found["model"]["name"], found["model"]["variant"]) == (TINY_MODEL, "base")
    assert found["model"]["modalities"] == ["vision", "sound", "action"] and found["cannot"] == {}
    assert found["profiles"] == list(PROFILES)
    assert set(found["tasks"]) == set(TASKS) and set(found["fields"]) == set(FIELDS)
    assert found["tasks"]["v2v"]["input"] == "video" and found["tasks"]["t2i"]["single_frame"] is True
    assert found["sizes"]["tiers"]["720"]["16:9"] == "1280x720" and found["frames"]["step"] == 4
    assert found["dtypes"]["checkpoint"] == "bfloat16" and "fp8" in found["formats"]["names"]
    assert found["fields"]["fps"]["tasks"] == [name for name, task in TASKS.items() if not task.single]
    assert found["fields"]["prompt"]["required"] is True


@pytest.mark.parametrize("model", ["nvidia/Cosmos3-Nano", DISTILLED])
def test_every_choice_that_is_listed_is_taken(model):
    described = describe(model)
    facts, widest = described.facts, described.config.action_dim
    found = capabilities(facts, PROFILES[0], widest)
    assert found["fields"]["task"]["schema"]["enum"] == list(found["tasks"])
    for task in found["tasks"]:
        given = {"task": task, "prompt": "a cup"} | inputs_of(TASKS[task])
        for name, row in found["fields"].items():
            for choice in row["schema"].get("enum", ()) if task in row["tasks"] and not row["fixed"] else ():
                if name == "image_filter" and (choice in ("bicubic", "diffusers")) != ("action" in TASKS[task].latents):
                    continue
                if name != "task":
                    resolve(
                        given | beside(TASKS[task], name, choice) | {name: choice},
                        PROFILES[0],
                        facts,
                        pick_seed=lambda: 7,
                    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", ["nvidia/Cosmos3-Nano", "nvidia/Cosmos3-Edge", DISTILLED])
def test_a_default_is_what_a_run_fills_in(model, profile):
    described = describe(model)
    facts, found = described.facts, capabilities(described.facts, profile, described.config.action_dim)
    for task in found["tasks"]:
        given = {"task": task, "prompt": "a cup"} | inputs_of(TASKS[task])
        request, origin = resolve(given, profile, facts, pick_seed=lambda: 7)
        filled = json.loads(json.dumps(request.to_json()))
        by_input = {"canvas", "size"} if "action" in TASKS[task].latents else set()
        for name in found["fields"].keys() - given.keys() - by_input:
            default = found["fields"][name]["defaults"].get(task, {"value": None, "source": "no task of its own"})
            if "auto" in str(default["value"]):
                assert name in ("size", "frames", "fps")  # follows from the clip, which settle reads
            elif default["value"] == "random":
                assert (name, filled[name]) == ("seed", 7)
            elif default["value"] is not None:
                assert (default["value"] or None, default["source"]) == (filled[name] or None, origin[name])


def test_a_distilled_model_has_two_tasks_and_fixed_fields(told):
    found = told("--model", DISTILLED)
    assert set(found["tasks"]) == {"t2i", "i2v"} and not found["fields"]["video"]["tasks"]
    fixed = {name for name, field in found["fields"].items() if field["fixed"]}
    of_negatives = {"negative_prompt", "negative_metadata"}
    of_guidance = {"guidance", "guidance_interval", "interval_ends", "normalize_guidance"}
    assert fixed == {"steps", "schedule", "shift"} | of_guidance | of_negatives
    assert found["fields"]["steps"]["defaults"]["t2i"] == {"value": 4, "source": "checkpoint (its distilled sigmas)"}


def test_a_stand_in_for_the_checkpoints_text_is_not_shown(told):
    stock = told("--model", "nvidia/Cosmos3-Nano")["fields"]["negative_prompt"]["defaults"]["t2v"]
    assert stock == {"value": None, "source": "checkpoint (assets/negative_prompt.json)"}


def test_it_can_be_read(capsys, monkeypatch):
    code, out, err = cosmos3(capsys, monkeypatch, "capabilities", "--model", DISTILLED, "--profile", "sglang")
    assert code == 0, err
    for line in (
        f"{DISTILLED} (distilled), defaults of profile sglang: sglang 0.5.23, multimodal_gen",
        "  i2v  image to video from --image, into .mp4",
        "  frames (--frames): 1, 5, 9, 13 ... pixel frames; with controls any number.",
        "      one, or 4k+1 up to 4001: 5, 9, 13 ...; every task",
        "      default i2v: 81",
        "      a whole number from 1 to 1000; fixed by distillation",
        "  no t2v: nvidia/Cosmos3-Super-Image2Video-4Step is distilled for t2i and i2v only; nvidia/Cosmos3-Nano can",
        "  480p  1:1 640x640, 4:3 736x544, 3:4 544x736, 16:9 832x480, 9:16 480x832, 2:3 512x768; 24 to 300 frames",
        "  720p  1:1 960x960, 4:3 1104x832, 3:4 832x1104, 16:9 1280x720, 9:16 720x1280; not in training",
        "  768p  1:1 1024x1024, 4:3 1184x880, 3:4 880x1184, 16:9 1360x768, 9:16 768x1360; pictures",
    ):
        assert line in out.splitlines()
    assert "video_fit" not in out, "no task of this model has a clip"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--profile", "comfyui"], "Profiles are reference"), (["--model", "nanno"], "error: --model nanno: ")],
)
def test_what_does_not_exist_is_refused(capsys, monkeypatch, arguments, said):
    code, out, err = cosmos3(capsys, monkeypatch, "capabilities", *arguments)
    assert (code, out) == (2, "") and said in err


def test_asking_imports_no_torch():
    program = (
        "import sys; from cosmos3_core import cli; sys.argv = ['cosmos3', 'capabilities']; cli.main();"
        "sys.exit(bool({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_list_of_commands_waits_for_no_row():
    program = (
        "import sys; from cosmos3_core import cli; sys.argv = ['cosmos3', '--help']; cli.main();"
        "print({name.split('.')[1] for name in sys.modules if name.startswith('cosmos3_core.')} - {'cli', 'contract'})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "set()", result.stdout


# Help and completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "plan"])
def test_help_lists_every_field_under_a_heading(command, capsys, monkeypatch):
    code, out, _ = cosmos3(capsys, monkeypatch, command, "--help")
    assert code == 0 and {field.group for field in FIELDS.values()} < set(HEADINGS)
    blocks = dict(block.split(":\n", 1) for block in out.split("\n\n") if ":\n" in block)
    headings = [heading for heading in blocks if heading in HEADINGS]
    assert headings == list(HEADINGS)
    for name, field in FIELDS.items():
        typed = flag(name) if field.option else f"--set {name}="
        assert name == "prompt" or any(line.strip().startswith(typed) for line in blocks[field.group].splitlines())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["run", "--ta"], ["--task"]),
        (["run", "--task", ""], list(TASKS)),
        (["run", "--profile", "s"], ["sglang"]),
        (["run", "--model", "nvidia/Cosmos3-Nano-"], ["nvidia/Cosmos3-Nano-Policy-DROID"]),
        (["plan", "--model", "./mod"], ["dir"]),
        (["warmup", "--dtype", "b"], ["bfloat16"]),
        (["capabilities", "--profile", "d"], ["diffusers", "diffusers-docs"]),
        (["check", "--backend", "ref"], ["reference"]),
        (["run", "--set", "video_fi"], ["video_fit=crop", "video_fit=stretch"]),
        (["run", "--set", "max_t"], ["max_text_tokens="]),
        (["run", "--kernel", "rms"], ["rms_norm="]),
        (["run", "--format", "attention=nvfp4a"], ["attention=nvfp4a16"]),
        (["run", "--size", "7"], ["704p", "720p", "768p"]),
        (["run", "--image", "desk"], ["file"]),
        (["run", "-o", "out"], ["file"]),
        (["show", "out"], ["file"]),
        (["recipes", "show", "embedded-t2vs-"], ["embedded-t2vs-128x128-cpux1"]),
        (["recipes", "--folder", str(RECIPES), "show", "embedded-t2vs-"], ["embedded-t2vs-128x128-cpux1"]),
    ],
)
def test_a_shell_completes_files_and_choices(typed, offered, capsys, monkeypatch):
    """As bash asks for it: the words of the line and which of them is being typed."""
    monkeypatch.setenv("_COSMOS3_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", shlex.join(["cosmos3", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    code, out, _ = cosmos3(capsys, monkeypatch)
    kinds = [line.split(",", 1) for line in out.splitlines()]
    assert code == 0 and [word if kind == "plain" else kind for kind, word in kinds] == offered


# Rows ------------------------------------------------------------------------------------------------------------


def test_every_field_of_a_request_is_a_row():
    assert {field.name for field in fields(Request)} - {"width", "height"} | {"size"} == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_the_check_keeps_what_the_schema_says(name):
    """At its bounds and at each of its choices a value is taken, and beyond them refused."""
    field, task = FIELDS[name], TASKS["v2v"]
    schema = field.kind.schema
    good = [schema[bound] for bound in ("minimum", "maximum") if bound in schema] + schema.get("enum", [])
    bad = [schema["minimum"] - 1] if "minimum" in schema else []
    bad += [schema["maximum"] * 2 + 1] if "maximum" in schema else []
    bad += ["no such choice"] if "enum" in schema else []
    bad += ["x" * (schema["maxLength"] + 1)] if "maxLength" in schema else []
    for value in good:
        of_actions = name == "image_filter" and value in ("bicubic", "diffusers")
        assert field.check(value, TASKS["policy"] if of_actions else task) == value
    for value in [*bad, {}]:
        with pytest.raises(InputError, match=name):
            field.check(value, task)


def test_what_a_row_says_of_tasks_is_what_a_request_takes():
    facts = describe(TINY_MODEL).facts
    other = {"fps": 12, "video_fit": "stretch", "image_filter": "lanczos", "duration_template": False}
    for name, value in (other | {"condition_video_keep": "last", "condition_frame_indexes": [0]}).items():
        for task in TASKS.values():
            if (task.name, name) in (("extend", "condition_video_keep"), ("edit", "image_filter")):
                continue  # this is its default
            given = {"task": task.name, "prompt": "a cup"} | inputs_of(task) | {name: value}
            if "action" in task.latents:
                last = task.name == "video-policy" and name == "condition_video_keep"  # its default
                given |= {name: "first"} if last else {}
                given |= {"action_prompt": "text"} | ({"image_filter": "diffusers"} if name == "image_filter" else {})
            if task.name in FIELDS[name].tasks:
                assert resolve(given, "reference", facts, pick_seed=lambda: 0)[1][name] == "user"
            else:
                with pytest.raises(InputError, match="would change nothing"):
                    resolve(given, "reference", facts, pick_seed=lambda: 0)


def test_what_a_checkpoint_was_trained_for_is_said_by_value():
    told = capabilities(describe("nvidia/Cosmos3-Nano-Policy-DROID").facts, "reference", 64)["fields"]
    found = {name: told[name]["defaults"]["policy"]["value"] for name in ("domain", "action_space")}
    assert found == {"domain": "droid_lerobot", "action_space": "joints"}
    assert told["negative_prompt"]["defaults"]["t2v"]["value"] is None, "a text is named only"
