"""What Python calls the fields of a request and of a plan, and what to do about a name that is not here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cosmos3_core.contract import InputError
from cosmos3_core.scenarios.aliases import in_python
from cosmos3_core.scenarios.faults import NAMED, field_of, together
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.spelling import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
OURS = {"kernel": "kernels", "format": "formats", "latents": "noise"}
"""Arguments by what the core calls them, which is what the command line does."""
CALL, START, OF_A_PIPE, LOAD, PLAN = "a call", "pipe.start", "pipe.plan", "cosmos3.load", "cosmos3.plan"
FORECASTS = "cosmos3.forecasts"
QUANTIZE = "cosmos3.quantize"
_OPENING = (
    "model",
    "backend",
    "formats",
    "high_precision_steps",
    "kernels",
    "dtype",
    "profile",
    "resident",
    "placement",
)
TAKES: dict[str, tuple[str, ...]] = {
    CALL: (*FIELDS, "n", "noise", "output", "overwrite", "on_step", "progress", "cancel", "anyway"),
    START: (*FIELDS, "noise", "anyway"),
    OF_A_PIPE: tuple(FIELDS),
    LOAD: (*_OPENING, "revision", "memory_limit", "parallel"),
    PLAN: (*_OPENING, "device", "arch", "memory", "host_memory", "parallel", "devices", "objective", *FIELDS),
    FORECASTS: (*_OPENING, *FIELDS),
    QUANTIZE: (
        *("model", "revision", "format", "dialect", "group", "policy", "method", "calibrate", "output", "overwrite"),
        *("sweep", "keep_share", "max_error", "backend", "progress"),
        *(name for name in FIELDS if name not in ("prompt", "seed")),
    ),
}
"""What each place takes by name."""


class Answering:
    """Has words for an attribute that it lacks."""

    if not TYPE_CHECKING:  # to a type checker it is an error as it was

        def __getattr__(self, name: str) -> Any:
            called = type(self).__name__
            if name.startswith("_"):
                raise AttributeError(f"{called!r} object has no attribute {name!r}", name=name, obj=self)
            here = [member for member in dir(type(self)) if not member.startswith("_")]
            hint = self._elsewhere(name) or did_you_mean(name, here, f"It has {', '.join(here)}")
            raise AttributeError(f"a {called.lower()} has no {name!r}. {hint}", name=name, obj=self)

    @staticmethod
    def _elsewhere(name: str) -> str | None:
        """What to do about an attribute that other programs have."""
        return None


def elsewhere(word: str, here: str = "") -> str | None:
    """What to do about an argument of another place than `here`, or of another program; None for one of neither."""
    places = [place for place, names in TAKES.items() if word in names and place != here]
    theirs = in_python(word)
    if places in ([PLAN], [QUANTIZE]) and theirs:  # a forecast's `device` is none to run on, nor is a file's `format`
        return theirs
    return f"It is an argument of {places[0]}" if places else theirs


def unknown(word: str, here: str) -> str:
    """What to do about an argument that `here`, of TAKES, does not take."""
    return elsewhere(word, here) or did_you_mean(word, TAKES[here], f"It takes {', '.join(sorted(TAKES[here]))}")


def bound(function: Callable[P, R]) -> Callable[P, R]:
    """A public function whose wrong arguments are an InputError, as its wrong values are: one to catch for all."""
    signature = inspect.signature(function)
    names = [name for name in signature.parameters if name not in ("self", "fields", "others")]

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            word = next((name for name in options if name not in names), None)
            takes = f"It takes {', '.join(names)}" if names else "It takes nothing"
            hint = takes if word is None else did_you_mean(word, names, takes)
            owner = {"__call__": "pipe", "__init__": function.__qualname__.partition(".")[0]}
            name = owner.get(function.__name__, function.__name__)
            raise InputError(f"calling {name}()", str(error), hint, word) from None
        return function(*arguments, **options)

    return call


def in_arguments(text: str, here: str = "") -> str:
    """A message of the core with Python's arguments in it, those of `here`, of TAKES."""
    return NAMED.sub(lambda match: f"`{_ours(match[1], here)}`", text)


def _ours(name: str, here: str) -> str:
    return name if name in TAKES.get(here, ()) else OURS.get(name, name)


@contextmanager
def as_arguments(here: str) -> Iterator[None]:
    """An InputError raised inside names Python's arguments, in its message and in the `field` of each fault; one that
    there is not `here`, of TAKES, is answered."""
    try:
        yield
    except InputError as error:
        for fault in error.faults:
            name = field_of(fault)
            if name is not None and name not in TAKES[here] and fault.asked == f"request field {name!r}":
                fault.next_step = unknown(name, here)
            else:
                fault.field = name and _ours(name, here)
            for part in ("asked", "found", "next_step"):
                setattr(fault, part, in_arguments(getattr(fault, part), here))
        raise together(error.faults) from error.__cause__
