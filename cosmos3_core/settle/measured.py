"""What of a request follows from its clips: the size, the length and the frame rate for which "auto" stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.model import Model
from ..contract import InputError
from ..files.images import read_image
from ..files.sources import SAID
from ..files.video import length_of, read_video
from ..scenarios import request as requests
from ..scenarios.defaults import defaults
from ..scenarios.faults import about
from ..scenarios.fields import FIELDS
from ..scenarios.sizes import AUTO, FORMS, auto_size, parse_size, without_input
from ..scenarios.task import Task
from ..scenarios.transfer import AUTO as MADE
from ..scenarios.transfer import hints_of
from ..spelling import shown


def measured(given: Mapping[str, Any], task: Task, profile: str, model: Model) -> tuple[dict[str, Any], dict[str, str]]:
    """Values for what is "auto", whether it was typed or is the profile's default, and where each comes from. Reads the
    clips that it follows from; their errors are those of any reading."""
    usual, _ = defaults(task.name, profile, model.facts, hints_of(given))
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    source = _source(given, task)
    wanted = given.get("size", usual["size"])
    if isinstance(wanted, str) and AUTO.fullmatch(wanted):
        if found := _size(wanted, source, given, task, usual["size"]):
            values["size"], origin["size"] = found
    if not task.chunked:
        return values, origin
    if "fps" not in given and usual["fps"] == requests.FROM_CLIP and (rate := _rate(given)):
        values["fps"], origin["fps"] = rate, "auto: the input clip's"
    if "frames" not in given and (length := _length({**usual, **given, **values}, _most(given, usual))):
        values["frames"], origin["frames"] = length
    _check_used(given, values)
    return values, origin


def _check_used(given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises InputError for a clip of which nothing is made, and from which nothing follows."""
    made = any(given.get(hint) == MADE for hint in hints_of(given))
    used = made or given.get("first_frames") or given.get("show_input") in (True, "true")
    if given.get("video") and not used and not {"size", "fps"} & values.keys():
        found = "no control is made of it and no frame taken or shown, and neither the size nor fps follows from it"
        raise InputError(
            f"`video` {given['video']}", found, f"Drop it, or make a control of it: `edge` {MADE}", "video"
        )


def _source(given: Mapping[str, Any], task: Task) -> str | None:
    """The file that sizes follow from: what the task starts from, or the first of its clips."""
    names = [task.input] if task.input else list(task.takes)
    files = [_first(given.get(name), task) for name in names if name]
    return next((file for file in files if isinstance(file, str) and file not in (MADE, requests.ANY)), None)


def _first(value: Any, task: Task) -> Any:
    """Of several pictures the first."""
    if task.input and FIELDS[task.input].kind.many and value is not None:
        return FIELDS[task.input].check(value, task)[0].image
    return value


def _size(wanted: str, name: str | None, given: Mapping[str, Any], task: Task, usual: str) -> tuple[str, str] | None:
    if name is None and "size" not in given:
        return None
    if name is None:
        found = "it follows from a picture or clip, and this run starts from none"
        raise InputError(f"size {shown(wanted)}", found, FORMS, "size")
    source = source_size(name, task)
    wanted = usual if wanted == "auto" and usual.startswith("auto") else wanted
    width, height = auto_size(wanted, source, parse_size(without_input(usual), task.aspect))
    return f"{width}x{height}", f"{wanted}: nearest to the input's {source[0]}x{source[1]}"


def source_size(name: str, task: Task) -> tuple[int, int]:
    """(width, height) of a picture or clip. Raises InputError for one that cannot be read."""
    if said := SAID.fullmatch(name):
        return int(said[1]), int(said[2])
    frames = (read_image(Path(name)) if task.source == "picture" else read_video(Path(name), 1, "first")).frames
    return frames.shape[2], frames.shape[1]


def _rate(given: Mapping[str, Any]) -> float | None:
    """The input clip's, as NVIDIA's framework has it; a control's own says nothing."""
    name = given.get("video")
    if not isinstance(name, str) or name == requests.ANY or SAID.fullmatch(name):
        return None
    with about("video"):
        return float(length_of(Path(name), 1)[1])


def _most(given: Mapping[str, Any], usual: Mapping[str, Any]) -> int:
    """The limit of a length that is not given: the user's, or the profile's number of frames if it has one."""
    frames: int = usual["max_frames"] if isinstance(usual["frames"], str) else usual["frames"]
    return int(given.get("max_frames", frames))


def _length(values: Mapping[str, Any], most: int) -> tuple[int, str] | None:
    """As many frames as the first control has that is no picture, and no more than `most`; None where there is no
    clip."""
    hints = hints_of(values)
    fps = values["fps"] if values["video_fps"] == "resample" else None
    pictures = 0
    for hint in hints:
        field = "video" if values[hint] == MADE else hint
        name = values[field]
        if not isinstance(name, str) or name == requests.ANY:
            continue
        if SAID.fullmatch(name):
            found = "its frames are in memory, and are not counted before the request is checked"
            raise InputError(f"`{field}` {name}", found, "Give `frames`", "frames")
        with about(field):
            length = length_of(Path(name), most, fps)[0]
        if length > 1:
            return length, f"auto: those of the {hint} control" + (f", up to {most}" if length == most else "")
        pictures += 1
    if pictures and values["frames"] == requests.FROM_CLIP:
        found = "a picture has no length"
        raise InputError(f"controls {' and '.join(hints)} as pictures", found, "Give `frames`", "frames")
    return None
