"""What a task is: the row that a scenario family writes for each thing a model can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .keyframes import Keyframe

FULL, DISTILLED = ("base", "edge"), "distilled"
"""Kinds of checkpoint: those with a schedule of any number of steps, and those with a fixed one."""


class Conditions(Protocol):
    """What of a request a task's clean frames follow from."""

    @property
    def condition_frame_indexes(self) -> tuple[int, ...]: ...

    @property
    def keyframe(self) -> tuple[Keyframe, ...] | None: ...


def _none(request: Conditions) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to ask for.

    `title` is its name in words, and `result` what comes out, "an image" or "a video". `suffix` is that of its output
    file, and `aspect` its aspect ratio where only a tier is given. `single` says that it has one frame. `input` is the
    field of the file that it starts from, if there is one, and `source` what that holds, "picture" or "clip". `latents`
    names the modalities of the items that it asks the model for, and `sounding` says that sound can be made beside
    them. `variants` are the kinds of checkpoint that do it. `clean` returns the latent frames that are taken from the
    input instead of noise, ascending.
    """

    name: str
    title: str
    result: str
    suffix: str
    aspect: str
    single: bool
    latents: tuple[str, ...]
    input: str | None = None
    source: str | None = None
    sounding: bool = False
    variants: tuple[str, ...] = FULL
    clean: Callable[[Conditions], tuple[int, ...]] = _none
