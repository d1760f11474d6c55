"""Kinds of value that a request's field can have: how one is checked, what it is in words, and its JSON schema."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..contract import InputError
from ..model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..spelling import shown
from . import aliases
from .families import TASKS
from .sizes import FORMS, LARGEST, SMALLEST, check_size, parse_size
from .task import Task
from .transfer import AUTO, HINTS

CHANCE = (-1, "random")
"""Seeds that leave it to chance: -1 is other tools' word for it."""
MAX_PROMPT_CHARS = 100_000
LONGEST = 4001
"""Frames of the longest video."""
TILE_STEP = 64
"""Pixels by which a tile grows."""
LONGEST_PATH = 4096
"""Bytes of the longest path: no file system has a longer one."""
NO_TILE = "none"
"""What is typed for a picture in one piece."""

THEIR_TASKS = {"wam": "policy"}
"""NVIDIA's names of tasks that nobody else calls so."""

URL = re.compile(r"(https?|ftp|s3|gs|file|hf):/|data:\w+/", re.IGNORECASE)
"""How a URL begins, or what a Path leaves of it."""

Read = Callable[[str, Any, Task], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of value. `schema` is its JSON schema, `words` what it is in words, `type` what one is on a command line
    or in a recipe. `read` takes a field's name, a value and the request's task; it returns the value as a `Request`
    holds it, or raises InputError. `many` says that its option may be given several times."""

    name: str
    words: str
    schema: Mapping[str, Any]
    type: type
    read: Read
    many: bool = False

    @property
    def null(self) -> bool:
        """Whether None is a value of its own."""
        return {"type": "null"} in self.schema.get("anyOf", ())


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers and lists of numpy and torch, and a list or tuple of them. Anything else as it
    is, and so what has no values that could be read: torch's meta and sparse tensors, numpy's NaT."""
    if isinstance(value, list | tuple):
        return [_listless(part) for part in value]
    return _listless(value)


def _listless(value: Any) -> Any:
    try:
        listed = value.tolist()
    except Exception:  # no array has it, or this one cannot be read
        return value
    return value if listed is None else listed


def number(low: float, high: float) -> Kind:
    """A number between two bounds, both included."""
    schema = {"type": "number", "minimum": low, "maximum": high}
    words = f"a number from {low} to {high}"

    def read(name: str, value: Any, task: Task) -> float:
        return float(_bounded(name, value, low, high, words))

    return Kind("number", words, schema, float, read)


def whole(low: int, high: int) -> Kind:
    """A whole number between two bounds, both included; 3.0 is one."""
    schema = {"type": "integer", "minimum": low, "maximum": high}
    words = f"a whole number from {low} to {high}"

    def read(name: str, value: Any, task: Task) -> int:
        _bounded(name, value, low, high, words)
        if value != int(value):
            raise _no(name, value, words, "it is not whole")
        return int(value)

    return Kind("whole number", words, schema, int, read)


def _bounded(name: str, value: Any, low: float, high: float, words: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _no(name, value, words, f"it is {what(value)}")
    if not low <= value <= high:
        raise _no(name, value, words, "it is out of range" if value == value else "it is not a number")
    return value


def _no(name: str, value: Any, words: str, found: str) -> InputError:
    return InputError(f"{name} = {shown(value)}", found, f"{name} is {words}", name)


def what(value: Any) -> str:
    """What a value of the wrong type is, in words."""
    if isinstance(value, bool):
        return "a switch"
    of = {str: "text", list: "a list", tuple: "a list", dict: "an object", int: "a number", float: "a number"}
    name = next((words for kind, words in of.items() if isinstance(value, kind)), None)
    return name or ("nothing" if value is None else f"of type {type(value).__name__}")


def choice(*names: str) -> Kind:
    """One of a few names."""

    def read(name: str, value: Any, task: Task) -> str:
        if not isinstance(value, str) or value not in names:
            raise InputError(
                f"{name} = {shown(value)}", "there is no such choice", f"{name} is one of {', '.join(names)}"
            )
        return value

    return Kind("choice", ", ".join(names[:-1]) + f" or {names[-1]}", {"enum": list(names)}, str, read)


def _switch(name: str, value: Any, task: Task) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} = {shown(value)}", f"it is {what(value)}, and no switch", f"{name} is true or false")
    return value


def _text(name: str, value: Any, task: Task) -> str:
    if isinstance(value, Mapping) and value:  # a caption in JSON, which the model reads as its text
        value = _json(name, value)
    if isinstance(value, os.PathLike):
        raise InputError(f"{name} = {shown(value)}", "it is a path and no text", "Give its text: path.read_text()")
    if not isinstance(value, str):
        found = "it is a list, and a run has one" if isinstance(value, list) else "it is not text"
        raise InputError(f"{name} = {shown(value)}", found, f"Give {name} as a string, or a caption as a dict")
    if len(value) > MAX_PROMPT_CHARS:
        raise InputError(
            f"a {name} of {len(value):,} characters", "that is no prompt", f"Keep it under {MAX_PROMPT_CHARS:,}"
        )
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{name} with a NUL or a broken character", "that is no text", "Give plain UTF-8 text")
    return value


def _json(name: str, caption: Mapping[str, Any]) -> str:
    try:
        return json.dumps(caption, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name} as a dict", f"it is no JSON ({error})", "Give text, numbers, lists and dicts"
        ) from None


