"""Classifier-free guidance; docs/model.md, section 4.7."""

from __future__ import annotations

from torch import Tensor

from ..scenarios.branches import NEGATIVE, branches_of


def guided(guidance: float, interval: tuple[float, float] | None, timestep: float) -> bool:
    """Whether a step needs the unconditional branch: never at guidance 1, else inside the interval, ends included.

    `timestep` and `interval` are on the scheduler's scale of 0 to 1000.
    """
    return NEGATIVE in branches_of(guidance) and (interval is None or interval[0] <= timestep <= interval[1])


def combine(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """uncond + guidance · (cond - uncond), of fp32 velocities."""
    return uncond + guidance * (cond - uncond)
