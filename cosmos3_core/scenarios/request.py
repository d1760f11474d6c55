"""A request: every choice of a run as one value, checked as a whole before any weight is read.

`resolve` fills what the user left open from defaults.toml and from the checkpoint, and remembers where each value came
from. An option that would change nothing is an error, as is a key that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from ..spelling import shown
from . import action, aliases, kinds
from .action import acts
from .action_kinds import Table
from .captions import check_caption
from .chunks import Chunks
from .defaults import NO_GUIDANCE_UP_TO, check_profile, defaults, tables_read
from .facts import ModelFacts
from .families import FILES, INPUTS, TASKS, sources
from .faults import Faults
from .field import PROFILE, REQUIRED, THE_INPUTS
from .fields import FIELDS
from .keyframes import Keyframe, placed
from .sizes import without_input
from .sound import SOUND_SUFFIXES
from .task import DISTILLED, Task
from .transfer import DEFAULT_HINT, HINTS, TRANSFER, check_controls, hints_of
from .variants import check_able

DEFAULT_TASK = "t2v"
FROM_CLIP = "auto"
"""In defaults.toml: what the clip has, which `settle` reads."""
WITHOUT_CLIP = {"frames": 93, "fps": 24.0}
"""What stands in where a plan has no clip."""
ANY = "(any)"
"""What stands in for a text or a file that a partial request lacks."""
STANDS_IN = "not given; no plan depends on it"
THE_OUTPUT = "the output"
"""Where a value is from that follows from the output's name."""


@dataclass(frozen=True)
class Request:
    """One generation, fully resolved. Sizes in pixels, `fps` in frames per second, `shift` of the noise schedule,
    `guidance_interval` on the timestep scale of 0 to 1000 (None: every step), its ends "open" or "closed",
    `condition_frame_indexes` latent frame indices, `sound_length` one of `sound.LENGTHS`, `tile` the VAE decode's tile
    in pixels (None: whole). The fields from `domain` on are None where the task has no actions; `canvas` is in pixels,
    and `width` and `height` are then those of the part of it that the input covers."""

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
    interval_ends: str
    normalize_guidance: bool
    schedule: str
    shift: float
    seed: int
    image: str | None
    video: str | None
    sound: bool
    audio: str | None
    sound_length: str
    keyframe: tuple[Keyframe, ...] | None
    extend: str | None
    with_input: bool
    edge: str | None
    blur: str | None
    depth: str | None
    seg: str | None
    wsm: str | None
    edge_preset: str
    blur_preset: str
    control_guidance: float
    control_guidance_interval: tuple[float, float] | None
    control_formula: str
    control_weights: tuple[tuple[str, float], ...]
    control_attention: str
    control_positions: str
    emphasize_controls: bool
    show_controls: bool
    show_input: bool
    max_frames: int
    chunk_frames: int
    carry_frames: int
    first_frames: int
    chunk_noise: str
    condition_frame_indexes: tuple[int, ...]
    condition_video_keep: str
    system_prompt: bool
    system_prompt_text: str
    duration_template: bool
    resolution_template: bool
    json_metadata: bool
    negative_metadata: str
    image_filter: str
    video_fit: str
    video_fps: str
    max_text_tokens: int
    tile: int | None
    domain: str | None
    actions: str | Table | None
    history: str | Table | None
    state: str | Table | None
    chunk: int | None
    rollout: int | None
    canvas: tuple[int, int] | None
    view: str | None
    view_detail: str | None
    action_prompt: str | None
    action_stats: str | None
    action_normalization: str | None
    pad_actions: bool | None
    action_rows: tuple[int, int] | None
    history_length: int | None
    action_space: str | None
    action_width: int | None

    @property
    def is_video(self) -> bool:
        return self.frames > 1

    @property
    def seen_size(self) -> tuple[int, int]:
        """(width, height) of what the model is shown, which texts tell it: with actions the canvas."""
        return self.canvas or (self.width, self.height)

    @property
    def predicts_actions(self) -> bool:
        return acts(TASKS[self.task]) and self.task != action.GIVEN

    @property
    def input_frames(self) -> int:
        """Frames of its picture or clip that a request takes: with all of them observed, those of every chunk."""
        return self.chunks.total if self.task == action.OBSERVED else self.conditioning_pixel_frames

    @property
    def other_tokens(self) -> int:
        """Media tokens besides those of vision: one for each row of actions."""
        return action.layout_of(self).rows if acts(TASKS[self.task]) else 0

    @property
    def clean_frames(self) -> tuple[int, ...]:
        """Latent frames taken from the input instead of noise, ascending."""
        return TASKS[self.task].clean(self)

    @property
    def conditioning_pixel_frames(self) -> int:
        """Input frames that the clean latent frames cover."""
        return max(self.clean_frames) * TEMPORAL_COMPRESSION + 1 if self.clean_frames else 0

    @property
    def sources(self) -> dict[str, str]:
        """The paths of its files, as `families.sources` calls them."""
        values = self.to_json()
        return sources({name: values[name] for name in FILES})

    @property
    def controls(self) -> tuple[str, ...]:
        """What stands before what is made, as clean items of their own: the kinds of control that it has, in their
        order, or the picture that it edits."""
        beside = TASKS[self.task].beside
        return hints_of(vars(self)) + ((beside,) if beside else ())

    @property
    def chunks(self) -> Chunks:
        """In which chunks it is made: one, for most tasks."""
        return TASKS[self.task].chunks(self)

    def of_chunk(self, index: int) -> Request:
        """The request that a chunk is a generation of."""
        chunk: Request = TASKS[self.task].of_chunk(self, index)
        return chunk

    def to_json(self) -> dict[str, Any]:
        """The request as `resolve` takes it: giving it back yields the same request."""
        values = asdict(self)
        if self.keyframe is not None:
            values["keyframe"] = {str(one.frame): one.image for one in self.keyframe}
        canvas = self.canvas and f"{self.canvas[0]}x{self.canvas[1]}"
        size = f"{values.pop('width')}x{values.pop('height')}"
        return values | {"size": size, "canvas": canvas, "control_weights": dict(self.control_weights) or None}


