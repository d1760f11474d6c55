"""How keyframes are written down: as a value of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from ..contract import InputError
from ..spelling import shown
from .keyframes import Keyframe
from .kinds import LONGEST, PATH, Kind
from .task import Task

FORM = "INDEX=FILE, such as 188=b.png; -1 is the last frame"
WORDS = {"first": 0, "last": -1}
"""Indices in words."""


def _read(name: str, value: Any, task: Task) -> tuple[Keyframe, ...] | None:
    if value is None:
        return None
    pairs = list(_pairs(name, value))
    if not pairs:
        raise InputError(f"{name} = {shown(value)}", "it names no picture", f"Give {FORM}", name)
    found: dict[int, Keyframe] = {}
    for index, image in pairs:
        frame = _index(name, index)
        if frame in found:
            raise InputError(f"{name} {frame}", "the frame is named twice", "Give each frame one picture", name)
        path = PATH.read(name, image, task)
        if path is None:
            raise InputError(f"{name} {shown(index)}", "it has no picture", f"Give {FORM}", name)
        found[frame] = Keyframe(frame, path)
    return tuple(found.values())


def _pairs(name: str, value: Any) -> Iterator[tuple[Any, Any]]:
    """(index, path) of every form: an object, a list of objects or pairs, and texts INDEX=FILE."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if isinstance(value, Mapping):
        yield from value.items()
        return
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, Mapping) and one.keys() == {"frame", "image"}:
            yield one["frame"], one["image"]
        elif isinstance(one, list | tuple) and len(one) == 2:
            yield one[0], one[1]
        elif isinstance(one, str) and "=" in one:
            index, _, path = one.partition("=")
            yield index, path
        else:
            raise InputError(f"{name} = {shown(one)}", "it is no frame with its picture", f"Give {FORM}", name)


def _index(name: str, value: Any) -> int:
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, str) and re.fullmatch(r"[+-]?\d{1,9}", word):
        word = int(word)
    if isinstance(word, Integral) and not isinstance(word, bool):  # numpy's as well
        word = int(word)
    frame = WORDS.get(word, word) if isinstance(word, str) else word
    if type(frame) is not int or not -LONGEST <= frame < LONGEST:
        found = f"a frame is a whole number below {LONGEST}, counted from 0, or from the end with -1"
        raise InputError(f"{name} {shown(value)}", found, f"Give {FORM}", name)
    return frame


KEYFRAMES = Kind(
    "keyframes",
    f"{FORM}; in JSON an object of paths by index",
    {
        "type": ["object", "array", "null"],
        "additionalProperties": {"type": "string"},
        "minProperties": 1,
        "items": {"type": "object", "required": ["frame", "image"]},
    },
    str,
    _read,
    many=True,
)
