"""What text from outside may be: how much of it, how deep, and how large its numbers. Real files are far from each."""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEEPEST = 64
"""Levels of JSON. A published config has 4, and what cosmos3 writes has fewer than ten."""
MOST_DIGITS = 64
"""Of a whole number in JSON. Tokenizers of published models say 1e30; a float holds 308."""
SHOWN = 60
"""Characters of a key or a number that a message shows."""
MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.S)
"""Texts of JSON, to pass over, and what opens and closes a level."""
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Where a text may hold a surrogate alone, which no file and no terminal can show."""


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, in words for a person, where it is no JSON, nested deeper than
    `DEEPEST` levels (before it is parsed), names a key twice, or holds a number of more than `MOST_DIGITS` digits, NaN,
    infinity or half a character."""
    depth = 0
    for mark in MARKS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than the {DEEPEST} levels that are read")
    value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    if HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half a character, {error.object[error.start]!a}") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One of two values of a key would be dropped without a word."""
    value: dict[str, Any] = {}
    for key, part in pairs:
        if key in value:
            raise ValueError(f"{key[:SHOWN]!r} is there twice")
        value[key] = part
    return value


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:SHOWN]} is too large a number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits, and at most {MOST_DIGITS} are read")
    return int(digits)
