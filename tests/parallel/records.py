"""What `make test-parallel` writes down of what it found: the record that docs/SUPPORT.md has a table of."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layouts import BOUND

from cosmos3_core.evidence.layouts import RECORD, code_digest, pair_of

ROOT = Path(__file__).parents[2]
CODE = code_digest(ROOT)
"""Of what is imported now: files may change while tests run."""


class Found(NamedTuple):
    """Of a case: its features, among how many processes it was, its relative error against one process, and the bound
    of that. What it says is of pairs with the feature `only`, if that is given."""

    features: tuple[str, ...]
    processes: int
    error: float
    bound: float = BOUND
    only: str = ""


def keep(part: str, found: Sequence[Found], refused: Mapping[tuple[str, str], str] | None = None) -> None:
    """Write what a test found, also what is wrong, in the place of what it found before. `refused` pairs of features
    have a reason instead."""
    pairs: dict[str, dict[str, Any]] = {}
    for case in found:
        for one, other in itertools.combinations_with_replacement(case.features, 2):
            if case.only and case.only not in (one, other):
                continue
            entry = pairs.setdefault(pair_of(one, other), {"cases": 0, "over": 0, "worst": 0.0, "processes": []})
            entry["cases"] += 1
            entry["over"] += case.error >= case.bound
            entry["worst"] = max(entry["worst"], float(f"{case.error:.1e}"))
            entry["processes"] = sorted({*entry["processes"], case.processes})
    path = ROOT / RECORD
    record = json.loads(path.read_text("utf-8")) if path.exists() else {"bound": BOUND, "parts": {}}
    record["parts"][part] = {
        "code": CODE,
        "pairs": dict(sorted(pairs.items())),
        "refused": {pair_of(*pair): why for pair, why in (refused or {}).items()},
    }
    record["parts"] = dict(sorted(record["parts"].items()))
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
