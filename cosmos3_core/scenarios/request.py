"""A request: every choice of a run as one value, checked as a whole before any weight is read.

`resolve` fills what the user left open from defaults.toml and from the checkpoint, and remembers where each value came
from. An option that would change nothing is an error, as is a key that does not exist.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import InputError
from .sizes import check_size, parse_size

TASKS = {"t2i": "text to image", "t2v": "text to video", "i2v": "image to video", "v2v": "video to video"}
SCHEDULES = ("native", "flow", "karras", "distilled")
PROFILES = ("reference", "diffusers", "vllm-omni", "sglang")
MAX_PROMPT_CHARS = 100_000
FRAME_GROUP = 4
NEGATIVE_PROMPT = "assets/negative_prompt.json"
"""Where a checkpoint keeps the negative prompt that its authors use for video."""


@dataclass(frozen=True)
class Request:
    """One generation, fully resolved. Sizes in pixels, `fps` in frames per second, `shift` of the noise schedule,
    `guidance_interval` on the timestep scale of 0 to 1000 with both ends included (None: every step),
    `condition_frame_indexes` latent frame indices, `tile` the VAE decode's tile in pixels (None: whole)."""

    task: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    fps: float
    steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None
    schedule: str
    shift: float
    seed: int
    image: str | None
    video: str | None
    condition_frame_indexes: tuple[int, ...]
    condition_video_keep: str
    system_prompt: bool
    duration_template: bool
    resolution_template: bool
    json_metadata: bool
    negative_metadata: str
    image_filter: str
    video_fit: str
    max_text_tokens: int
    tile: int | None

    @property
    def is_video(self) -> bool:
        return self.frames > 1

    @property
    def conditioning_pixel_frames(self) -> int:
        """Input frames that the clean latent frames cover."""
        return {"i2v": 1, "v2v": max(self.condition_frame_indexes, default=0) * FRAME_GROUP + 1}.get(self.task, 0)

    @property
    def clean_frames(self) -> tuple[int, ...]:
        """Latent frames taken from the input instead of noise."""
        return {"i2v": (0,), "v2v": self.condition_frame_indexes}.get(self.task, ())

    def to_json(self) -> dict[str, Any]:
        """The request as `resolve` takes it: giving it back yields the same request."""
        values = asdict(self)
        return values | {"size": f"{values.pop('width')}x{values.pop('height')}"}


REQUEST_KEYS = tuple(field.name for field in fields(Request) if field.name not in ("width", "height")) + ("size",)
"""The keys a caller may set; `size` stands for width and height."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a checkpoint bears on a request. `variant` is "base", "edge" or "distilled"; `steps` the
    number that a distilled model was made for."""

    name: str
    variant: str
    system_prompt: bool
    negative_prompt: str | None
    steps: int | None = None


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("defaults.toml").read_text())


def profile_source(profile: str) -> str:
    """Where a profile's values were read."""
    return _tables()["profile"][profile]["source"]


