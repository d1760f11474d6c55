"""What a task is: the row that a scenario family writes for each thing a model can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .chunks import Chunks

if TYPE_CHECKING:
    from .keyframes import Keyframe

FULL, DISTILLED = ("base", "edge"), "distilled"
"""Kinds of checkpoint: those with a schedule of any number of steps, and those with a fixed one."""


class Conditions(Protocol):
    """What of a request a task's clean frames follow from."""

    @property
    def frames(self) -> int: ...

    @property
    def condition_frame_indexes(self) -> tuple[int, ...]: ...

    @property
    def keyframe(self) -> tuple[Keyframe, ...] | None: ...

    @property
    def first_frames(self) -> int: ...


def _at_once(request: Any) -> Chunks:
    return Chunks(request.frames, request.frames)


def _whole(request: Any, index: int) -> Any:
    return request


def _none(request: Conditions) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to ask for.

    `title` is its name in words, and `result` what comes out, "an image" or "a video". `suffix` is that of its output
    file, and `aspect` its aspect ratio where only a tier is given. `single` says that it has one frame. `input` is the
    field of the file that it starts from, if there is one, and `source` what that holds, "picture" or "clip"; `takes`
    are the fields of clips that it may have besides, `tables` those of tables, and `needs` the ones of these that it
    has to have. `beside` names the clean item of its own that the input is, which stands before what is made; None
    where the input is frames of that. `latents` names the modalities of the items that it asks the model for, and
    `sounding` says that sound can be made beside them. `variants` are the kinds of checkpoint that do it, and `system`
    whose system prompt it has, where that does not follow from the media. `clean` returns the latent frames that are
    taken from the input instead of noise, ascending; with `chooses_frames` a request says which. `chunks` says in which
    chunks a request is made, and `of_chunk` returns the request for one of them, by its number.
    """

    name: str
    title: str
    result: str
    suffix: str
    aspect: str
    single: bool
    latents: tuple[str, ...]
    input: str | None = None
    takes: tuple[str, ...] = ()
    source: str | None = None
    sounding: bool = False
    beside: str | None = None
    tables: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    chooses_frames: bool = False
    variants: tuple[str, ...] = FULL
    system: str | None = None
    clean: Callable[[Conditions], tuple[int, ...]] = _none
    chunks: Callable[[Any], Chunks] = _at_once
    of_chunk: Callable[[Any, int], Any] = _whole

    @property
    def chunked(self) -> bool:
        """Whether it is made in chunks, of which the last is cut to any number of frames."""
        return bool(self.takes)
