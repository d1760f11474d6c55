"""What Python calls the fields of a request and of a plan, and what to do about a name that is not here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cosmos3_core.contract import InputError
from cosmos3_core.contract.errors import NAMED
from cosmos3_core.scenarios.aliases import in_python
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.scenarios.faults import together
from cosmos3_core.spelling import did_you_mean

OURS = {"kernel": "kernels", "format": "formats", "latents": "noise"}
"""Arguments by what the core calls them, which is what the command line does."""


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


def arguments(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


def unknown(word: str, here: list[str], elsewhere: Mapping[str, list[str]]) -> str:
    """What to do about an argument that is not among those `here`; `elsewhere` has those of other calls, by their
    name."""
    for place, names in elsewhere.items():
        if word in names:
            return f"It is an argument of {place}"
    return in_python(word) or did_you_mean(word, here, f"It takes {', '.join(sorted(here))}")


@contextmanager
def as_arguments(here: list[str], elsewhere: Mapping[str, list[str]]) -> Iterator[None]:
    """An InputError raised inside names Python's arguments, in its message and in the `field` of each fault."""
    try:
        yield
    except InputError as error:
        for fault in error.faults:
            if fault.asked == f"request field {fault.field!r}" and fault.field not in FIELDS:
                fault.next_step = unknown(fault.field, here, elsewhere)
            fault.field = OURS.get(fault.field, fault.field)
            for part in ("asked", "found", "next_step"):
                text = NAMED.sub(lambda match: f"`{OURS.get(match[1], match[1])}`", getattr(fault, part))
                setattr(fault, part, text)
        raise together(error.faults) from error.__cause__
