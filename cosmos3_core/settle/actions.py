"""What of a request with actions its files decide: the canvas and the size, by the input; the rows of history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.model import Model
from ..contract import InputError
from ..scenarios import request as requests
from ..scenarios.action import shown_size
from ..scenarios.action_kinds import canvas_for
from ..scenarios.defaults import defaults
from ..scenarios.faults import about
from ..scenarios.fields import FIELDS
from ..scenarios.sizes import AUTO
from ..scenarios.task import Task
from ..spelling import shown
from .measured import source_size


class Found(NamedTuple):
    """Request fields that files decide, as text or numbers, and where each is from."""

    given: dict[str, Any]
    origin: dict[str, str]


def found_in_files(given: Mapping[str, Any], task: Task, profile: str, model: Model) -> Found:
    """Raises InputError for files that cannot be read, and for a `size` that is another than the input's on the
    canvas."""
    found = Found({}, {})
    _history(found, given)
    name = task.input and given.get(task.input)
    if not isinstance(name, str):
        return found
    source = source_size(name, task)
    asked = given.get("canvas", defaults(task.name, profile, model.facts)[0]["canvas"])
    canvas = FIELDS["canvas"].check(asked, task)
    if isinstance(canvas, str):
        canvas = canvas_for(AUTO.fullmatch(canvas)[1], source)  # type: ignore[index]
        found.origin["canvas"] = f"{asked}: nearest to the input's {source[0]}x{source[1]}"
    size = shown_size(source, canvas)
    if "size" in given and FIELDS["size"].check(given["size"], task) != size:
        why = f"of {source[0]}x{source[1]} on the canvas {canvas[0]}x{canvas[1]} comes {size[0]}x{size[1]}"
        raise InputError(
            f"size {shown(given['size'])} with task {task.name}", why, "Give `canvas` in its place", "size"
        )
    found.given.update(canvas=f"{canvas[0]}x{canvas[1]}", size=f"{size[0]}x{size[1]}")
    found.origin["size"] = f"the input's {source[0]}x{source[1]} on the canvas"
    return found


def _history(found: Found, given: Mapping[str, Any]) -> None:
    """How many rows of history a file has."""
    name = given.get("history")
    if not isinstance(name, str) or given.get("history_length") is not None:
        return
    if isinstance(FIELDS["history"].check(name, requests.TASKS["policy"]), str):
        from ..files.actions import read_rows  # and numpy, which a plan mostly does without

        with about("history"):
            found.given["history_length"] = len(read_rows(Path(name), f"`history` {name}").values)
        found.origin["history_length"] = "the rows of history"


def check_width(request: requests.Request, model: Model) -> None:
    """InputError for actions that are wider than the checkpoint's heads."""
    width, most = request.action_width, model.config.action_dim
    if model.config.action_gen and width is not None and width > most:
        found = f"the action heads of {model.name} take {most} channels"
        raise InputError(f"actions of {width} channels ({request.domain})", found, "Use another `model`", "domain")
