"""Which recipes of a machine's have no record of today's code, and what measuring them takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..contract import InputError
from ..plan.cost.units import ceiling_of
from ..quant.steps import OPTION
from .recipe import Recipe
from .settle import settle
from .state import State

CURRENT = ("validated", "validated on random weights", "runs")
"""States of a recipe whose record holds."""
PROBES = 2
"""What the probes and what they load take, a multiple of the runs."""
RUNS = 6
"""Of a request in a validation that nobody has measured yet: the recipe's two, the slower baseline's two, probes."""


@dataclass(frozen=True)
class Due:
    """A recipe that can run on this machine. `seconds` is what measuring it is expected to take, without the evaluation
    of its plan: by its last record, else by the plan; None where nothing is known."""

    recipe: Recipe
    state: State
    seconds: float | None

    @property
    def current(self) -> bool:
        return self.state.name in CURRENT

    @property
    def shares(self) -> str:
        """The same for recipes that are held against one baseline."""
        own = ("kernels", "formats", "parallel", OPTION)
        run = {key: value for key, value in self.recipe.run.items() if key not in own}
        return json.dumps(run, sort_keys=True, default=str)


def due(recipes: Iterable[tuple[Recipe, State]], *, random_weights: bool) -> tuple[list[list[Due]], dict[str, str]]:
    """Those that can run here, in groups of one baseline and the cheapest first, so that a given time makes most
    records; and why others cannot, by name."""
    groups: dict[str, list[Due]] = {}
    refused: dict[str, str] = {}
    for recipe, state in recipes:
        try:
            settled = settle(recipe, random_weights=random_weights)
        except InputError as error:
            refused[recipe.name] = error.found
            continue
        counted = settled.estimate.seconds(ceiling_of(settled.plan.backend, settled.plan.device))
        one = Due(recipe, state, measured(state.record) or (RUNS * counted["total"] if counted else None))
        groups.setdefault(one.shares, []).append(one)
    return sorted(groups.values(), key=lambda group: cost(group) / len(group)), refused


def cost(group: Iterable[Due]) -> float:
    """Seconds that a group is expected to take; infinity where nothing is known of one of it."""
    return sum(math.inf if one.seconds is None else one.seconds for one in group)


def measured(record: Mapping[str, Any] | None) -> float | None:
    """About what a record's measurements took."""
    if record is None:
        return None
    raws = [one["raw"] for one in record["measurements"].values()]
    return PROBES * sum(float(raw[run]["seconds"]) for raw in raws for run in ("cold", "warm") if run in raw)
