"""What an evaluation runs, and what it comes to: the depths, and means of what was judged beside their bounds. A record
is read with these; they load no library."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = 2
"""Raised whenever what is judged, or how, changes: two evaluations of one schema can be compared."""
NAMES = ("task", "kind", "prompt", "seed")
"""Keys of a case that say which it is; all others are what it comes to, by measure."""
DIGITS = 4
"""Behind the point, of what is judged and of its mean."""


@dataclass(frozen=True)
class Measure:
    """The mean of what was judged, `of` so many cases; `least` or `most` bound it, and it may have no bound."""

    task: str
    measure: str
    value: float
    of: int
    least: float | None
    most: float | None

    @property
    def met(self) -> bool:
        """Whether the bound holds; of a number that is none (NaN) it does not."""
        high, low = self.least is None or self.value >= self.least, self.most is None or self.value <= self.most
        return high and low

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Depth:
    """How many `runs` there are of each task, and `bounds`, {"least" or "most": number}, by measure or TASK.MEASURE, of
    which the latter go before."""

    runs: Mapping[str, int]
    bounds: Mapping[str, Mapping[str, float]]

    def judged(self, task: str, measure: str, value: float, of: int) -> Measure:
        """A mean beside its bound."""
        bound = self.bounds.get(f"{task}.{measure}", self.bounds.get(measure, {}))
        return Measure(task, measure, value, of, bound.get("least"), bound.get("most"))

    def measures(self, cases: Sequence[Mapping[str, Any]]) -> list[Measure]:
        """What cases come to, task by task: of each measure the mean over those that have it, in the order in which
        they come first."""
        found = []
        for task in self.runs:
            mine = [{k: v for k, v in case.items() if k not in NAMES} for case in cases if case["task"] == task]
            for name in dict.fromkeys(name for values in mine for name in values):
                known = [value for values in mine if (value := values.get(name)) is not None]
                if known:
                    found.append(self.judged(task, name, round(math.fsum(known) / len(known), DIGITS), len(known)))
        return found


@cache
def depths() -> dict[str, Depth]:
    """Those of depths.toml."""
    tables = tomllib.loads(Path(__file__).with_name("depths.toml").read_text(encoding="utf-8"))
    return {name: Depth(row["runs"], row["bounds"]) for name, row in tables.items()}
