"""What a field of a request is: the row that fields.py, control_fields.py and action_fields.py write for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .branches import NEGATIVE, branches_of
from .facts import ModelFacts
from .families import TASKS
from .kinds import Kind
from .task import Task

PROFILE = "profile"
"""A field's default stands in defaults.toml, by task, profile and model variant."""
NOT_GIVEN = "not given"
"""A field's default is none."""
THE_INPUTS = "the inputs"
"""A field's default follows from the other fields."""
REQUIRED = "required"

INPUT = "Prompt and inputs"
CONTROL = "Controls"
TEXTS = "How texts are written"
SIZE = "Size and length"
SAMPLING = "Sampling"
DECODE = "Device and kernels"


def _taken(task: Task) -> str | None:
    return None


def _at_work(values: Mapping[str, Any], task: Task) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a request.

    `default` says where a value comes from that was not given: `PROFILE`, `NOT_GIVEN`, `THE_INPUTS` or `REQUIRED`. In a
    profile the default "checkpoint" stands for what `checkpoint` returns: the value and the file that holds it.
    `refusal` returns the reason why a task does not take the field, and `idle` the one why it would change nothing
    beside the other values of a request; None where it does something. `modality` is one that a model has to make,
    beside those of the task, where the field is on or does something. `option` says that the command line has an option
    for it (--set takes every field), `costs` that it bears on time or memory, `headline` that a recipe has it in [run]
    itself, and `distilled` that a distilled model has settled it. `group` is the heading it stands under for a reader.
    """

    name: str
    kind: Kind
    help: str
    group: str
    default: str = PROFILE
    checkpoint: Callable[[ModelFacts], tuple[Any, str]] | None = None
    refusal: Callable[[Task], str | None] = _taken
    idle: Callable[[Mapping[str, Any], Task], str | None] = _at_work
    modality: str | None = None
    option: bool = False
    costs: bool = False
    headline: bool = False
    distilled: bool = False

    def check(self, value: Any, task: Task) -> Any:
        """The value as a `Request` holds it. Raises InputError."""
        return self.kind.read(self.name, value, task)

    def useless(self, values: Mapping[str, Any], task: Task) -> str | None:
        """Why the field would change nothing in a request of these checked values; None if it does something."""
        return self.refusal(task) or self.idle(values, task)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that take it."""
        return tuple(name for name, task in TASKS.items() if self.refusal(task) is None)


def unguided(values: Mapping[str, Any], task: Task) -> str | None:
    return None if NEGATIVE in branches_of(values["guidance"]) else "guidance 1 uses no negative branch"


def uncontrolled(values: Mapping[str, Any], task: Task) -> str | None:
    return "control_guidance 1 uses no branch without controls" if values["control_guidance"] == 1 else None


def one_guidance(values: Mapping[str, Any], task: Task) -> str | None:
    return unguided(values, task) or uncontrolled(values, task)
