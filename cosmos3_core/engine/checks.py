"""Wrong types at the engine's seams, refused before they reach torch."""

from __future__ import annotations

from types import UnionType
from typing import Any

from ..contract import InputError


def check_type(asked: str, value: Any, kind: type | UnionType, next_step: str) -> None:
    """InputError unless the value is of this kind."""
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise InputError(asked, f"{type(value).__name__} is given where {wanted} is wanted", next_step)
