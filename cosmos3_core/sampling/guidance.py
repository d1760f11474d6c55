"""Classifier-free guidance; docs/model.md, sections 4.7 and 4.9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..model.packing import Item
from ..scenarios.branches import NEGATIVE, PROMPT, UNCONTROLLED, branches_of
from .state import views


def guided(guidance: float, interval: tuple[float, float] | None, timestep: float, ends: str = "closed") -> bool:
    """Whether a step needs the unconditional branch: never at guidance 1, else inside the interval, whose ends are
    inside it where `ends` are "closed" and outside where they are "open".

    `timestep` and `interval` are on the scheduler's scale of 0 to 1000.
    """
    if NEGATIVE not in branches_of(guidance) or interval is None:
        return NEGATIVE in branches_of(guidance)
    return inside(interval, timestep, ends)


def inside(interval: tuple[float, float], timestep: float, ends: str) -> bool:
    """Whether a timestep lies in the interval; its own ends do where they are "closed"."""
    low, high = interval
    return low < timestep < high if ends == "open" else low <= timestep <= high


def combined(velocities: Mapping[str, Tensor], guidance: float, control_guidance: float, formula: str) -> Tensor:
    """One velocity of those of the branches that ran, fp32. Without the branch `UNCONTROLLED` or `NEGATIVE` its
    guidance is none.

    With all three, `formula` "nested" is NVIDIA's framework's and diffusers', in which text guidance multiplies what
    control guidance gives; "separate" is vllm-omni's since 0.32, in which each has a term of its own.
    """
    full, bare, negative = (velocities.get(name) for name in (PROMPT, UNCONTROLLED, NEGATIVE))
    assert full is not None
    if bare is None:
        return full if negative is None else combine(full, negative, guidance)
    if negative is None:
        return combine(full, bare, control_guidance)
    if formula == "nested":
        return combine(combine(full, bare, control_guidance), negative, guidance)
    return combine(bare, negative, guidance) + control_guidance * (full - bare)


def normalized(velocity: Tensor, prompt: Tensor, items: Sequence[Item]) -> Tensor:
    """A combined velocity, flat, each item's part of which is no longer than in the velocity of the prompt alone: times
    min(1, |prompt| / (|velocity| + 1e-8)), of Euclidean norms (docs/model.md, section 4.7)."""
    parts = zip(views(velocity, items), views(prompt, items), strict=True)
    scaled = [part * (alone.norm() / (part.norm() + 1e-8)).clamp(0, 1) for part, alone in parts]
    return torch.cat([part.flatten() for part in scaled])


def combine(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """uncond + guidance · (cond - uncond), of fp32 velocities."""
    return uncond + guidance * (cond - uncond)
