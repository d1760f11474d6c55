"""What the engine refuses: wrong types at its seams, before they reach torch, and numbers that are none."""

from __future__ import annotations

from types import UnionType
from typing import Any

from torch import Tensor

from ..contract import InputError, RunError
from ..plan import Plan
from ..plan.discovery import BUILT_IN
from ..sampling.state import Context, State
from ..scenarios.branches import branches_of
from ..scenarios.request import Request

PER_GENERATION = (
    *(
        "steps",
        "guidance",
        "guidance_interval",
        "interval_ends",
        "normalize_guidance",
        "schedule",
        "shift",
        "seed",
        "tile",
    ),
    *("control_guidance", "control_guidance_interval", "control_formula"),
)
"""The request's fields that leave a context as it is."""


def check_type(asked: str, value: Any, kind: type | UnionType, next_step: str) -> None:
    """InputError unless the value is of this kind."""
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        raise InputError(asked, f"{type(value).__name__} is given where {wanted} is wanted", next_step)


def check_prepared(context: Context, request: Request) -> None:
    """Raises InputError unless a generation of this request can begin on the context."""
    asked, next_step = "beginning a generation", "Prepare this request"
    now, prepared = request.to_json(), context.request.to_json()
    if other := [name for name in now if name not in PER_GENERATION and now[name] != prepared[name]]:
        found = f"its {', '.join(other)} differ from those of the request that was prepared"
        raise InputError(asked, found, next_step)
    if len(branches_of(request.guidance)) > len(context.texts):
        found = "it has guidance, and the request that was prepared had none, so no negative prompt was read"
        raise InputError(asked, found, next_step)
    if request.control_guidance != 1 and context.request.control_guidance == 1:
        found = "it has control guidance, and the request that was prepared had none"
        raise InputError(asked, found, next_step)


def not_finite(steps: int, plan: Plan) -> RunError:
    """The error of latents that hold NaN or infinity after so many steps."""
    found = "the latents hold NaN or infinity, so a kernel or a weight is wrong"
    next_step = "Run again with `backend` reference to tell which"
    if plan.backend.name == BUILT_IN and not plan.formats:
        found = "the latents hold NaN or infinity, and no kernel but eager torch's ran"
        next_step = "Run again with `dtype` float32; if it does not help, get the model's weights again"
    return RunError(f"decoding after {steps} steps", found, next_step)


def check_goes_on(state: State) -> None:
    """Raises InputError for a state that has had all its steps."""
    if state.done:
        raise InputError(f"step {state.index + 1}", f"the generation has {state.steps}, and had them", "Finish it")


def described(x: Tensor) -> str:
    """A tensor, for people."""
    return f"{x.dtype} {list(x.shape)} on {x.device}"
