"""Every field of a request as a row: what value it takes, who takes it, where its default comes from, and its help.

The checks, the rule that nothing may be set without effect, did-you-mean, the command line's options, `cosmos3
capabilities` and docs/fields.md are loops over `FIELDS`. The values of the defaults are in defaults.toml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..contract import InputError
from ..spelling import shown
from . import kinds
from .action import acts
from .action_fields import ROWS as ACTIONS
from .action_kinds import FILTER, JSON
from .control_fields import CONTROLS
from .facts import NEGATIVE_PROMPT, ModelFacts
from .families import FILES, TASKS
from .field import (
    DECODE,
    INPUT,
    NOT_GIVEN,
    REQUIRED,
    SAMPLING,
    SIZE,
    TEXTS,
    THE_INPUTS,
    Field,
    uncontrolled,
    unguided,
)
from .keyframe_kind import KEYFRAMES
from .sound import LENGTHS
from .task import Task

SCHEDULES = ("native", "flow", "karras", "distilled")


def _stock_negative(model: ModelFacts) -> tuple[str, str]:
    found = "checkpoint" if model.negative_prompt is not None else "empty, as the checkpoint has no file"
    return model.negative_prompt or "", f"{found} ({NEGATIVE_PROMPT})"


def _input(name: str) -> Callable[[Task], str | None]:
    return lambda task: None if name in (task.input, *task.takes) else f"{task.title} takes no {name}"


def _any_input(task: Task) -> str | None:
    return None if task.input or task.takes else f"{task.title} has no input picture"


def _clip(task: Task) -> str | None:
    return None if task.source == "clip" or task.takes else f"{task.title} has no input clip"


def _continued(task: Task) -> str | None:
    return None if task.source == "clip" else f"{task.title} continues no clip"


def _cropped(task: Task) -> str | None:
    return _clip(task) or ("actions have a rule of their own for it, by `canvas`" if acts(task) else None)


def _chosen(task: Task) -> str | None:
    return _clip(task) or (None if task.chooses_frames else f"{task.title} takes all of its clip")


def _lasting(task: Task) -> str | None:
    return f"{task.result} has no duration" if task.single else None


def _silent(task: Task) -> str | None:
    return _lasting(task) or (None if task.sounding else f"{task.title} has no sound")


def _no_sound(values: Mapping[str, Any], task: Task) -> str | None:
    return None if values["sound"] else "there is no sound"


def _said_as_json(values: Mapping[str, Any], task: Task) -> str | None:
    return "a JSON action prompt says it in keys" if acts(task) and values["action_prompt"] == JSON else None


def _no_interval(values: Mapping[str, Any], task: Task) -> str | None:
    if values["control_guidance_interval"] and not uncontrolled(values, task):
        return None
    return unguided(values, task) or (None if values["guidance_interval"] else "there is no guidance_interval")


def _one_branch(values: Mapping[str, Any], task: Task) -> str | None:
    controlled = not uncontrolled(values, task)
    return None if controlled else unguided(values, task)


def _no_system_prompt(values: Mapping[str, Any], task: Task) -> str | None:
    return None if values["system_prompt"] else "there is no system_prompt"


def _no_template(values: Mapping[str, Any], task: Task) -> str | None:
    if reason := _said_as_json(values, task):
        return reason
    on = values["resolution_template"] or (values["duration_template"] and not task.single)
    return unguided(values, task) or (None if on else "no template is on")


def _unshifted(values: Mapping[str, Any], task: Task) -> str | None:
    return "the karras schedule has no shift" if values["schedule"] == "karras" else None


def _one_tile(values: Mapping[str, Any], task: Task) -> str | None:
    whole = values["tile"] is not None and values["tile"] >= max(values["size"])
    return "the picture is no larger than one tile" if whole else None


_ROWS = (
    Field(
        name="task",
        group=INPUT,
        kind=kinds.TASK,
        help=f"{', '.join(list(TASKS)[:-1])} or {list(TASKS)[-1]}.",
        default=THE_INPUTS,
        option=True,
        costs=True,
        headline=True,
    ),
    Field(name="prompt", group=INPUT, kind=kinds.PROMPT, help="What to show.", default=REQUIRED, headline=True),
    Field(
        name="image",
        group=INPUT,
        kind=kinds.PATH,
        help="Start a video from this picture, or edit it into another.",
        default=NOT_GIVEN,
        refusal=_input("image"),
        option=True,
    ),
    Field(
        name="video",
        group=INPUT,
        kind=kinds.PATH,
        help="Continue this clip, or make controls of it.",
        default=NOT_GIVEN,
        refusal=_input("video"),
        option=True,
    ),
    Field(
        name="keyframe",
        group=INPUT,
        kind=KEYFRAMES,
        help="Make a frame of the video be this picture, such as 0=a.png, 188=b.png or -1=b.png; several times.",
        default=NOT_GIVEN,
        refusal=_input("keyframe"),
        option=True,
    ),
    Field(
        name="extend",
        group=INPUT,
        kind=kinds.PATH,
        help="Go on from the end of this clip; the output holds both.",
        default=NOT_GIVEN,
        refusal=_input("extend"),
        option=True,
    ),
    Field(
        name="with_input",
        group=INPUT,
        kind=kinds.SWITCH,
        help="Write the clip before what goes on from it.",
        refusal=_input("extend"),
    ),
    Field(
        name="size",
        group=SIZE,
        kind=kinds.SIZE,
        help="1280x720, a tier such as 720p or 720p:16:9, or auto: the aspect of the input.",
        option=True,
        costs=True,
        headline=True,
    ),
    Field(
        name="frames",
        group=SIZE,
        kind=kinds.FRAMES,
        help="1, 5, 9, 13 ... pixel frames; with controls any number.",
        option=True,
        costs=True,
        headline=True,
    ),
    Field(name="fps", group=SIZE, kind=kinds.number(1, 240), help="Frames per second.", refusal=_lasting, option=True),
    Field(
        name="sound",
        group=INPUT,
        kind=kinds.SWITCH,
        help="Make the sound of the video, too.",
        refusal=_silent,
        modality="sound",
        option=True,
        costs=True,
    ),
    Field(
        name="audio",
        group=INPUT,
        kind=kinds.PATH,
        help="Make the video for this sound: a .wav, or any file with sound in it.",
        default=NOT_GIVEN,
        refusal=_silent,
        idle=_no_sound,
        modality="sound",
        option=True,
    ),
    Field(
        name="sound_length",
        group=SIZE,
        kind=kinds.choice(*LENGTHS),
        help="The video's seconds as sound: cut off to a whole sample (down), or rounded to one or to latent frames.",
        refusal=_silent,
        idle=_no_sound,
        modality="sound",
    ),
    Field(
        name="steps",
        group=SAMPLING,
        kind=kinds.whole(1, 1000),
        help="Denoising steps.",
        checkpoint=lambda model: (model.steps, "checkpoint (its distilled sigmas)"),
        option=True,
        costs=True,
        headline=True,
        distilled=True,
    ),
    Field(
        name="guidance",
        group=SAMPLING,
        kind=kinds.number(0, 20),
        help="Classifier-free guidance scale; 1 is none.",
        option=True,
        costs=True,
        distilled=True,
    ),
    Field(
        name="guidance_interval",
        group=SAMPLING,
        kind=kinds.INTERVAL,
        help="Timesteps between which guidance is used.",
        idle=unguided,
        distilled=True,
    ),
    Field(
        name="interval_ends",
        group=SAMPLING,
        kind=kinds.choice("open", "closed"),
        help="Whether the interval's own ends are outside it (open) or inside.",
        idle=_no_interval,
        distilled=True,
    ),
    Field(
        name="normalize_guidance",
        group=SAMPLING,
        kind=kinds.SWITCH,
        help="Keep guidance from making a velocity longer than the prompt's own.",
        idle=_one_branch,
        distilled=True,
    ),
    Field(
        name="schedule",
        group=SAMPLING,
        kind=kinds.choice(*SCHEDULES),
        help="Noise schedule and its solver.",
        checkpoint=lambda model: (model.schedule, "checkpoint (its scheduler and model_index.json)"),
        distilled=True,
    ),
    Field(
        name="shift",
        group=SAMPLING,
        kind=kinds.number(0.01, 100),
        help="Shift of the noise schedule.",
        checkpoint=lambda model: (model.shift, "checkpoint (its scheduler)"),
        idle=_unshifted,
        option=True,
        distilled=True,
    ),
    Field(
        name="seed",
        group=SAMPLING,
        kind=kinds.SEED,
        help="Seed of the noise; -1 is a random one.",
        option=True,
        headline=True,
    ),
    Field(
        name="negative_prompt",
        group=INPUT,
        kind=kinds.TEXT,
        help="What to keep away from.",
        checkpoint=_stock_negative,
        idle=unguided,
        option=True,
        distilled=True,
    ),
    Field(
        name="tile",
        group=DECODE,
        kind=kinds.TILE,
        help="Decode in tiles of this many pixels, to save memory.",
        default=NOT_GIVEN,
        idle=_one_tile,
        option=True,
        costs=True,
    ),
    Field(
        name="condition_frame_indexes",
        group=INPUT,
        kind=kinds.INDICES,
        help="Latent frames that are taken from the clip.",
        refusal=_chosen,
    ),
    Field(
        name="condition_video_keep",
        group=INPUT,
        kind=kinds.choice("first", "last"),
        help="Which end of the clip they are taken from.",
        refusal=lambda task: _continued(task) or (None if task.input == "video" else "they are taken from its end"),
    ),
    Field(
        name="system_prompt",
        group=TEXTS,
        kind=kinds.SWITCH,
        help="Put the system prompt of the media before each text.",
        checkpoint=lambda model: (model.system_prompt, "checkpoint (model_index.json)"),
    ),
    Field(
        name="system_prompt_text",
        group=TEXTS,
        kind=kinds.choice("trained", "corrected"),
        help="The system prompt as in training, with its slip, or in sglang's spelling.",
        idle=_no_system_prompt,
    ),
    Field(
        name="duration_template",
        group=TEXTS,
        kind=kinds.SWITCH,
        help="Add a sentence on duration and frame rate to a plain prompt.",
        refusal=_lasting,
        idle=_said_as_json,
    ),
    Field(
        name="resolution_template",
        group=TEXTS,
        kind=kinds.SWITCH,
        help="Add a sentence on the size to a plain prompt.",
        idle=_said_as_json,
    ),
    Field(
        name="json_metadata",
        group=TEXTS,
        kind=kinds.SWITCH,
        help="Add duration and size to a JSON prompt, as keys.",
        idle=_said_as_json,
    ),
    Field(
        name="negative_metadata",
        group=TEXTS,
        kind=kinds.choice("none", "same", "inverse"),
        help="Which of these sentences the negative prompt gets.",
        idle=_no_template,
        distilled=True,
    ),
    Field(
        name="image_filter",
        group=INPUT,
        kind=FILTER,
        help="Filter that scales the input to the size.",
        refusal=_any_input,
    ),
    Field(
        name="video_fit",
        group=INPUT,
        kind=kinds.choice("crop", "stretch"),
        help="How a clip of another shape is made to fit.",
        refusal=_cropped,
    ),
    Field(
        name="video_fps",
        group=INPUT,
        kind=kinds.choice("resample", "keep"),
        help="A clip of another frame rate: resample it to fps, or keep its frames one by one.",
        refusal=_clip,
        option=True,
    ),
    *CONTROLS,
    Field(
        name="max_text_tokens",
        group=TEXTS,
        kind=kinds.whole(0, 100_000),
        help="Tokens at which a text is cut; 0 is never.",
    ),
)
FIELDS: dict[str, Field] = {field.name: field for field in (*_ROWS, *ACTIONS)}


def is_whole(given: Mapping[str, Any]) -> bool:
    """Whether these fields are a manifest's request, which has all of them."""
    return FIELDS.keys() <= given.keys()


def understood(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as JSON has them, by the rule of `kinds.plain`, less those that are left to their default: None is that,
    but for a kind that has a use for it."""
    values = {name: kinds.plain(value) for name, value in given.items()}
    paths = {name: path for name in FILES if (path := kinds.path_of(values.get(name))) is not None}
    values |= paths | _sounding(values)
    return {name: v for name, v in values.items() if v is not None or (name in FIELDS and FIELDS[name].kind.null)}


def _sounding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Task and sound of a task that is called t2vs, i2vs or v2vs."""
    name = values.get("task")
    if not isinstance(name, str) or not (task := re.fullmatch(r"([tiv]2v)s", name.strip().lower())):
        return {}
    if values.get("sound") is False:
        raise InputError(f"task {shown(name)} with sound false", "that task has sound", f"Use `task` {task[1]}", "task")
    return {"task": task[1], "sound": True}
