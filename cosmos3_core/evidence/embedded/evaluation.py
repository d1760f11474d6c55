"""Held-out cases through the engine, measures with bounds, and a verdict on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...contract import Backend, Device
from ...files.checkout import build_version
from ...settle import Wish
from ..settle import planned
from .cases import Case, cases_of
from .judged import JUDGES, Runner, Values, of_clips
from .measures import DIGITS, SCHEMA, Depth

SILENT = 10.0
"""Seconds after which a task that is under way says how far it is."""


def evaluate(
    wish: Wish,
    depth: Depth,
    *,
    on: tuple[Backend, Device] | None = None,
    given: Mapping[str, Any] | None = None,
    say: Callable[[str], object] = lambda line: None,
    prepared: Callable[[Runner], object] = lambda runner: None,
) -> dict[str, Any]:
    """Run the cases of a depth with the model, backend and formats of a `wish`, and judge them. `on` is the backend and
    its device if the caller has chosen them; `given` are fields of every request, which the model's own defaults fill
    otherwise; `say` is told what is under way; `prepared` may look at what is loaded. Returns JSON: measures, cases,
    whether all bounds hold. Raises InputError and RunError."""
    begun, runner = time.monotonic(), Runner(wish, given or {}, on)
    for task in depth.runs:
        runner.check(task)
    prepared(runner)
    judged = [case for task, count in depth.runs.items() for case in _judged(runner, task, count, say)]
    plan, measures = runner.ground.plan, depth.measures(judged)
    return {
        "schema": SCHEMA,
        "version": build_version(),
        "model": runner.ground.model.name,
        "weights": runner.engine.open_weights().identity_with_sound,
        "backend": plan.backend.name,
        "device": plan.device.name,
        **planned(plan),
        "given": dict(given or {}),
        "seconds": round(time.monotonic() - begun, 1),
        "measures": [one.to_json() for one in measures],
        "met": all(one.met for one in measures),
        "cases": judged,
    }


def _judged(runner: Runner, task: str, count: int, say: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """The cases of a task with what each comes to."""
    say(f"{task}: {count} runs")
    said = time.monotonic()
    for done, case in enumerate(cases_of(task, count)):
        if time.monotonic() - said >= SILENT:
            say(f"{task}: {done} of {count} runs")
            said = time.monotonic()
        yield _case(task, case, JUDGES.get(task, of_clips)(runner, case, task))


def _case(task: str, case: Case, values: Values) -> dict[str, Any]:
    rounded = {name: None if value is None else round(value, DIGITS) for name, value in values.items()}
    return {"task": task, "kind": case.kind, "prompt": case.prompt, "seed": case.seed} | rounded
