"""What the engine refuses: wrong types at its seams, before they reach torch, and numbers that are none."""

from __future__ import annotations

from types import UnionType
from typing import Any

from ..contract import InputError, RunError
from ..plan import Plan
from ..plan.discovery import BUILT_IN


def check_type(asked: str, value: Any, kind: type | UnionType, next_step: str) -> None:
    """InputError unless the value is of this kind."""
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise InputError(asked, f"{type(value).__name__} is given where {wanted} is wanted", next_step)


def not_finite(steps: int, plan: Plan) -> RunError:
    """The error of latents that hold NaN or infinity after so many steps."""
    found = "the latents hold NaN or infinity, so a kernel or a weight is wrong"
    next_step = "Run again with `backend` reference to tell which"
    if plan.backend.name == BUILT_IN and not plan.formats:
        found = "the latents hold NaN or infinity, and no kernel but eager torch's ran"
        next_step = "Run again with `dtype` float32; if it does not help, get the model's weights again"
    return RunError(f"decoding after {steps} steps", found, next_step)
