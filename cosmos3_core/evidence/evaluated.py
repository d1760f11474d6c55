"""The embedded model, evaluated with a recipe's plan: what a record holds of it.

An evaluation's measures are computed again from its cases when a record is read, as errors are from samples. Where a
row of the plan does not serve the embedded model, there is the reason in its place, `not_run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint.repository import EMBEDDED
from ..files.schema import Anything, Listed, Number, Shape, Switch, Table, Text
from .embedded import measures
from .embedded.measures import Depth
from .settle import PLANNED

DEPTH = "quick"
"""Of a recipe's evaluation."""


def fault(record: Mapping[str, Any]) -> str | None:
    """What of a record's evaluation does not follow from its cases, or from the recipe's plan, in words. Raises
    ValueError for one that is none."""
    found = record["evaluation"]
    (REASON if isinstance(found, dict) and "not_run" in found else EVALUATION).check(found, "its evaluation")
    if "not_run" in found:
        return None
    if found["model"] != EMBEDDED:
        return f"its evaluation is of the model {found['model']}"
    computed = Depth(found["runs"], found["bounds"]).measures(found["cases"])
    if [one.to_json() for one in computed] != found["measures"] or all(one.met for one in computed) != found["met"]:
        return "the measures of its evaluation do not follow from its cases"
    if said := measures.fault(found["runs"], found["bounds"], found["cases"]):
        return f"its evaluation {said}"
    plan = record["measurements"]["candidate"]["raw"]["plan"]
    if other := [key for key in PLANNED if not _alike(key, plan.get(key), found[key], found["below"])]:
        return f"its evaluation has other {other[0]} than its plan"
    if found["backend"] != record["fingerprint"]["device"]["backend"]:
        return f"its evaluation is of the backend {found['backend']}"
    if found["device"] != record["fingerprint"]["device"]["name"]:
        return f"its evaluation is of the device {found['device']}"
    return None


def _alike(key: str, wanted: Any, found: Any, below: Mapping[str, Any]) -> bool:
    """A part of two plans, of which the first is for a number of tokens: a row of `below` may serve so many."""
    if key != "kernels":
        return bool(wanted == found)
    pairs = {op: (name, wanted.get(op)) for op, name in found.items()}
    return wanted.keys() == found.keys() and all(a == b or b in below.get(op, ()) for op, (a, b) in pairs.items())


def changed(record: Mapping[str, Any]) -> list[str]:
    """What an evaluation asks for today that the record's did not, in words."""
    if (found := record.get("evaluation")) is None or "not_run" in found:
        return []
    today = measures.depths()[DEPTH]
    asked = {"depth": DEPTH, "schema": measures.SCHEMA, "runs": today.runs, "bounds": today.bounds}
    same = all(found[key] == value for key, value in asked.items())
    return [] if same else ["what an evaluation runs or asks for changed"]


def embedded(record: Mapping[str, Any]) -> bool:
    """Whether the model inside the package was run for the record, as its own model or for the evaluation."""
    return record["model"]["name"] == EMBEDDED or "cases" in record.get("evaluation", {})


MEANS = Number(-1e9, 1e9)
BOUND = Number(-1e9, 1e9, none=True)
NAMES: Shape = Table(others=Text())
BELOW: Shape = Table(others=Table(others=Number(0, 1e12)))
REASON = Table({"not_run": Text()})
EVALUATION = Table(
    {
        "depth": Text(),
        "schema": Number(whole=True),
        "runs": Table(others=Number(0, 1e6, whole=True)),
        "bounds": Table(others=Table(allowed={"least": MEANS, "most": MEANS})),
        "version": Text(),
        "model": Text(),
        "weights": Text(),
        "backend": Text(),
        "device": Text(),
        "dtype": Text(),
        **dict.fromkeys(("kernels", "formats", "fused", "kept"), NAMES),
        **dict.fromkeys(("below", "kept_below"), BELOW),
        "given": Table(),
        "seconds": Number(0, 1e9),
        "measures": Listed(
            Table(
                {
                    "task": Text(),
                    "measure": Text(),
                    "value": MEANS,
                    "of": Number(1, 1e6, whole=True),
                    "least": BOUND,
                    "most": BOUND,
                    "met": Switch(),
                }
            ),
            most=1000,
        ),
        "met": Switch(),
        "cases": Listed(
            Table(
                {"task": Text(), "kind": Text(), "prompt": Text(), "seed": Number(whole=True)},
                others=Number(0, 1e9, none=True),
            ),
            most=1000,
        ),
    },
    {"others": NAMES, "a16": Table({"kernels": NAMES, "policy": Table(others=Anything())})},
)
