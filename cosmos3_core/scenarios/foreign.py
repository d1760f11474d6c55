"""Requests of other programs, and what they are here: recognised by their keys, converted with one note.

The keys are those of aliases.toml. A request whose keys are all fields of ours is never taken for another's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from ..spelling import nearest
from .aliases import HERE, INPUT, LATER, UNNEEDED, Alias, aliases, asks_nothing, known, owners, table
from .families import INPUTS, TASKS
from .fields import FIELDS
from .kinds import task_named

WRAPPERS = ("extra_params", "extra_body")
"""Keys of vllm-omni and sglang that hold further keys, as an object or as its JSON text; these win."""
ORDER = "FOVSDNT"
"""Whose request it is where several programs know its keys."""
CLIPS = (".mp4", ".mov", ".avi", ".webm", ".mkv", ".m4v", ".gif")
PICTURE_ONLY = ("response_format", "output_format", "background", "n")
"""Keys of requests for pictures, where none is there that only a video has."""
SIDES = ("width", "height", "resolution", "aspect_ratio")
MAX_TEXT_BYTES = 1 << 20
ROUNDING: dict[str, Callable[[float], int]] = {"F": math.ceil, "V": math.ceil, "O": math.ceil, "S": math.floor}
"""What a program makes of a number of frames that is not 4k+1; the others refuse it."""
SERVED_ELSEWHERE = ("sora", "gpt-image", "dall-e")
"""How OpenAI's own models are called."""
FPS = 24
SHORTEST = 1 + TEMPORAL_COMPRESSION
"""Frames of a clip; 1 is a picture."""
MOST = 1e6
"""Frames or seconds above any that a request can have."""


@dataclass(frozen=True)
class Converted:
    """`given` request fields, whose `profile` fills the rest, the `model` if one was named, and a `note` that says what
    was made of the request."""

    given: dict[str, Any]
    profile: str
    model: str | None
    note: str


@dataclass
class _Work:
    """A request on its way: what it came to so far. `said` lists what was mapped, `dropped` what was not and why,
    `wrong` what stands in the way, `lacking` the keys that ask for what is not here, by that."""

    asked: str
    owner: str
    folder: Path | None
    given: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    said: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    def put(self, key: str, name: str, value: Any) -> None:
        """`name` is `value`, because of `key`."""
        if name in self.given and self.given[name] != value:
            self.wrong.append(f"{key} and another key set {name}, to {value!r} and {self.given[name]!r}")
        self.given[name] = value
        if key != name:
            self.said.append(f"{key} → {name}")

    def path(self, key: str, name: str) -> Path | None:
        """A file that the request names."""
        if self.folder is None:
            self.wrong.append(f"{key}: a request from elsewhere may not name files of this machine")
        return self.folder and self.folder / name


def convert(value: Mapping[str, Any], asked: str, folder: Path | None) -> Converted | None:
    """A request of another program as one of ours; None where it is none. Paths in it start from `folder`; None where
    it may not name files of this machine. `asked` names it in messages. Raises InputError for what would be lost."""
    keys = _unwrapped(value, asked)
    owner = _owner(keys, wrapped=any(name in value for name in WRAPPERS))
    if owner is None:
        return None
    work = _Work(f"{asked}, a request of {owners()[owner]}", owner, folder)
    _sides(work, keys)
    for key in sorted(keys, key=lambda key: key == "negative_prompt_keep_metadata"):  # which amends another
        _one(work, key, keys[key])
    _frames(work, keys)
    _task(work, keys)
    if wrong := [f"{what} ({', '.join(of)})" for what, of in work.lacking.items()] + work.wrong:
        raise InputError(work.asked, "; ".join(wrong), "Change that, or take it out; cosmos3 capabilities lists fields")
    profile = table()["profiles"][owner]
    parts = (", ".join(work.said), f"ignored: {', '.join(work.dropped)}" if work.dropped else "")
    return Converted(work.given, profile, work.model, f"{work.asked}: {'; '.join(filter(None, parts))}")


