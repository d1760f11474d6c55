"""What a task is: the row that a scenario family writes for each thing a model can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Conditions(Protocol):
    """What of a request a task's clean frames follow from."""

    @property
    def frames(self) -> int: ...

    @property
    def condition_frame_indexes(self) -> tuple[int, ...]: ...


def _none(request: Conditions) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to ask for.

    `title` is its name in words, and `result` what comes out, "an image" or "a video". `suffix` is that of its output
    file, and `aspect` its aspect ratio where only a tier is given. `single` says that it has one frame. `input` is the
    field of the file that it starts from, if there is one, and `source` what that holds, "picture" or "clip". `latents`
    names the modalities of the items that it asks the model for. `distilled` says that there are distilled models of
    it. `needs` are fields besides the prompt and the input that it has to be given. `clean` returns the latent frames
    that are taken from the input instead of noise, ascending; with `chooses_frames` a request says which.
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
    distilled: bool = False
    needs: tuple[str, ...] = ()
    chooses_frames: bool = False
    clean: Callable[[Conditions], tuple[int, ...]] = _none
