"""`cosmos3 evaluate`: does what a model makes show what was asked for?"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from ..scenarios.defaults import PROFILES, check_profile
from ..settle import Wish
from .options import EMBEDDED
from .terminal import tell


@dataclass(frozen=True, kw_only=True)
class Options:
    """As typed."""

    model: str
    depth: str
    profile: str | None
    backend: str | None
    kernels: dict[str, str]
    formats: dict[str, str]
    high_precision_steps: str | None
    dtype: str | None
    disabled: tuple[str, ...]


def execute(options: Options, as_json: bool) -> None:
    """Print the measures and end with exit code 1 if a bound is not met. Raises InputError and RunError."""
    from ..evidence.embedded.evaluation import evaluate
    from ..evidence.embedded.measures import check_numbers, depths

    wish = Wish(
        model=options.model,
        profile=options.profile or PROFILES[0],
        backend=options.backend,
        disabled=options.disabled,
        dtype=options.dtype,
        kernels=options.kernels,
        formats=options.formats,
        high_precision_steps=options.high_precision_steps,
    )
    check_profile(wish.profile)
    found = evaluate(wish, depths()[options.depth], say=tell) | {"depth": options.depth}
    check_numbers(found["measures"])
    print(json.dumps(found, indent=1) if as_json else table(found))
    sys.exit(0 if found["met"] else 1)


def table(found: dict[str, Any]) -> str:
    """The measures of an evaluation, a line for each, the verdict, and after a no what to type next."""
    lines = [f"{'measure':<26}{'found':>9}{'bound':>11}{'of':>5}"]
    for one in found["measures"]:
        bound = next(
            (f"{sign} {one[key]:g}" for key, sign in (("least", ">="), ("most", "<=")) if one[key] is not None), ""
        )
        verdict = "" if not bound else "  met" if one["met"] else "  NOT MET"
        lines.append(f"{one['task'] + ' ' + one['measure']:<26}{one['value']:>9.4g}{bound:>11}{one['of']:>5}{verdict}")
    missed = sum(not one["met"] for one in found["measures"])
    said = "all bounds are met" if found["met"] else f"{missed} bound{'s' * (missed > 1)} not met"
    lines.append(f"{found['model']} on {found['device']} in {found['seconds']:.0f} s: {said}")
    return "\n".join(lines if found["met"] else [*lines, _next(found)])


def _next(found: dict[str, Any]) -> str:
    """What tells apart, after a no, whose fault it is: the device's, the weights', or that of few cases."""
    if found["backend"] != "reference" or found["formats"] or found["model"] != EMBEDDED:
        same = f"cosmos3 evaluate --backend reference --depth {found['depth']}"
        return f"Type {same}: a bound that is met there is missed for this device, format or model"
    if found["depth"] == "quick":
        return "Few cases can miss by chance. Type cosmos3 evaluate --depth full: it has 200 and more, and takes a GPU"
    return "Eager torch misses it too: compare with the table in docs/embedded.md, and report what differs"
