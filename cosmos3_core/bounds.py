"""What text from outside may be: how much of it, how deep, and how large its numbers. Real files are far from each."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 64
"""Levels of JSON. A published config has 4."""
MOST_DIGITS = 64
"""Of a whole number in JSON. Tokenizers of published models say 1e30; a float holds 308."""


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, in words for a person, where it is no JSON, nested deeper than
    `DEEPEST` levels or holds a number of more than `MOST_DIGITS` digits."""
    too_deep = f"it is nested deeper than the {DEEPEST} levels that are read"
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError(too_deep) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if _deeper(value, DEEPEST):
        raise ValueError(too_deep)
    return value


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits, and at most {MOST_DIGITS} are read")
    return int(digits)


def _deeper(value: Any, levels: int) -> bool:
    held = [value]
    for _ in range(levels + 1):
        held = [
            inner
            for outer in held
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not held:
            return False
    return True