def _prompt(name: str, value: Any, task: Task) -> str:
    if not (text := _text(name, value, task)).strip():
        raise InputError(f"an empty {name}", "there is nothing to generate", "Describe the scene in a sentence or two")
    return text


def _path(name: str, value: Any, task: Task) -> str | None:
    if value is None:
        return None
    path = path_of(value)
    if path is None:
        raise InputError(f"{name} = {shown(value)}", "it is not a path", f"Give {name} as the path of a file")
    if URL.match(path):
        raise InputError(f"{name} = {shown(path)}", "it is a URL, and only files are read", "Download it first")
    return path


def path_of(value: Any) -> str | None:
    """A path as text; None for what no file system takes as one."""
    try:
        path = os.fspath(value)
        may = isinstance(path, str) and "\0" not in path and 0 < len(os.fsencode(path)) <= LONGEST_PATH
    except Exception:  # no path, or one with characters that no file's name has
        return None
    return path if may else None


def task_named(value: Any) -> Any:
    """Our name of a task that others call text2video, image-to-video or txt2img; anything else as it is."""
    of = {"t": "text|txt", "i": "image|img", "v": "video|vid|world"}
    if isinstance(value, str):
        word = value.strip().lower()
        if word.replace("_", "-") in TASKS or word in THEIR_TASKS:
            return THEIR_TASKS.get(word, word.replace("_", "-"))
        for (a, start), (b, end) in itertools.product(of.items(), of.items()):
            if re.fullmatch(f"({start}|{a})[-_ ]?(2|to)[-_ ]?({end}|{b})", word):
                word = f"{a}2{b}"
        return aliases.spelled("task", word, TASKS)
    return value


def listed(value: Any) -> Any:
    """A list that was typed without its brackets, or in round ones: 0,1 is [0, 1]. Anything else as it is."""
    if isinstance(value, str):
        try:
            bare = re.sub(r"^[(\[]|[)\]]$", "", value.strip())
            return json.loads(f"[{bare}]")
        except (ValueError, RecursionError):
            return value
    return value


def _task(name: str, value: Any, task: Task) -> str:
    task_name = task_named(value)
    if not isinstance(task_name, str) or task_name not in TASKS:
        otherwise = f"Tasks are {', '.join(TASKS)}"
        next_step = aliases.next_step(value, (), otherwise) if isinstance(value, str) else otherwise
        raise InputError(f"task {shown(value)}", "there is no such task", next_step)
    return task_name


def size_spelled(text: str) -> str:
    """Our spelling of 1280*720, (1280, 720), 720P and 720_16_9; any other text as it is. Raises InputError for an
    aspect ratio alone."""
    if aspect := re.fullmatch(r"\s*(\d{1,2})\s*[:,/]\s*(\d{1,2})\s*", text):
        next_step = f"Put the tier before it, such as 720p:{aspect[1]}:{aspect[2]}"
        raise InputError(f"size {shown(text)}", "it is an aspect ratio, and sizes have tiers", next_step)
    if sides := re.fullmatch(r"\s*[(\[]?\s*(\d+)\s*[*,]\s*(\d+)\s*[)\]]?\s*", text):
        return f"{sides[1]}x{sides[2]}"
    if tier := re.fullmatch(r"\s*(\d+)P?(?:[:_](\d+)[:,/_](\d+))?\s*", text):
        return tier[1] + (f":{tier[2]}:{tier[3]}" if tier[2] else "")
    return text


