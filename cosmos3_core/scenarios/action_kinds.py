"""Kinds of value that only actions have: tables of numbers, embodiments, canvases."""

from __future__ import annotations

import math
import re
from typing import Any

from ..contract import InputError
from ..model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..spelling import shown
from .domains import domain_named, domains, nearest_domain
from .kinds import LONGEST, PATH, SIZE, Kind, choice, listed, whole
from .sizes import AUTO, LARGEST, TIERS
from .task import Task

MOST_VALUES = 100_000
"""Numbers of a table that stands in the request itself."""
CANVAS_TIERS = ("256", "480", "704", "720")
"""Tiers whose sizes are canvases of actions (diffusers 0.42.1); 768 is of pictures."""
NORMALIZATIONS = ("quantile", "mean-std", "min-max", "asinh", "piecewise-asinh")
THEIRS = {
    "meanstd": "mean-std",
    "minmax": "min-max",
    "quantile_rot": "quantile",
    "asinh_rot": "asinh",
    "piecewise_asinh_rot": "piecewise-asinh",
}
"""NVIDIA's names of these."""
NORMALIZATION = choice(*NORMALIZATIONS)
VIEWS = {
    "ego_view": "This video is captured from a first-person perspective looking at the scene.",
    "third_person_view": "This video is captured from a third-person perspective looking towards the agent from the "
    "front.",
    "wrist_view": "This video is captured from a wrist-mounted camera.",
    "concat_view": "This video contains concatenated views from multiple camera perspectives.",
    "top_down_2d_view": "This video is captured from a top-down view of a flat 2D scene.",
    "video_game_view": "This video is captured from an in-game camera perspective in a virtual environment.",
}
"""The framing sentence by view, word for word as NVIDIA's framework has it (viewpoint_utils.py); the last two are the
framework's alone."""
JSON, TEXT = "json", "text"
"""How an action prompt is written."""

Table = tuple[tuple[float, ...], ...]


def _rows(name: str, value: Any, task: Task) -> str | Table | None:
    """The path of a table, or the table: rows of equally many finite numbers. One row may be a list of numbers."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = listed(value)
    if value is None or not isinstance(value, list | tuple):
        return PATH.read(name, value, task)
    rows = [value] if value and not any(isinstance(row, list | tuple) for row in value) else value
    if not rows or not all(isinstance(row, list | tuple) and row for row in rows):
        raise _no_table(name, value, "it is no table of numbers")
    if len({len(row) for row in rows}) > 1:
        raise _no_table(name, value, f"its rows have {' and '.join(sorted({str(len(row)) for row in rows}))} numbers")
    if len(rows) * len(rows[0]) > MOST_VALUES:
        found = f"it has {len(rows) * len(rows[0]):,} numbers, and a request holds {MOST_VALUES:,}"
        raise InputError(f"`{name}` of {len(rows):,} rows", found, "Save it as .npy and give its path", name)
    for at, row in enumerate(rows):
        for channel, number in enumerate(row):
            if not _finite(number):
                raise _no_table(name, value, f"row {at}, channel {channel} is {shown(number)}")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _finite(number: Any) -> bool:
    """Whether it is a number that a float holds."""
    try:
        return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:
        return False


def _no_table(name: str, value: Any, found: str) -> InputError:
    next_step = "Give the path of a table, or rows of finite numbers such as [[0.1, 0.2], [0.3, 0.4]]"
    return InputError(f"{name} = {shown(value)}", found, next_step, name)


def _domain(name: str, value: Any, task: Task) -> str | None:
    if value is None:
        return None
    found = domain_named(value) if isinstance(value, str) else None
    if found is None:
        close = isinstance(value, str) and nearest_domain(value)
        next_step = f"Did you mean {close}?" if close else f"Domains are {', '.join(domains())}"
        raise InputError(f"{name} = {shown(value)}", "there is no such embodiment", next_step, name)
    return found.name


def _canvas(name: str, value: Any, task: Task) -> tuple[int, int] | str:
    """A size, or "256p:auto" where the tier's canvas is that nearest to the input."""
    value = str(value) if type(value) is int and 0 < value < LARGEST else value
    if isinstance(value, str) and (tier := re.fullmatch(r"\s*(\d+)p?\s*", value)):
        value = f"{tier[1]}p:auto"
    if isinstance(value, str) and (auto := AUTO.fullmatch(value)):
        if auto[1] not in CANVAS_TIERS:
            tiers = " or ".join(f"{tier}p" for tier in CANVAS_TIERS)
            found = f"canvases have no tier {auto[1][:9]}p" if auto[1] else "it has no tier"
            raise InputError(f"{name} = {shown(value)}", found, f"Give {tiers}", name)
        return value
    try:
        return SIZE.read(name, value, task)
    except InputError as error:
        raise InputError(f"{name} = {shown(value)}", error.found, error.next_step, name) from None


