"""A request: every choice of a run as one value, checked as a whole before any weight is read.

`resolve` fills what the user left open from defaults.toml and from the checkpoint, and remembers where each value came
from. An option that would change nothing is an error, as is a key that does not exist.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from ..spelling import did_you_mean
from .facts import ModelFacts
from .families import INPUTS, TASKS
from .fields import FIELDS, NOT_GIVEN, PROFILE
from .task import Task

PROFILES = ("reference", "diffusers", "vllm-omni", "sglang")
DEFAULT_TASK = "t2v"
CHECKPOINT = "checkpoint"
"""In defaults.toml: what the field's row finds in the checkpoint."""


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
    video_fps: str
    max_text_tokens: int
    tile: int | None

    @property
    def is_video(self) -> bool:
        return self.frames > 1

    @property
    def clean_frames(self) -> tuple[int, ...]:
        """Latent frames taken from the input instead of noise, ascending."""
        return TASKS[self.task].clean(self)

    @property
    def conditioning_pixel_frames(self) -> int:
        """Input frames that the clean latent frames cover."""
        return max(self.clean_frames) * TEMPORAL_COMPRESSION + 1 if self.clean_frames else 0

    def to_json(self) -> dict[str, Any]:
        """The request as `resolve` takes it: giving it back yields the same request."""
        values = asdict(self)
        return values | {"size": f"{values.pop('width')}x{values.pop('height')}"}


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("defaults.toml").read_text())


def profile_source(profile: str) -> str:
    """Where a profile's values were read."""
    return _tables()["profile"][profile]["source"]


def defaults(task: str, profile: str, model: ModelFacts) -> tuple[dict[str, Any], dict[str, str]]:
    """What the fields of a task are where they are not given, by a profile for a model, and where each value comes
    from. A field without a default (a prompt) is absent; the seed is "random" where the profile leaves it to chance.
    Raises InputError for an unknown profile."""
    if profile not in PROFILES:
        raise InputError(f"profile {profile!r}", "there is no such profile", f"Profiles are {', '.join(PROFILES)}")
    row = _tables()["profile"][profile] | _tables()[task][profile]
    variants = {name: dict(row.pop(name, {})) for name in ("edge", "distilled")}
    special, _ = variants.get(model.variant, {}), row.pop("source")
    where = f"profile {profile}, {model.variant}" + (f" ({special.pop('source')})" if "source" in special else "")
    row, origin = row | special, dict.fromkeys(row, f"profile {profile}") | dict.fromkeys(special, where)
    for name, field in FIELDS.items():
        if field.default == NOT_GIVEN:
            row[name], origin[name] = None, NOT_GIVEN
        elif field.default == PROFILE and field.checkpoint and row[name] == CHECKPOINT:
            row[name], origin[name] = field.checkpoint(model)
    return row, origin


def infer_task(given: dict[str, Any], output_suffix: str | None) -> str:
    """The task that the given fields call for: one that starts from the input given, and of those the one of a single
    frame where one frame or a single frame's file is asked for. Raises InputError for two inputs."""
    inputs = [name for name in INPUTS if given.get(name) is not None]
    if len(inputs) > 1:
        raise InputError(" with ".join(f"`{name}`" for name in inputs), "a run starts from one of them", "Drop one")
    source, suffix = next(iter(inputs), None), (output_suffix or "").lower()
    fitting = [task for task in TASKS.values() if task.input == source]
    single = given.get("frames") == 1 or any(task.single and task.suffix == suffix for task in fitting)
    return next((task for task in fitting if task.single == single), fitting[0]).name


def check_keys(given: dict[str, Any]) -> None:
    """InputError with a suggestion for a key that is no request field."""
    for key in given:
        if key not in FIELDS:
            hint = did_you_mean(key, FIELDS, f"Fields are {', '.join(sorted(FIELDS))}")
            raise InputError(f"request field {key!r}", "there is no such field", hint)