def defaults(task: str, profile: str, variant: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The row of a scenario's table for a profile and model variant, and where each of its values comes from."""
    row = _tables()["profile"][profile] | _tables()[task][profile]
    variants = {name: dict(row.pop(name, {})) for name in ("edge", "distilled")}
    special, _ = variants.get(variant, {}), row.pop("source")
    where = f"profile {profile}, {variant}" + (f" ({special.pop('source')})" if "source" in special else "")
    return row | special, dict.fromkeys(row, f"profile {profile}") | dict.fromkeys(special, where)


def infer_task(given: dict[str, Any], output_suffix: str | None) -> str:
    """The task that the inputs call for: a video makes v2v, an image i2v, one frame or a .png t2i, else t2v."""
    if given.get("image") is not None and given.get("video") is not None:
        raise InputError("--image with --video", "a run starts from one of them", "Drop one")
    if given.get("video") is not None:
        return "v2v"
    if given.get("image") is not None:
        return "i2v"
    return "t2i" if given.get("frames") == 1 or (output_suffix or "").lower() == ".png" else "t2v"


def check_keys(given: dict[str, Any]) -> None:
    """InputError with a suggestion for a key that is no request field."""
    for key in given:
        if key not in REQUEST_KEYS:
            close = difflib.get_close_matches(key, REQUEST_KEYS, 1)
            hint = f"Did you mean {close[0]}?" if close else f"Fields are {', '.join(sorted(REQUEST_KEYS))}"
            raise InputError(f"request field {key!r}", "there is no such field", hint)


def resolve(
    given: dict[str, Any], profile: str, model: ModelFacts, pick_seed: Callable[[], int]
) -> tuple[Request, dict]:
    """The full request, and for each of `REQUEST_KEYS` where its value came from.

    `given` holds what the user set (keys of `REQUEST_KEYS`, `task` among them). `pick_seed` is asked when the profile
    leaves the seed to chance.
    """
    check_keys(given)
    if profile not in PROFILES:
        raise InputError(f"profile {profile!r}", "there is no such profile", f"Profiles are {', '.join(PROFILES)}")
    task = given.get("task", "t2v")
    if task not in tuple(TASKS):  # a list from a JSON file cannot be looked up in a dict
        raise InputError(f"task {task!r}", "there is no such task", f"Tasks are {', '.join(TASKS)}")
    row, origin = defaults(task, profile, model.variant)
    optional: dict[str, Any] = dict.fromkeys(("image", "video", "tile"))
    values, origin = optional | row, dict.fromkeys(optional, "not given") | origin
    negative = "checkpoint" if model.negative_prompt is not None else "empty, as the checkpoint has no file"
    for key, value, where in (
        ("system_prompt", model.system_prompt, "checkpoint (model_index.json)"),
        ("negative_prompt", model.negative_prompt or "", f"{negative} ({NEGATIVE_PROMPT})"),
        ("steps", model.steps, "checkpoint (its distilled sigmas)"),
    ):
        if values[key] == "checkpoint":
            values[key], origin[key] = value, where
    if values["seed"] == "random":
        values["seed"], origin["seed"] = pick_seed(), "random"
    # What the user repeats of the defaults is no change: a manifest's request can be given back as it is.
    changed = {k: v for k, v in given.items() if _plain(v) != _plain(values.get(k))}
    values, origin = values | given | {"task": task}, origin | dict.fromkeys(changed, "user")
    values["width"], values["height"] = _size(values.pop("size"), task)
    _check_variant(task, changed, model)
    request = Request(**_checked(values, changed))
    return request, origin


def _plain(value: Any) -> Any:
    """Tuples and lists alike, and no interval is no interval however it is written."""
    return list(value) if isinstance(value, tuple) else [] if value is None else value


def _check_variant(task: str, given: dict[str, Any], model: ModelFacts) -> None:
    if model.variant == "distilled":
        if task not in ("t2i", "i2v"):
            raise InputError(f"task {task}", f"{model.name} is distilled for t2i and i2v only", "Use the full model")
        for key in ("steps", "shift", "schedule", "guidance", "guidance_interval", "negative_prompt"):
            if key in given:
                raise InputError(
                    f"{key} = {given[key]!r}",
                    f"{model.name} is distilled: its steps and guidance are fixed",
                    f"Drop {key}",
                )
    elif given.get("schedule") == "distilled":
        raise InputError("schedule 'distilled'", f"{model.name} is not a distilled model", "Drop schedule")


def _size(value: Any, task: str) -> tuple[int, int]:
    if isinstance(value, str):
        return parse_size(value, "1:1" if task == "t2i" else "16:9")
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value):
        return check_size(*value, asked=f"size {value[0]}x{value[1]}")
    raise InputError(f"size {value!r}", "it is no size", "Type it as WIDTHxHEIGHT")


def _number(low: float, high: float, whole: bool = False) -> Callable[[str, Any], Any]:
    kind = "a whole number" if whole else "a number"

    def check(key: str, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or (whole and value != int(value)):
            raise InputError(f"{key} = {value!r}", "it is out of range", f"{key} is {kind} from {low} to {high}")
        return int(value) if whole else float(value)

    return check


def _one_of(*choices: str) -> Callable[[str, Any], Any]:
    def check(key: str, value: Any) -> Any:
        if value not in choices:
            raise InputError(f"{key} = {value!r}", "there is no such choice", f"{key} is one of {', '.join(choices)}")
        return value

    return check


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{key} = {value!r}", "it is a switch", f"{key} is true or false")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{key} = {value!r}", "it is not text", f"Give {key} as a string")
    if len(value) > MAX_PROMPT_CHARS:
        raise InputError(
            f"a {key} of {len(value):,} characters", "that is no prompt", f"Keep it under {MAX_PROMPT_CHARS:,}"
        )
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{key} with a NUL or a broken character", "that is no text", "Give plain UTF-8 text")
    return value


def _prompt(key: str, value: Any) -> str:
    if not _text(key, value).strip():
        raise InputError("an empty prompt", "there is nothing to generate", "Describe the scene in a sentence or two")
    return value


