"""What a JSON value from a file has to be, and how such a file is read.

A shape says which values it takes; `Shape.check` names the place of the first that it does not. States, manifests,
records and recipes are read by these alone, so nothing behind them meets a type or a number that it does not expect.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..bounds import SHOWN

LONGEST = 1 << 20
"""Characters of a text."""


class Shape(Protocol):
    def check(self, value: Any, where: str) -> None:
        """Raises ValueError, a sentence that begins with `where`, for a value that is not of this shape."""


@dataclass(frozen=True)
class Text:
    """Text, one of `choices` if there are any and in the form of `pattern` if there is one; with `none` also null."""

    none: bool = False
    choices: tuple[str, ...] = ()
    pattern: str = ""
    longest: int = LONGEST

    def check(self, value: Any, where: str) -> None:
        if self.none and value is None:
            return
        if not isinstance(value, str):
            raise _fault(where, value, "text")
        if len(value) > self.longest:
            raise ValueError(f"{where} has {len(value):,} characters, more than {self.longest:,}")
        if (self.choices and value not in self.choices) or not re.fullmatch(self.pattern or "(?s:.*)", value):
            raise _fault(where, value, f"one of {', '.join(self.choices)}" if self.choices else "of the right form")


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`, and a `whole` one if that is asked for; with `none` also null."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    none: bool = False

    def check(self, value: Any, where: str) -> None:
        if self.none and value is None:
            return
        kinds = (int,) if self.whole else (int, float)
        if type(value) not in kinds or value != value or value in (math.inf, -math.inf):
            raise _fault(where, value, "a whole number" if self.whole else "a number")
        if not self.low <= value <= self.high:
            raise _fault(where, value, f"from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Switch:
    """True or false."""

    def check(self, value: Any, where: str) -> None:
        if type(value) is not bool:
            raise _fault(where, value, "true or false")


@dataclass(frozen=True)
class Anything:
    """Any value: who takes it checks it."""

    def check(self, value: Any, where: str) -> None:
        return


@dataclass(frozen=True)
class Listed:
    """A list of `least` to `most` values of one shape."""

    shape: Shape
    least: int = 0
    most: int = 10_000

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise _fault(where, value, "a list")
        if not self.least <= len(value) <= self.most:
            raise ValueError(f"{where} has {len(value)} entries, not {self.least} to {self.most}")
        for number, entry in enumerate(value):
            self.shape.check(entry, f"{where}[{number}]")


@dataclass(frozen=True)
class Table:
    """An object: the keys `needed`, those `allowed`, and any other whose value has the shape of `others` (None: no
    other). With `none` also null."""

    needed: Mapping[str, Shape] = field(default_factory=dict)
    allowed: Mapping[str, Shape] = field(default_factory=dict)
    others: Shape | None = None
    none: bool = False

    def check(self, value: Any, where: str) -> None:
        if self.none and value is None:
            return
        if not isinstance(value, dict):
            raise _fault(where, value, "an object")
        if missing := [key for key in self.needed if key not in value]:
            raise ValueError(f"{where} has no {missing[0]}")
        for key, inner in value.items():
            shape = self.needed.get(key) or self.allowed.get(key) or self.others
            if shape is None:
                raise ValueError(f"{where} has the key {_shown(key)}, which nothing reads")
            shape.check(inner, f"{where}.{key[:SHOWN]}")


def _fault(where: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{where} is {_shown(value)}, not {wanted}")


def _shown(value: Any) -> str:
    """A value for a message: on one line, and not at length."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > 10**SHOWN:
        return "a number of many digits"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
