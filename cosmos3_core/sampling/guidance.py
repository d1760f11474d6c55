"""Classifier-free guidance; docs/model.md, section 4.7."""

from __future__ import annotations

from torch import Tensor

from ..scenarios.branches import NEGATIVE, branches_of


def guided(guidance: float, interval: tuple[float, float] | None, timestep: float, ends: str = "closed") -> bool:
    """Whether a step needs the unconditional branch: never at guidance 1, else inside the interval, whose ends are
    inside it where `ends` are "closed" and outside where they are "open".

    `timestep` and `interval` are on the scheduler's scale of 0 to 1000.
    """
    if NEGATIVE not in branches_of(guidance) or interval is None:
        return NEGATIVE in branches_of(guidance)
    low, high = interval
    return low < timestep < high if ends == "open" else low <= timestep <= high


def combine(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """uncond + guidance · (cond - uncond), of fp32 velocities."""
    return uncond + guidance * (cond - uncond)