def _path(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise InputError(f"{key} = {value!r}", "it is not a path", f"Give {key} as the path of a file")
    return value


def _frames(key: str, value: Any) -> int:
    value = _number(1, 4001, whole=True)(key, value)
    if (value - 1) % FRAME_GROUP:
        below = (value - 1) // FRAME_GROUP * FRAME_GROUP + 1
        raise InputError(
            f"{value} frames",
            f"frames come as {FRAME_GROUP}k+1: one, then groups of {FRAME_GROUP}",
            f"The nearest are {below} and {below + FRAME_GROUP}",
        )
    return value


def _interval(key: str, value: Any) -> tuple[float, float] | None:
    if value is None or value == [] or value == ():
        return None
    bound = _number(0, 1000)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(
            f"{key} = {value!r}", "it is no interval", "Give two timesteps from 0 to 1000, such as [400, 1000]"
        )
    low, high = (bound(key, number) for number in value)
    if low > high:
        raise InputError(f"{key} {low:g} to {high:g}", "it ends before it begins", f"Did you mean [{high:g}, {low:g}]?")
    return low, high


def _indices(key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not value or not all(type(n) is int and n >= 0 for n in value):
        raise InputError(f"{key} = {value!r}", "latent frames are numbered 0, 1, 2 ...", "Give a list such as [0, 1]")
    return tuple(sorted(set(value)))


def _tile(key: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 64 or value % 64):
        raise InputError(f"{key} = {value!r}", "tiles are multiples of 64 pixels", "Try 256, or leave it out")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "task": _one_of(*TASKS),
    "prompt": _prompt,
    "negative_prompt": _text,
    "width": _number(1, 4096, whole=True),
    "height": _number(1, 4096, whole=True),
    "frames": _frames,
    "fps": _number(1, 240),
    "steps": _number(1, 1000, whole=True),
    "guidance": _number(0, 20),
    "guidance_interval": _interval,
    "schedule": _one_of(*SCHEDULES),
    "shift": _number(0.01, 100),
    "seed": _number(0, 2**63 - 1, whole=True),
    "image": _path,
    "video": _path,
    "condition_frame_indexes": _indices,
    "condition_video_keep": _one_of("first", "last"),
    "system_prompt": _flag,
    "duration_template": _flag,
    "resolution_template": _flag,
    "json_metadata": _flag,
    "negative_metadata": _one_of("none", "same", "inverse"),
    "image_filter": _one_of("bilinear", "lanczos"),
    "video_fit": _one_of("crop", "stretch"),
    "max_text_tokens": _number(0, 100_000, whole=True),
    "tile": _tile,
}


def _checked(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Each value by its own rule, then the values against each other."""
    if "prompt" not in values:
        raise InputError("a run without a prompt", "there is nothing to generate", 'Type cosmos3 run "what to show"')
    values = {key: _CHECKS[key](key, value) for key, value in values.items()}
    _check_inputs(values)
    _check_effect(values, given)
    return values


def _check_inputs(values: dict[str, Any]) -> None:
    task, frames = values["task"], values["frames"]
    for key, owner in (("image", "i2v"), ("video", "v2v")):
        if task == owner and values[key] is None:
            raise InputError(f"task {task}", f"there is no input {key}", f"Add --{key} FILE")
        if task != owner and values[key] is not None:
            raise InputError(
                f"--{key} with task {task}", f"{TASKS[task]} takes no {key}", f"Use --task {owner} or drop it"
            )
    if (task == "t2i") != (frames == 1):
        found, fix = "an image has one frame", "Drop frames, or use --task t2v and an output ending in .mp4"
        if task != "t2i":
            found, fix = "one frame is an image", "Ask for 5 frames or more"
        raise InputError(f"{frames} frames with task {task}", found, fix)
    latent_frames = (frames - 1) // FRAME_GROUP + 1
    if task == "v2v":
        if values["condition_frame_indexes"][-1] >= latent_frames:
            raise InputError(
                f"condition_frame_indexes {json.dumps(values['condition_frame_indexes'])}",
                f"{frames} frames are {latent_frames} latent frames",
                f"Use indices from 0 to {latent_frames - 1}",
            )
        if len(values["condition_frame_indexes"]) == latent_frames:
            more = frames + FRAME_GROUP
            raise InputError(
                "every frame as conditioning", "there is nothing left to generate", f"Ask for {more} frames or more"
            )


def _check_effect(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Options that would be without effect in this request."""
    task, useless = values["task"], []
    if values["guidance"] == 1.0:
        useless += [(k, "guidance 1 uses no negative branch") for k in ("negative_prompt", "guidance_interval")]
        useless.append(("negative_metadata", "guidance 1 uses no negative branch"))
    if values["schedule"] == "karras":
        useless.append(("shift", "the karras schedule has no shift"))
    if task != "v2v":
        useless += [
            (k, f"{TASKS[task]} has no input clip")
            for k in ("condition_frame_indexes", "condition_video_keep", "video_fit")
        ]
    if task not in ("i2v", "v2v"):
        useless.append(("image_filter", f"{TASKS[task]} has no input picture"))
    if task == "t2i":
        useless += [(k, "an image has no duration") for k in ("duration_template", "fps")]
    if not values["resolution_template"] and (task == "t2i" or not values["duration_template"]):
        useless.append(("negative_metadata", "no template is on"))
    if values["tile"] is not None and values["tile"] >= max(values["width"], values["height"]):
        useless.append(("tile", "the picture is no larger than one tile"))
    for key, reason in useless:
        if key in given:
            raise InputError(f"{key} = {given[key]!r}", f"it would change nothing: {reason}", f"Drop {key}")
