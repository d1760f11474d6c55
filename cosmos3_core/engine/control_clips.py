"""The control clips of a request, read chunk by chunk: a long clip is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contract import InputError
from ..files.digests import sha256_file
from ..files.frames import Reading
from ..files.memory import Media
from ..files.video import length_of, read_video
from ..model.config import TEMPORAL_COMPRESSION
from ..scenarios.controls import bounced, derived, opencv
from ..scenarios.faults import about
from ..scenarios.request import Request
from ..scenarios.transfer import AUTO
from .fitting import fitted, fitting_notes

Given = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Controlled:
    """What controls bring to a request's inputs, as `Inputs` has it."""

    given: Given
    following: Callable[[int, Tensor, Mapping[str, Tensor]], Given]
    notes: tuple[str, ...]
    facts: dict[str, Any]
    beside: Callable[[int], Tensor] | None


@dataclass(frozen=True)
class Clip:
    """A clip of a request's field `name`: a file, or what a program handed over; and how many of its frames there are,
    up to those that are wanted."""

    name: str
    path: Path
    media: Media | None
    length: int

    def read(self, request: Request, first: int, count: int) -> Reading:
        """`count` frames from the one of this number on."""
        fps = _rate(request)
        if self.media is None:
            return read_video(self.path, count, "first", fps, first)
        reading = self.media.read(first + count, "first", fps)
        return replace(reading, frames=reading.frames[first:])

    @property
    def sha256(self) -> str:
        return self.media.sha256 if self.media else sha256_file(self.path)


def read_controls(request: Request, media: Mapping[str, Media]) -> Controlled:
    """What a request with controls is conditioned on, of files and of `media` by field: each control and, of the clip
    that is made, the frames that its first chunk begins with. Reads no more than that chunk. Raises InputError for what
    is unusable."""
    clips, facts, notes = {}, {}, []
    for name in _sources(request):
        with about(name):
            clips[name] = clip = _clip(request, name, media.get(name))
            reading = clip.read(request, 0, 1)
            facts[name] = reading.facts | {"sha256": clip.sha256}
            notes += [f"{name}: {note}" for note in fitting_notes(request, name, reading)]
    notes += [*_lengths(request, clips)]
    for hint in request.controls:
        if getattr(request, hint) == AUTO:
            opencv(hint)
    begun = None
    if request.first_frames:
        with about("video"):
            begun = _first(request, clips["video"])
    given = partial(_given, request, clips)
    beside = partial(_beside, request, clips) if request.show_controls or request.show_input else None
    return Controlled(given(0, begun), given, tuple(dict.fromkeys(notes)), facts, beside)


def _rate(request: Request) -> float | None:
    return request.fps if request.video_fps == "resample" else None


def _sources(request: Request) -> list[str]:
    """The fields whose clips are read."""
    own = [hint for hint in request.controls if getattr(request, hint) != AUTO]
    return own if request.video is None else ["video", *own]


def _clip(request: Request, name: str, media: Media | None) -> Clip:
    path, most, fps = Path(getattr(request, name)), request.chunks.total, _rate(request)
    if media is not None:
        return Clip(name, path, media, len(media.read(most, "first", fps).frames))
    return Clip(name, path, None, length_of(path, most, fps)[0])


def _lengths(request: Request, clips: dict[str, Clip]) -> list[str]:
    """Notes on clips that go back and forth. Raises InputError where the first of them, which says how long the output
    can be, is too short for it. A picture lasts as long as it is needed."""
    notes: list[str] = []
    wanted, first = request.frames, True
    for hint in request.controls:
        clip = clips["video" if getattr(request, hint) == AUTO else hint]
        if clip.length == 1:
            continue
        if clip.length < wanted and first:
            found = f"its {hint} control has {clip.length}"
            raise InputError(f"{wanted} frames", found, f"Use frames {clip.length}, or a longer clip", "frames")
        if clip.length < wanted:
            notes.append(f"the {hint} control has {clip.length} of {wanted} frames, and goes back and forth")
        first = False
    return notes


def _first(request: Request, clip: Clip) -> Tensor:
    if clip.length < request.first_frames:
        found = f"the clip has {clip.length} frames"
        raise InputError(f"first_frames = {request.first_frames}", found, f"Use {clip.length} or fewer", "first_frames")
    return fitted(request, clip.read(request, 0, request.first_frames))


def _given(
    request: Request,
    clips: dict[str, Clip],
    index: int,
    begun: Tensor | None,
    before: Mapping[str, Tensor] | None = None,
) -> Given:
    """What a chunk's items are conditioned on: the controls, and the clip that is made, which begins with the frames
    `begun`."""
    seen: dict[str, Tensor] = {}
    controls = [_control(request, clips, seen, hint, index) for hint in request.controls]
    if begun is not None and begun.shape[1]:
        whole = (begun.shape[1] - 1) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1
        return (*controls, begun[:, :whole])
    return (*controls, None)


def _control(request: Request, clips: dict[str, Clip], seen: dict[str, Tensor], hint: str, index: int) -> Tensor:
    """A control's frames of one chunk, fp32 [3, F, H, W] in [-1, 1]. `seen` keeps those of the clips that were read."""
    made = getattr(request, hint) == AUTO
    first, pixels, wanted = _frames(request, clips["video" if made else hint], seen, index)
    if made:
        preset: Any = getattr(request, f"{hint}_preset")
        pixels = derived(hint, pixels, preset)
    return pixels[:, [frame - first for frame in wanted]]


def _frames(request: Request, clip: Clip, seen: dict[str, Tensor], index: int) -> tuple[int, Tensor, list[int]]:
    """The number of the first frame of a clip that a chunk takes, all frames from there on that it takes, and which of
    the clip's are the chunk's, one after the other."""
    chunks = request.chunks
    start = chunks.start(index)
    whole = bounced(list(range(clip.length)), chunks.total)[start : start + chunks.frames]
    first, last = min(whole), max(whole)
    if clip.name not in seen:
        seen[clip.name] = fitted(request, clip.read(request, first, last + 1 - first))
    return first, seen[clip.name], bounced(whole, chunks.frames)


def _beside(request: Request, clips: dict[str, Clip], index: int) -> Tensor:
    """What is shown left of a chunk's frames, uint8 [F, H, W, 3]: the input clip, then the controls, in the order of
    NVIDIA's framework and sglang."""
    seen: dict[str, Tensor] = {}
    parts = []
    if request.show_input:
        first, pixels, wanted = _frames(request, clips["video"], seen, index)
        parts.append(pixels[:, [frame - first for frame in wanted]])
    if request.show_controls:
        parts += [_control(request, clips, seen, hint, index) for hint in request.controls]
    shown = (torch.cat(parts, dim=3) + 1) * 127.5
    return shown.round().to(torch.uint8).permute(1, 2, 3, 0)