def resolve(
    given: dict[str, Any], profile: str, model: ModelFacts, pick_seed: Callable[[], int]
) -> tuple[Request, dict[str, str]]:
    """The full request, and for each of `FIELDS` where its value came from.

    `given` holds the fields that the user set, `task` among them. `pick_seed` is asked when the profile leaves the seed
    to chance. Raises InputError.
    """
    check_keys(given)
    default = TASKS[DEFAULT_TASK]
    task = TASKS[FIELDS["task"].check(given.get("task", default.name), default)]
    values, origin = defaults(task.name, profile, model)
    if values["seed"] == "random":
        values["seed"], origin["seed"] = pick_seed(), "random"
    # What the user repeats of the defaults is no change: a manifest's request can be given back as it is.
    changed = {k: v for k, v in given.items() if _plain(v) != _plain(values.get(k))}
    values, origin = values | given | {"task": task.name}, origin | dict.fromkeys(changed, "user")
    _check_variant(task, changed, model)
    if "prompt" not in values:
        raise InputError("a run without a prompt", "there is nothing to generate", 'Type cosmos3 run "what to show"')
    values = {name: FIELDS[name].check(value, task) for name, value in values.items()}
    _check_inputs(task, values)
    width, height = values["size"]
    request = Request(**{key: value for key, value in values.items() if key != "size"}, width=width, height=height)
    _check_clean(request)
    for name, value in changed.items():
        if reason := FIELDS[name].useless(values, task):
            raise InputError(f"{name} = {value!r}", f"it would change nothing: {reason}", f"Drop {name}")
    return request, origin


def _plain(value: Any) -> Any:
    """Tuples and lists alike, and no interval is no interval however it is written."""
    return list(value) if isinstance(value, tuple) else [] if value is None else value


def _check_variant(task: Task, changed: dict[str, Any], model: ModelFacts) -> None:
    if model.variant != "distilled":
        if changed.get("schedule") == "distilled":
            raise InputError("schedule 'distilled'", f"{model.name} is not a distilled model", "Drop schedule")
        return
    if not task.distilled:
        names = " and ".join(name for name, other in TASKS.items() if other.distilled)
        raise InputError(f"task {task.name}", f"{model.name} is distilled for {names} only", "Use the full model")
    for name, value in changed.items():
        if FIELDS[name].distilled:
            found = f"{model.name} is distilled: its steps and guidance are fixed"
            raise InputError(f"{name} = {value!r}", found, f"Drop {name}")


def _check_inputs(task: Task, values: dict[str, Any]) -> None:
    """The file that the task starts from and no other, and one frame or several."""
    if task.input and values[task.input] is None:
        raise InputError(f"task {task.name}", f"there is no input {task.input}", f"Add `{task.input}` FILE")
    for name in INPUTS:
        if values[name] is not None and (reason := FIELDS[name].refusal(task)):
            next_step = f"Use `task` {' or '.join(FIELDS[name].tasks)} or drop it"
            raise InputError(f"`{name}` with task {task.name}", reason, next_step)
    if task.single != (values["frames"] == 1):
        found, next_step = "one frame is an image", f"Ask for {TEMPORAL_COMPRESSION + 1} frames or more"
        if task.single:
            other = TASKS[DEFAULT_TASK]
            found = f"{task.result} has one frame"
            next_step = f"Drop frames, or use `task` {other.name} and an output ending in {other.suffix}"
        raise InputError(f"{values['frames']} frames with task {task.name}", found, next_step)


def _check_clean(request: Request) -> None:
    """What is taken from the input lies in the video and leaves something to generate."""
    clean, frames = request.clean_frames, request.frames
    latent_frames = (frames - 1) // TEMPORAL_COMPRESSION + 1
    if clean and clean[-1] >= latent_frames:
        raise InputError(
            f"condition_frame_indexes {json.dumps(clean)}",
            f"{frames} frames are {latent_frames} latent frames",
            f"Use indices from 0 to {latent_frames - 1}",
        )
    if len(clean) == latent_frames:
        next_step = f"Ask for {frames + TEMPORAL_COMPRESSION} frames or more"
        raise InputError("every frame as conditioning", "there is nothing left to generate", next_step)