def _unwrapped(value: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """The keys of a request with those that its wrappers hold."""
    keys = {key: content for key, content in value.items() if key not in WRAPPERS}
    for name in WRAPPERS:
        inner = value.get(name)
        if isinstance(inner, str) and inner.strip():
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{asked}: {name}", f"it is not JSON ({error})", "Give it as an object") from None
        if inner not in (None, "") and not isinstance(inner, dict):
            raise InputError(f"{asked}: {name}", "it is not an object", "Give it as an object")
        keys |= inner or {}
    return keys


def _owner(keys: Mapping[str, Any], wrapped: bool) -> str | None:
    """The letter of the program whose request has these keys; None where they are ours or nobody's."""
    foreign = [aliases()[key].owners for key in keys if key in aliases() and key not in FIELDS]
    if not any(letter in ORDER for letters in foreign for letter in letters):
        return "V" if wrapped else None
    known_to = foreign + [table()["same"].get(key, "") for key in keys if key in FIELDS]
    return max(ORDER, key=lambda letter: sum(letter in letters for letters in known_to))


def _one(work: _Work, key: str, value: Any) -> None:
    """One key that is not of the picture's size."""
    row = None if key in FIELDS else known(key)
    if key in SIDES or (value is None and (key in FIELDS or row)):
        return
    if key in MAKERS:
        MAKERS[key](work, key, value)
    elif key in FIELDS:
        work.put(key, key, _text(value) if key in ("prompt", "negative_prompt") else _number(value))
    elif row is None:
        close = nearest(key, FIELDS)
        work.wrong.append(f"there is no key {key}{f' (did you mean {close}?)' if close else ''}")
    elif row.kind == HERE:
        _renamed(work, row, value)
    elif row.kind == UNNEEDED:
        work.dropped.append(f"{key} ({row.means})")
    elif not asks_nothing(key, value):
        work.lacking.setdefault(row.answer, []).append(key)
    elif value and table()["off"].get(key) == "any":
        work.dropped.append(f"{key} ({row.answer})")


def _renamed(work: _Work, row: Alias, value: Any) -> None:
    if row.means in (INPUT, *INPUTS):
        return _input(work, row.name, value)
    if row.means == "model":
        return _model(work, row.name, value)
    if row.means == "frames":
        return None  # the frames need fps
    if row.means not in FIELDS:
        if row.means == "output":
            work.dropped.append(f"{row.name} ({row.answer})")
        elif not asks_nothing(row.name, value):
            work.wrong.append(f"{row.name} is no part of a request: {row.answer}")
        return None
    return work.put(row.name, row.means, _number(value))


# --- keys that are more than another name ----------------------------------------------------------------------------


def _sides(work: _Work, keys: dict[str, Any]) -> None:
    """The size out of the keys that say one side, a tier or an aspect ratio."""
    said = {name: keys[name] for name in SIDES if keys.get(name) is not None}
    if keys.get("size") == "auto":
        work.dropped.append("size auto (the profile's size)")
        keys.pop("size")
    elif keys.get("size") is not None:
        work.dropped += [f"{name} (size says it)" for name in said]
        return
    width, height, tier, aspect = (said.get(name) for name in SIDES)
    if width is not None and height is not None:
        work.given["size"] = f"{width}x{height}"
        work.dropped += [f"{name} (width and height say it)" for name in said if name in SIDES[2:]]
        said = {"width": width, "height": height}
    elif width is not None or height is not None:
        work.wrong.append("one of width and height alone is no size: give both")
    elif tier is not None:
        shape = aspect or ("16:9" if work.owner == "N" and "_" not in str(tier) else None)
        work.given["size"] = f"{str(tier).removesuffix('p')}p:{shape}" if shape else str(tier)
    elif aspect is not None:
        work.wrong.append("aspect_ratio alone is no size: give resolution too, such as 720")
    if "size" in work.given:
        work.said.append(f"{', '.join(said)} → size {work.given['size']}")


def _input(work: _Work, key: str, value: Any) -> None:
    """A file to start from, named by its path."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if isinstance(value, dict):
        value = next((value[name] for name in ("image_url", "video_url", "url") if name in value), value)
    if not isinstance(value, str):
        work.wrong.append(f"{key}: it names no file. Give the path of a picture or a clip")
    elif value.startswith("@"):
        work.wrong.append(f"{key}: curl's @ uploads a file. Give the path alone, {value[1:]}")
    elif value.startswith(("http:", "https:", "data:", "s3:")) or len(value) > 4096:
        work.wrong.append(f"{key}: files are not fetched or decoded from text. Save it, and give its path")
    elif value and (path := work.path(key, value)):
        row = known(key)
        clip = key == "video" or (row is not None and row.means == "video")
        clip = clip or (key != "image" and Path(value).suffix.lower() in CLIPS)
        work.put(key, "video" if clip else "image", str(path))


def _model(work: _Work, key: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith(SERVED_ELSEWHERE):
        work.dropped.append(f"{key} {value} (OpenAI's own)")
    elif isinstance(value, str) and value:
        work.model = f"nvidia/{value}" if value.startswith("Cosmos3-") else value
        work.said.append(key if key == "model" else f"{key} → model")


def _frames(work: _Work, keys: Mapping[str, Any]) -> None:
    """The number of frames: where seconds are given, of that many; where it is not 4k+1, what their program takes."""
    rows = {key: row for key in keys if key not in FIELDS and (row := known(key)) and row.means == "frames"}
    counts = {key: _number(keys[key]) for key in rows if keys[key] is not None}
    lasting = [key for key in counts if key in ("seconds", "duration")]
    if len(counts) > len(lasting):
        work.dropped += [f"{key} (the number of frames says it)" for key in lasting]
        counts = {key: count for key, count in counts.items() if key not in lasting}
    for key, count in counts.items():
        possible = isinstance(count, int | float) and not isinstance(count, bool) and 0 < count <= MOST
        if not possible or (count < 1 and key not in lasting):
            work.wrong.append(f"{key} = {keys[key]!r}: it is no number of {'seconds' if key in lasting else 'frames'}")
            continue
        rate = work.given.get("fps", FPS)
        if key in lasting and not (isinstance(rate, int | float) and 0 < rate <= MOST):
            continue  # fps has an error of its own
        whole = int(count * rate) if key in lasting else int(count)
        rounded = ROUNDING.get(work.owner, math.ceil if key in lasting else None)
        number = rounded((whole - 1) / TEMPORAL_COMPRESSION) * TEMPORAL_COMPRESSION + 1 if rounded else whole
        if key in lasting and number < SHORTEST:
            work.wrong.append(f"{key} = {keys[key]!r}: at {rate:g} fps a clip has at least {SHORTEST} frames")
            continue
        work.put(key, "frames", number)
        work.said[-1] += f" {number}" if number != count else ""


def _task(work: _Work, keys: Mapping[str, Any]) -> None:
    """The task where the keys say it, and none of the fields that it does not take."""
    given = work.given
    if "task" not in given and not any(name in given for name in INPUTS):
        moving = "frames" in given and given["frames"] != 1
        if given.get("frames") == 1 or (not moving and "fps" not in given and any(k in keys for k in PICTURE_ONLY)):
            given["task"] = "t2i"
            work.said.append("a picture → task t2i")
    task = TASKS.get(str(task_named(given.get("task"))))
    for name in list(given):
        if task and name not in INPUTS and (reason := FIELDS[name].refusal(task)):
            work.dropped.append(f"{name} ({reason})")
            del given[name]


def _asked_task(work: _Work, key: str, value: Any) -> None:
    """A task by another name, among them some that are not here yet."""
    row = known(value) if isinstance(value, str) else None
    if row and row.kind == LATER:
        work.lacking.setdefault(row.answer, []).append(f"{key} {value}")
    elif key == "output_type" and value != "image":
        work.dropped.append(f"{key} {value} (the output's name says which file it is)")
    else:
        work.put(key, "task", "t2i" if key == "output_type" else task_named(value))


def _template(work: _Work, key: str, value: Any) -> None:
    """The framework has the text of a sentence where others have a switch."""
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        work.given[key] = bool(value)
        work.said.append(f"the text of {key} → {key} {str(bool(value)).lower()}")
    else:
        work.put(key, key, value)


def _system_prompt(work: _Work, key: str, value: Any) -> None:
    if isinstance(value, str) and value.lower() not in ("true", "false", ""):
        work.wrong.append(f"{key}: not yet: a system prompt of your own. It is true or false here")
    else:
        work.put(key, key, value)


def _metadata_kept(work: _Work, key: str, value: Any) -> None:
    if value and work.given.get("negative_metadata", "none") == "none":
        work.given["negative_metadata"] = "same"
        work.said.append(f"{key} → negative_metadata same")


def _text_of_file(work: _Work, key: str, value: Any) -> None:
    """A prompt that stands in a file."""
    name = "negative_prompt" if key.startswith("negative") else "prompt"
    path = work.path(key, str(value))
    if path is None:
        return
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError("it is larger than 1 MiB")
        text = data.decode("utf-8-sig").strip()
        work.put(key, name, json.dumps(json.loads(text)) if path.suffix.lower() == ".json" else text)
    except (OSError, ValueError, RecursionError) as error:
        work.wrong.append(f"{key} {value}: it cannot be read ({getattr(error, 'strerror', None) or error})")


def _schedule(work: _Work, key: str, value: Any) -> None:
    """diffusers' switches of a scheduler; the one sampler that the framework's users change nothing with."""
    if key == "use_karras_sigmas":
        work.put(key, "schedule", "karras" if value else "flow")
    elif key == "use_native_flow_schedule":
        if value:
            work.put(key, "schedule", "native")
    elif value == "unipc":
        work.dropped.append(f"{key} unipc (it is the one that runs)")
    else:
        work.wrong.append(f"{key} {value}: no such solver is here. `schedule` has {FIELDS['schedule'].kind.words}")


def _seed(work: _Work, key: str, value: Any) -> None:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, list):
        work.wrong.append(f"{key} of {len(value)} outputs: not yet: several outputs of one run")
    else:
        work.put(key, key, _number(value))


def _longest(work: _Work, key: str, value: Any) -> None:
    """sglang keeps two of its tokens for the ends of the text."""
    value = _number(value)
    work.put(key, "max_text_tokens", value - 2 if work.owner == "S" and type(value) is int else value)


MAKERS: dict[str, Callable[[_Work, str, Any], None]] = {
    "model_mode": _asked_task,
    "task_type": _asked_task,
    "inference_type": _asked_task,
    "output_type": _asked_task,
    "task": _asked_task,
    "image": _input,
    "video": _input,
    "duration_template": _template,
    "resolution_template": _template,
    "system_prompt": _system_prompt,
    "negative_prompt_keep_metadata": _metadata_kept,
    "prompt_path": _text_of_file,
    "prompt_file": _text_of_file,
    "negative_prompt_file": _text_of_file,
    "use_karras_sigmas": _schedule,
    "use_native_flow_schedule": _schedule,
    "sampler": _schedule,
    "scheduler": _schedule,
    "sample_solver": _schedule,
    "seed": _seed,
    "max_sequence_length": _longest,
}
"""By key, how its value becomes ours where it is more than another name for it."""


def _number(value: Any) -> Any:
    """Forms hold numbers and switches as text."""
    if isinstance(value, str) and len(value) < 32:
        try:
            parsed = json.loads(value.strip())
        except ValueError:
            return value
        return parsed if isinstance(parsed, int | float | bool) else value
    return value


def _text(value: Any) -> Any:
    """A caption may be an object."""
    return json.dumps(value) if isinstance(value, dict) else value
