"""Which frame of a clip is on the screen when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import av

Frame = TypeVar("Frame")

SAME_RATE = 0.002
"""Of a rate, within which another is taken for it: 23.976 for 24. The clip is then a thousandth faster or slower."""
UNEVEN = 0.5
"""Of the time between two frames; files that round to milliseconds stay below it, up to some 400 frames a second."""
SLACK = 0.0006
"""Seconds by which a frame may come late: many files round their times to milliseconds."""


@dataclass(frozen=True)
class Shown(Generic[Frame]):
    """A frame and the seconds between which it is on the screen."""

    frame: Frame
    start: float
    end: float


def same_rate(rate: float, fps: float) -> bool:
    """Whether a clip of `rate` frames per second can be played at `fps` frame by frame."""
    return abs(rate - fps) <= SAME_RATE * fps


def timed(frames: Iterable[av.VideoFrame], rate: float) -> Iterator[Shown[av.VideoFrame]]:
    """Each frame with its time, from 0 on and never back; by `rate` where it does not say."""
    origin, start = None, 0.0
    for index, frame in enumerate(frames):
        time = index / rate if frame.time is None else frame.time
        origin = time if origin is None else origin
        start = max(start, time - origin)
        lasting = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / rate
        yield Shown(frame, start, start + lasting)


def watched(shown: Iterable[Shown[Frame]], rate: float, notes: list[str], resampling: bool) -> Iterator[Shown[Frame]]:
    """The same frames. The first that comes more than `UNEVEN` of a frame's time early or late puts a sentence into
    `notes`."""
    before: float | None = None
    even = True
    for one in shown:
        if even and before is not None and abs((one.start - before) * rate - 1) > UNEVEN:
            even = False
            what = "each is taken for as long as it is shown" if resampling else "they are taken one by one"
            notes.append(f"the clip's frames do not come evenly, {rate:g} a second on the whole: {what}")
        before = one.start
        yield one


def resampled(shown: Iterable[Shown[Frame]], fps: float, rate: float, limit: int) -> Iterator[Shown[Frame]]:
    """`fps` frames per second: at each new time the one that is on the screen, which stays there until the next. `rate`
    is the clip's own. One that stays for more than `limit` new frames is handed out `limit` times, as nobody wants more
    of them."""
    pace = rate / fps if same_rate(rate, fps) else 1.0
    held, count = None, 0
    for one in shown:
        if held is not None:
            due = _due(one.start * pace, fps)
            yield from [held] * min(due - count, limit)
            count = max(count, due)
        held = one
    if held is not None:
        yield from [held] * min(_due(held.end * pace, fps) - count, limit)


def _due(time: float, fps: float) -> int:
    """How many new frames are shown before this second."""
    return max(0, -int(-(time - SLACK) * fps // 1))
