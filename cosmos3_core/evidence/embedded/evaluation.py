"""Held-out cases through the engine, measures with bounds, and a verdict on each."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...settle import Wish
from .cases import Case, cases_of
from .judged import JUDGES, Runner, Values, of_clips

SCHEMA = 1


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


@cache
def depths() -> dict[str, Depth]:
    """Those of depths.toml."""
    tables = tomllib.loads(Path(__file__).with_name("depths.toml").read_text(encoding="utf-8"))
    return {name: Depth(row["runs"], row["bounds"]) for name, row in tables.items()}


def evaluate(
    wish: Wish,
    depth: Depth,
    *,
    given: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda line: None,
    prepared: Callable[[Runner], object] = lambda runner: None,
) -> dict[str, Any]:
    """Run the cases of a depth with the model, backend and formats of a `wish`, and judge them. `given` are fields of
    every request, which the model's own defaults fill otherwise; `say` is told what is under way; `prepared` may look
    at what is loaded. Returns JSON: measures, cases, whether all bounds hold. Raises InputError and RunError."""
    begun, runner = time.monotonic(), Runner(wish, given or {})
    prepared(runner)
    measures, judged = [], []
    for task, count in depth.runs.items():
        say(f"{task}: {count} runs")
        found = [(case, JUDGES.get(task, of_clips)(runner, case, task)) for case in cases_of(task, count)]
        measures += _measures(task, depth, [values for _, values in found])
        judged += [_case(task, case, values) for case, values in found]
    plan = runner.ground.plan
    return {
        "schema": SCHEMA,
        "model": runner.ground.model.name,
        "weights": runner.engine.open_weights().identity_with_sound,
        "backend": plan.backend.name,
        "device": plan.device.name,
        "dtype": plan.dtype,
        "formats": dict(plan.formats),
        "kernels": plan.to_json()["kernels"],
        "given": dict(given or {}),
        "seconds": round(time.monotonic() - begun, 1),
        "measures": [asdict(one) | {"met": one.met} for one in measures],
        "met": all(one.met for one in measures),
        "cases": judged,
    }


def _measures(task: str, depth: Depth, values: Sequence[Values]) -> list[Measure]:
    """Of each measure the mean over the cases that have it, in the order in which they come first."""
    found = []
    for name in dict.fromkeys(name for one in values for name in one):
        known = [value for one in values if (value := one.get(name)) is not None]
        if known:
            found.append(depth.judged(task, name, round(float(np.mean(known)), 4), len(known)))
    return found


def _case(task: str, case: Case, values: Values) -> dict[str, Any]:
    rounded = {name: None if value is None else round(value, 4) for name, value in values.items()}
    return {"task": task, "kind": case.kind, "prompt": case.prompt, "seed": case.seed} | rounded
