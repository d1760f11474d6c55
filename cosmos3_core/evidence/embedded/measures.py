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

from ...contract import RunError

SCHEMA = 3
"""Raised whenever what is judged, or how, changes: two evaluations of one schema can be compared."""
NAMES = ("task", "kind", "prompt", "seed")
"""Keys of a case that say which it is; all others are what it comes to, by measure."""
SEEN = ("colour", "shape", "count", "direction", "motion")
MEASURED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("t2v", "t2vs", "t2i"), SEEN),
    **dict.fromkeys(("i2v", "i2vs", "v2v"), (*SEEN, "given")),
    "policy": ("reached", "pixels"),
    "inverse-dynamics": ("error",),
    "forward-dynamics": ("error", "within", "path"),
    "velocity": ("error",),
    "codec": ("psnr",),
}
"""By task what every case of it comes to; with sound, those of some kinds of scene come to more."""
SHARES = (*SEEN, "silence", "sound", "pitch", "reached", "within")
"""Measures that are right or wrong of a case, 1 or 0."""
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


def fault(runs: Mapping[str, int], bounds: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> str | None:
    """Why these are not the cases of the runs, or not all that is bounded was judged of them, in words."""
    seeds = {task: sorted(case["seed"] for case in cases if case["task"] == task) for task in runs}
    if len(cases) != sum(runs.values()) or any(seeds[task] != list(range(count)) for task, count in runs.items()):
        return "has other cases than its runs"
    judged = set()
    for case in cases:
        task, values = case["task"], {name: value for name, value in case.items() if name not in NAMES}
        if lost := [name for name in MEASURED.get(task, ()) if name not in values]:
            return f"does not say {lost[0]} of a case of {task}"
        known = {name: value for name, value in values.items() if value is not None}
        if wrong := [name for name, value in known.items() if name in SHARES and value not in (0, 1)]:
            return f"says {wrong[0]} {known[wrong[0]]:g} of a case of {task}, which is right or wrong"
        judged |= {*known, *(f"{task}.{name}" for name in known)}
    if lost := [name for name, bound in bounds.items() if bound and name not in judged]:
        return f"judges no {lost[0]}, which has a bound"
    return None


def check_numbers(found: Sequence[Mapping[str, Any]]) -> None:
    """Raises RunError for a measure, as JSON, that is no number."""
    for one in found:
        if not math.isfinite(one["value"]):
            next_step = "Run again with `backend` reference to tell which kernel it is"
            raise RunError(f"the evaluation's {one['task']} {one['measure']}", "it is no number", next_step)


@cache
def depths() -> dict[str, Depth]:
    """Those of depths.toml."""
    tables = tomllib.loads(Path(__file__).with_name("depths.toml").read_text(encoding="utf-8"))
    return {name: Depth(row["runs"], row["bounds"]) for name, row in tables.items()}