def canvas_for(tier: str, source: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the tier's canvas whose height by width is nearest to that of an input (width, height), as
    NVIDIA's framework and diffusers choose it."""
    ratio = source[1] / source[0]
    return min(TIERS[tier].values(), key=lambda size: abs(size[1] / size[0] - ratio))


def _chunk(name: str, value: Any, task: Task) -> int | None:
    if value is None:
        return None
    chunk = whole(TEMPORAL_COMPRESSION, LONGEST - 1).read(name, value, task)
    if chunk % TEMPORAL_COMPRESSION:
        below = chunk // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION
        found = f"a chunk is a multiple of {TEMPORAL_COMPRESSION}, one action before each frame but the first"
        next_step = f"The nearest are {below} and {below + TEMPORAL_COMPRESSION}" if below else "The least is 4"
        raise InputError(f"{name} = {shown(value)}", found, next_step, name)
    return chunk


def _span(name: str, value: Any, task: Task) -> tuple[int, int] | None:
    value = listed(value)
    if value is None or (isinstance(value, list | tuple) and not value):
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int and n >= 0 for n in value):
        found = "it is no pair of row numbers"
        raise InputError(f"{name} = {shown(value)}", found, "Give the first row and the one after the last: [0, 16]")
    if value[0] >= value[1]:
        raise InputError(f"{name} = {shown(value)}", "it ends before it begins", "Give the lower one first")
    return value[0], value[1]


def _method(name: str, value: Any, task: Task) -> str | None:
    word = THEIRS.get(value, value) if isinstance(value, str) else value
    return None if word is None else str(NORMALIZATION.read(name, word, task))


BICUBIC, DIFFUSERS = "bicubic", "diffusers"
FILTERS = ("bilinear", "lanczos")
"""Of an input that fills the size; those above are of one on an action's canvas."""


def _filter(name: str, value: Any, task: Task) -> str:
    names = (BICUBIC, DIFFUSERS) if "action" in task.latents else FILTERS
    if not isinstance(value, str) or value not in names:
        asked = f"{name} = {shown(value)} with task {task.name}"
        raise InputError(asked, "there is no such choice", f"{name} is one of {', '.join(names)}", name)
    return value


def optional(kind: Kind) -> Kind:
    """The kind, or None where nothing is given."""
    return Kind(
        kind.name, kind.words, kind.schema, kind.type, lambda n, v, t: None if v is None else kind.read(n, v, t)
    )


ROWS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "minItems": 1},
        {"type": "null"},
    ]
}
ROWS = Kind("table", "the path of a table, or its rows", ROWS_SCHEMA, str, _rows)
DOMAIN = Kind("choice", ", ".join(domains()), {"enum": list(domains())}, str, _domain)
CANVAS = Kind(
    "canvas",
    f"a tier, {', '.join(f'{tier}p' for tier in CANVAS_TIERS[:-1])} or {CANVAS_TIERS[-1]}p, or 320x256, in "
    f"multiples of {SPATIAL_COMPRESSION}",
    SIZE.schema,
    str,
    _canvas,
)
CHUNK = Kind(
    "chunk",
    f"a multiple of {TEMPORAL_COMPRESSION}, one less than frames",
    {"type": "integer", "minimum": TEMPORAL_COMPRESSION, "multipleOf": TEMPORAL_COMPRESSION},
    int,
    _chunk,
)
SPAN = Kind(
    "rows",
    "the first row and the one after the last, such as [0, 16]",
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
    str,
    _span,
)
METHOD = Kind("choice", ", ".join(NORMALIZATIONS), NORMALIZATION.schema, str, _method)
FILTER = Kind(
    "choice",
    f"{', '.join(FILTERS)}, or with actions {BICUBIC} or {DIFFUSERS}",
    {"enum": [*FILTERS, BICUBIC, DIFFUSERS]},
    str,
    _filter,
)