def _size(name: str, value: Any, task: Task) -> tuple[int, int]:
    if isinstance(value, str):
        return parse_size(size_spelled(value), task.aspect)
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int for n in value):
        width, height = value
        return check_size(width, height, f"size {shown(width)}x{shown(height)}")
    raise InputError(f"size {shown(value)}", "it is no size", "Type it as WIDTHxHEIGHT")


def _frames(name: str, value: Any, task: Task) -> int:
    frames = whole(1, LONGEST).read(name, value, task)
    if task.chunked and name == "frames":
        return frames
    if (frames - 1) % TEMPORAL_COMPRESSION:
        below = (frames - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1
        raise InputError(
            f"{frames} frames",
            f"frames come as {TEMPORAL_COMPRESSION}k+1: one, then groups of {TEMPORAL_COMPRESSION}",
            f"The nearest are {below} and {below + TEMPORAL_COMPRESSION}",
        )
    return frames


TIMESTEP = number(0, 1000)


def _interval(name: str, value: Any, task: Task) -> tuple[float, float] | None:
    value = listed(value)
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(
            f"{name} = {shown(value)}", "it is no interval", "Give two timesteps from 0 to 1000, such as [400, 1000]"
        )
    low, high = (TIMESTEP.read(name, end, task) for end in value)
    if low > high:
        raise InputError(
            f"{name} {low:g} to {high:g}", "it ends before it begins", f"Did you mean [{high:g}, {low:g}]?"
        )
    return low, high


def _seed(name: str, value: Any, task: Task) -> int | str:
    """A seed, or "random" for what leaves it to chance."""
    if isinstance(value, list):
        found, next_step = "a run has one seed", "Give the first: those of several outputs count on from it"
        raise InputError(f"{name} = {shown(value)}", found, next_step)
    if callable(of := getattr(value, "initial_seed", None)):  # of torch, which draws from the lower 32 bits
        found = "it is a generator, and a seed is the number that one begins with"
        raise InputError(f"{name} = {shown(value)}", found, f"Give generator.initial_seed(), here {of() % 2**32}")
    return "random" if isinstance(value, int | float | str) and value in CHANCE else SEED_RANGE.read(name, value, task)


def _indices(name: str, value: Any, task: Task) -> tuple[int, ...]:
    value = listed(value)
    if not isinstance(value, list | tuple) or not value or not all(type(n) is int and n >= 0 for n in value):
        found = "latent frames are numbered 0, 1, 2 ..."
        raise InputError(f"{name} = {shown(value)}", found, "Give a list such as [0, 1]")
    if (ascending := sorted(set(value))) != list(value):
        found = "each is named once, in their order"
        raise InputError(f"{name} = {shown(value)}", found, f"Did you mean {shown(ascending)}?")
    return tuple(value)


def _tile(name: str, value: Any, task: Task) -> int | None:
    if value is None or (isinstance(value, str) and value == NO_TILE):
        return None
    tile = whole(TILE_STEP, LARGEST).read(name, value, task)
    if tile % TILE_STEP:
        found = f"tiles are multiples of {TILE_STEP} pixels"
        raise InputError(f"{name} = {shown(value)}", found, f"Try {4 * TILE_STEP}, or leave it out")
    return tile


def _chunk(name: str, value: Any, task: Task) -> int:
    if (whole(0, LONGEST).read(name, value, task)) == 0:
        return 0
    frames = _frames(name, value, task)
    if frames == 1:
        raise InputError(f"{name} = 1", "a chunk has several frames", f"Use {TEMPORAL_COMPRESSION + 1} or more, or 0")
    return frames


def control(derived: bool) -> Kind:
    """The file of a control clip, or "auto" where it can be made of the input clip; true is that, too."""
    words = "the path of a clip or a picture" + (f", or {AUTO}: made of the input clip" if derived else "")
    schema = {"type": ["string", "boolean", "null"] if derived else ["string", "null"]}

    def read(name: str, value: Any, task: Task) -> str | None:
        if value is True or (isinstance(value, str) and value == AUTO):
            if not derived:
                found = f"{name} cannot be made of the input clip, as edge and blur can"
                raise InputError(f"{name} = {shown(value)}", found, f"Give `{name}` the path of a clip", name)
            return AUTO
        return _path(name, value, task)

    return Kind("control", words, schema, str, read)


WEIGHT = number(0.001, 1000)


def _weights(name: str, value: Any, task: Task) -> tuple[tuple[str, float], ...]:
    """(hint, weight) of each that has one, in the hints' order."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        try:
            value = [(hint.strip(), float(weight)) for hint, _, weight in parts]
        except ValueError:
            value = dict.fromkeys([value])
    if value is None or (isinstance(value, list | tuple) and not value):
        return ()
    if isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in value):
        names = [hint for hint, _ in value]
        if twice := next((hint for hint in names if names.count(hint) > 1), None):
            raise InputError(f"{name} of {shown(twice)}", "it is named twice", "Give each control one weight", name)
        value = dict(value)
    if not isinstance(value, Mapping) or not value or not all(hint in HINTS for hint in value):
        found = f"weights are numbers by control, and controls are {', '.join(HINTS)}"
        raise InputError(f"{name} = {shown(value)}", found, f"Give {name} like edge=2,depth=1", name)
    return tuple((hint, WEIGHT.read(f"{name} of {hint}", value[hint], task)) for hint in HINTS if hint in value)


def _pair(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 2, "maxItems": 2}


TEXT_SCHEMA = {"type": ["string", "object"], "maxLength": MAX_PROMPT_CHARS}
SIDE_SCHEMA = {"type": "integer", "minimum": SMALLEST, "maximum": LARGEST, "multipleOf": SPATIAL_COMPRESSION}

TASK = Kind("choice", ", ".join(TASKS), {"enum": list(TASKS)}, str, _task)
SWITCH = Kind("switch", "true or false", {"type": "boolean"}, bool, _switch)
TEXT = Kind("text", f"text of up to {MAX_PROMPT_CHARS:,} characters", TEXT_SCHEMA, str, _text)
PROMPT = Kind("text", TEXT.words, TEXT_SCHEMA | {"minLength": 1}, str, _prompt)
PATH = Kind("path", "the path of a file", {"type": ["string", "null"]}, str, _path)
SIZE = Kind(
    "size",
    f"1280x720, in multiples of {SPATIAL_COMPRESSION} from {SMALLEST} to {LARGEST}; or a tier, 720p or 720p:16:9; "
    "or auto or 720p:auto, the tier's aspect ratio nearest to the input's",
    {"anyOf": [{"type": "string", "description": FORMS}, _pair(SIDE_SCHEMA)]},
    str,
    _size,
)
FRAMES = Kind(
    "frames",
    f"one, or {TEMPORAL_COMPRESSION}k+1 up to {LONGEST}: 5, 9, 13 ...",
    # JSON schema has no word for a number that is one more than a multiple.
    {"type": "integer", "minimum": 1, "maximum": LONGEST, "description": f"{TEMPORAL_COMPRESSION}k+1"},
    int,
    _frames,
)
INTERVAL = Kind(
    "interval",
    "two timesteps from 0 to 1000, such as [400, 1000], or [] for all of them",
    {"anyOf": [_pair(TIMESTEP.schema), {"type": "array", "maxItems": 0}, {"type": "null"}]},
    str,
    _interval,
)
CHUNK = Kind(
    "frames",
    f"{TEMPORAL_COMPRESSION}k+1, such as 93, or 0 for the whole",
    {"type": "integer", "minimum": 0, "maximum": LONGEST, "description": f"{TEMPORAL_COMPRESSION}k+1, or 0"},
    int,
    _chunk,
)
WEIGHTS = Kind(
    "weights",
    "numbers by control, such as edge=2,depth=1",
    {
        "anyOf": [
            {"type": "object", "properties": dict.fromkeys(HINTS, WEIGHT.schema), "additionalProperties": False},
            {"type": "null"},
        ]
    },
    str,
    _weights,
)
INDICES = Kind(
    "indices",
    "latent frames, counted from 0, such as [0, 1]",
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    str,
    _indices,
)
SEED_RANGE = whole(0, 2**64 - 1)
SEED = Kind(
    "seed",
    f"{SEED_RANGE.words}; or -1 for a random one",
    {"anyOf": [SEED_RANGE.schema, {"enum": list(CHANCE)}]},
    int,
    _seed,
)
TILE = Kind(
    "tile",
    f"a multiple of {TILE_STEP} pixels, or none",
    {
        "anyOf": [
            {"type": "integer", "minimum": TILE_STEP, "maximum": LARGEST, "multipleOf": TILE_STEP},
            {"type": "null"},
            {"enum": [NO_TILE]},
        ]
    },
    int,
    _tile,
)