def infer_task(given: Mapping[str, Any], output_suffix: str | None, made_for: str | None = None) -> str:
    """The task that the given fields call for: transfer where there is a control, else one that starts from the input
    given, and of those the one of a single frame where one frame or a single frame's file is asked for, or one with
    actions where something of these is given; where nothing says, the one that the model was `made_for`. Raises
    InputError for two inputs."""
    if hints_of(given):
        return TRANSFER
    inputs = [name for name in INPUTS if given.get(name) is not None]
    if len(inputs) > 1:
        asked, next_step = " with ".join(f"`{name}`" for name in inputs), "Drop one"
        if inputs == ["image", "keyframe"]:
            next_step = "Give the first picture as `keyframe` 0=FILE too"
        raise InputError(asked, "a run starts from one of them", next_step, inputs[1])
    source, suffix = next(iter(inputs), None), (output_suffix or "").lower()
    fitting = [task for task in TASKS.values() if task.input == source]
    acting = any(given.get(name) is not None for name in action.SAYING) or (made_for and acts(TASKS[made_for]))
    fitting = [task for task in fitting if acts(task) == bool(acting)] or fitting
    fitting = sorted((task for task in fitting if _has(given, task.needs)), key=lambda task: -len(task.needs))
    if made_for in [task.name for task in fitting] and not suffix and "frames" not in given:
        return made_for
    frames = given.get("frames")
    single = (isinstance(frames, int | float) and frames == 1) or any(
        task.single and task.suffix == suffix for task in fitting
    )
    return next((task for task in fitting if task.single == single), fitting[0]).name


