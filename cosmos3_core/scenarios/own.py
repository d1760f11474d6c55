"""What a checkpoint says of itself to whoever asks it for something: its own defaults, and one note.

assets/defaults.json, which any checkpoint may have:

    {"note": "what it knows, in one sentence", "weights": "trained", "defaults": {"t2v": {"frames": 17}, "i2v": "t2v"}}

`defaults` holds fields by task, or the name of the task that another is like; they go before those of every profile,
which are for models of other sizes. `weights` is "random" where nothing was learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract import InputError
from ..spelling import nearest, shown
from .facts import OWN
from .families import TASKS
from .field import PROFILE
from .fields import FIELDS

KEYS = ("note", "weights", "defaults")
WEIGHTS = ("trained", "random")
LONGEST_NOTE = 400
"""Characters: a note is one line of a terminal or three."""


@dataclass(frozen=True)
class Own:
    """`defaults` by task, checked as a request's fields are."""

    note: str | None = None
    random: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_own(value: Mapping[str, Any] | None, model: str) -> Own:
    """What the file of `model` says; of a checkpoint without one nothing. Raises InputError."""
    if value is None:
        return Own()
    asked = f"{model}/{OWN}"
    _check_names(asked, "key", value, KEYS)
    note, weights, tables = value.get("note"), value.get("weights", WEIGHTS[0]), value.get("defaults", {})
    if note is not None and not (isinstance(note, str) and 0 < len(note) <= LONGEST_NOTE):
        found = f"its note is {shown(note)}"
        raise InputError(asked, found, f"Write one sentence of at most {LONGEST_NOTE} characters")
    if weights not in WEIGHTS:
        raise InputError(asked, f"its weights are {shown(weights)}", f"Write {' or '.join(WEIGHTS)}")
    if not isinstance(tables, dict):
        raise InputError(asked, f"its defaults are {shown(tables)}", "Write fields by task")
    _check_names(asked, "task", tables, TASKS)
    rows = {task: tables.get(row) if isinstance(row, str) else row for task, row in tables.items()}
    return Own(note, weights == "random", {task: _row(asked, task, row) for task, row in rows.items()})


def _row(asked: str, name: str, row: Any) -> dict[str, Any]:
    """The defaults of a task. They are read as fields that a user gives, and kept as they were written."""
    task = TASKS[name]
    if not isinstance(row, dict):
        raise InputError(asked, f"its defaults of {name} are {shown(row)}", "Write fields, or the name of such a task")
    taken = {key: one for key, one in FIELDS.items() if one.default == PROFILE and one.refusal(task) is None}
    _check_names(asked, f"default of {name}", row, taken)
    for key, value in row.items():
        try:
            taken[key].check(value, task)
        except InputError as error:
            raise InputError(asked, f"its default of {name}: {error.asked}: {error.found}", error.next_step) from None
    return dict(row)


def _check_names(asked: str, kind: str, given: Mapping[str, Any], known: Any) -> None:
    for name in given:
        if name not in known:
            close = nearest(name, list(known))
            hint = f"Did you mean {close}?" if close else f"There are {', '.join(known)}"
            raise InputError(asked, f"there is no {kind} {shown(name)}", hint)