def _has(given: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return all(given.get(name) is not None for name in names)


def check_keys(given: Mapping[str, Any]) -> None:
    """InputError with a suggestion for each key that is no request field."""
    faults = Faults()
    for key in given:
        with faults.of(key):
            _check_key(key)
    faults.report()


def _check_key(key: str) -> None:
    if key not in FIELDS:
        hint = aliases.next_step(key, FIELDS, f"Fields are {', '.join(sorted(FIELDS))}")
        raise InputError(f"request field {shown(key)}", "there is no such field", hint)


def check(
    given: Mapping[str, Any],
    profile: str,
    suffix: str | None = None,
    *,
    made_for: str | None = None,
    partial: bool = False,
) -> Task:
    """The task of a request, by the field or by what is given, the output's `suffix` and what the model was `made_for`
    (`ModelFacts`). Raises InputError for all that is wrong with the given fields whatever the model: unknown ones, bad
    values, a missing prompt or input. A `partial` request may lack these two."""
    faults, task, values = Faults(), TASKS[DEFAULT_TASK], {}
    with faults.of("profile"):
        check_profile(profile)
    with faults.of("task"):
        name = given["task"] if "task" in given else infer_task(given, suffix, made_for)
        task = TASKS[FIELDS["task"].check(name, task)]
    for key, value in given.items():
        with faults.of(key):
            _check_key(key)
            if value is None and FIELDS[key].refusal(task):  # as a whole request has it
                continue
            values[key] = FIELDS[key].check(value, task)
            if FIELDS[key].kind in (kinds.PROMPT, kinds.TEXT):
                check_caption(values[key], f"{key.replace('_', ' ')} {values[key][:40]!r}")
    if not partial and "prompt" in _missing(given, task):
        said = "there is nothing to generate", 'Give a `prompt`, such as "a cup on a table"'
        faults.add("prompt", InputError("a run without a prompt", *said))
    if "task" not in faults.found:
        _check_inputs(faults, task, values, partial or any(name in faults.found for name in HINTS))
    faults.report()
    return task


def _missing(given: Mapping[str, Any], task: Task) -> list[str]:
    """What a request of this task has to have and has not."""
    needed = [name for name, field in FIELDS.items() if field.default == REQUIRED and name not in given]
    needed += [name for name in (*task.needs, *filter(None, [task.input])) if given.get(name) is None]
    return needed + ([DEFAULT_HINT] if task.name == TRANSFER and not hints_of(given) else [])


def resolve(
    given: Mapping[str, Any],
    profile: str,
    model: ModelFacts,
    pick_seed: Callable[[], int],
    suffix: str | None = None,
    *,
    partial: bool = False,
    whole: bool = False,
) -> tuple[Request, dict[str, str]]:
    """The full request, and for each of `FIELDS` where its value came from.

    `given` holds the fields that the user set; a task that is not among them follows from them and from the output's
    `suffix`, and sound from the latter. `pick_seed` is asked when the profile leaves the seed to chance. In a `partial`
    request something stands in for a prompt and an input that are not given; their origin is `STANDS_IN`. A `whole`
    request has every field, also those that its own profile filled: one of these that changes nothing here was nobody's
    wish. Raises InputError, for all faults of the given fields at once, or then for all that the model and the values
    together do not allow.
    """
    task = check(given, profile, suffix, made_for=model.made_for, partial=partial)
    heard = _heard(given, task, suffix)
    given = {**given, "sound": True} if heard else given
    missing = {name: f"-1={ANY}" if FIELDS[name].kind.many else ANY for name in _missing(given, task)}
    values, origin = defaults(task.name, profile, model, hints_of({**given, **missing}))
    if given.get("seed") in kinds.CHANCE:
        values["seed"], given = "random", {key: value for key, value in given.items() if key != "seed"}
    if values["seed"] == "random":
        values["seed"], origin["seed"] = pick_seed(), "random"
    # What the user repeats of the defaults is no change: a manifest's request can be given back as it is.
    changed = {k: v for k, v in given.items() if _plain(v) != _plain(values.get(k))}
    values = {**_unmeasured(values, task), **given, **missing, "task": task.name}
    origin |= {"task": THE_INPUTS} | dict.fromkeys(changed, "user") | dict.fromkeys(missing, STANDS_IN)
    origin |= {"sound": heard} if heard else {}
    empty = {name for name, value in values.items() if value is None and FIELDS[name].default == PROFILE}
    empty = {name for name in empty if FIELDS[name].refusal(task)}  # no default, as the task has not the field
    values |= {name: FIELDS[name].check(value, task) for name, value in values.items() if name not in empty}
    if acts(task):
        action.derive(values, origin, given, partial)
    values, origin = _without_guidance(values, origin, profile, task)
    faults = Faults()
    if values["keyframe"]:
        with faults.of("keyframe"):
            values["keyframe"] = placed(values["keyframe"], values["frames"])
    faults.report()
    width, height = values["size"]
    request = Request(**{key: value for key, value in values.items() if key != "size"}, width=width, height=height)
    _check_variant(faults, task, values, changed, model)
    with faults.of("keyframe" if request.keyframe else "condition_frame_indexes"):
        _check_clean(request.of_chunk(0))
    if task.name == TRANSFER:
        check_controls(faults, request)
    for name, value in changed.items():
        if (whole and FIELDS[name].default == PROFILE) or (name == "sound" and heard == THE_INPUTS):
            continue  # of sound that `audio` asks for, that one's row says what is wrong
        with faults.of(name):
            if reason := FIELDS[name].useless(values, task):
                raise InputError(f"{name} = {shown(value)}", f"it would change nothing: {reason}", f"Drop {name}")
    faults.report()
    return request, origin


def _heard(given: Mapping[str, Any], task: Task, suffix: str | None) -> str | None:
    """What asks for sound where the field of it is left open. Raises InputError for an output that is sound, of a task
    that has none or of a run that is given it."""
    if given.get("audio") is not None and (suffix or "").lower() in SOUND_SUFFIXES:
        found = "the sound is given, and what is made for it would not be written"
        asked = f"`output` ending in {suffix} with `audio`"
        raise InputError(asked, found, f"Use one ending in {task.suffix}", "output")
    if given.get("sound") is not None:
        return None
    if (suffix or "").lower() not in SOUND_SUFFIXES:
        return None if given.get("audio") is None else THE_INPUTS
    if reason := FIELDS["sound"].refusal(task):
        raise InputError(f"`output` ending in {suffix}", reason, f"Use one ending in {task.suffix}", "output")
    return THE_OUTPUT


def _unmeasured(values: dict[str, Any], task: Task) -> dict[str, Any]:
    """The values with something in the place of defaults that follow from a clip, where there is none."""
    size = without_input(str(values["size"]))
    length = {name: number for name, number in WITHOUT_CLIP.items() if values[name] == FROM_CLIP}
    return values | length | ({"size": size} if size != values["size"] else {})


def _without_guidance(
    values: dict[str, Any], origin: dict[str, str], profile: str, task: Task
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values with guidance 1, which is none, where the profile's engine takes theirs for none."""
    most = (tables_read()["profile"][profile] | tables_read()[task.name][profile]).get(NO_GUIDANCE_UP_TO)
    if most is None or values["guidance"] > most or values["guidance"] == 1:
        return values, origin
    said = f"{origin['guidance']} ({values['guidance']:g}); profile {profile} has no guidance up to {most:g}"
    return values | {"guidance": 1.0}, origin | {"guidance": said}


def _plain(value: Any) -> Any:
    """Tuples and lists alike, and no interval is no interval however it is written."""
    return list(value) if isinstance(value, tuple) else [] if value is None else value


def _check_variant(
    faults: Faults, task: Task, values: Mapping[str, Any], changed: Mapping[str, Any], model: ModelFacts
) -> None:
    with faults.of("task"):
        check_able(task, model)
    for field in FIELDS.values():
        if field.modality and values[field.name] is True and field.refusal(task) is None:
            with faults.of(field.name):
                check_able(task, model, (field.modality,))
    if model.variant != DISTILLED:
        with faults.of("schedule"):
            if changed.get("schedule") == DISTILLED:
                raise InputError("schedule 'distilled'", f"{model.name} is not a distilled model", "Drop schedule")
        return
    for name, value in changed.items():
        with faults.of(name):
            if FIELDS[name].distilled:
                found = f"{model.name} is distilled: its steps and guidance are fixed"
                raise InputError(f"{name} = {shown(value)}", found, f"Drop {name}")


def _check_inputs(faults: Faults, task: Task, values: Mapping[str, Any], partial: bool) -> None:
    """The file that the task starts from and no other, and one frame or several."""
    if task.input and not partial and values.get(task.input) is None:
        form = "INDEX=FILE" if FIELDS[task.input].kind.many else "FILE"
        missing = InputError(f"task {task.name}", f"there is no input {task.input}", f"Add `{task.input}` {form}")
        faults.add(task.input, missing)
    for name in () if partial else task.needs:
        if values.get(name) is None:
            missing = InputError(f"task {task.name}", f"there is no `{name}`", f"Add `{name}` FILE")
            faults.add(name, missing)
    if task.name == TRANSFER and not partial and not hints_of(values):
        names = f"{', '.join(f'`{hint}`' for hint in HINTS[:-1])} or `{HINTS[-1]}`"
        faults.add("task", InputError("transfer without a control", "there is nothing to follow", f"Add {names} FILE"))
    for name in FILES:
        with faults.of(name):
            if values.get(name) is not None and (reason := FIELDS[name].refusal(task)):
                takers = sorted(FIELDS[name].tasks, key=lambda one: TASKS[one].single != task.single)
                next_step = f"Use `task` {' or '.join(takers)} or drop it"
                raise InputError(f"`{name}` with task {task.name}", reason, next_step)
    with faults.of("frames"):
        if "frames" in values and task.single != (values["frames"] == 1):
            found, next_step = "one frame is an image", f"Ask for {TEMPORAL_COMPRESSION + 1} frames or more"
            if task.single:
                other = TASKS[DEFAULT_TASK]
                found = f"{task.result} has one frame"
                next_step = f"Drop frames, or use `task` {other.name} and an output ending in {other.suffix}"
            frames = "1 frame" if values["frames"] == 1 else f"{values['frames']} frames"
            raise InputError(f"{frames} with task {task.name}", found, next_step)


def _check_clean(request: Request) -> None:
    """What is taken from the input lies in the video and leaves something to generate."""
    if TASKS[request.task].chunked:  # first_frames says it, and is checked with the controls
        return
    clean, frames = request.clean_frames, request.frames
    latent_frames = (frames - 1) // TEMPORAL_COMPRESSION + 1
    if clean and clean[-1] >= latent_frames:
        raise InputError(
            f"condition_frame_indexes {shown(list(clean))}",
            f"{frames} frames are {latent_frames} latent frames",
            f"Use indices from 0 to {latent_frames - 1}",
        )
    if len(clean) == latent_frames and request.task != action.OBSERVED:
        next_step = f"Ask for {frames + TEMPORAL_COMPRESSION} frames or more"
        next_step += f", or use `task` {action.OBSERVED}" if acts(TASKS[request.task]) else ""
        raise InputError("every frame as conditioning", "there is nothing left to generate", next_step)
