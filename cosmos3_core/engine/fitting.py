"""Pictures and clips that were read, fitted to the size of the output, and what that changed, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..files.frames import Reading
from ..files.memory import PICTURES
from ..files.timing import same_rate
from ..scenarios.canvas import placed
from ..scenarios.conditioning import fit, kept
from ..scenarios.families import TASKS
from ..scenarios.request import Request
from ..scenarios.sizes import keeping, longest_side

MUCH = 0.05
"""Share of a picture whose loss is worth a note."""


def fitted(request: Request, reading: Reading) -> Tensor:
    """fp32 [3, F, H, W] in [-1, 1], of whole pixel values; with actions the whole canvas."""
    frames = torch.from_numpy(reading.frames)
    if request.canvas:
        return placed(frames, request.canvas, request.image_filter)
    return fit(
        frames,
        request.width,
        request.height,
        image_filter=request.image_filter,
        stretch=_stretches(request, _size(reading)),
    )


def fitting_notes(request: Request, name: str, reading: Reading) -> Iterator[str]:
    """What reading and fitting the picture or clip of a field, or of a part of one, changed."""
    field, _, which = name.partition(".")
    what = "picture" if field in PICTURES else "clip"
    for note in (*reading.notes, *_pace(request, reading), *_loss(request, what, reading)):
        yield f"{field} {which}: {note}" if which else note


def _size(reading: Reading) -> tuple[int, int]:
    """Width and height."""
    return reading.frames.shape[2], reading.frames.shape[1]


def _stretches(request: Request, source: tuple[int, int]) -> bool:
    """Whether an input is resized without regard to its aspect. One that is edited is where the size is what became of
    its own by rounding, so that nothing of it is lost; as in NVIDIA's framework."""
    task, size = TASKS[request.task], (request.width, request.height)
    if task.beside:
        return size == longest_side(source, max(size))
    return task.source != "picture" and request.video_fit == "stretch"


def _pace(request: Request, reading: Reading) -> Iterator[str]:
    """What becomes of a clip's own frame rate, in a sentence where it is another than the request's."""
    own, fps = reading.fps, request.fps
    if own is None or same_rate(own, fps):
        return
    if request.video_fps == "resample":
        yield f"the clip's {own:g} frames a second were resampled to {fps:g} (video_fps keep takes them one by one)"
        return
    pace = f"{_times(own / fps)} slower" if own > fps else f"{_times(fps / own)} faster"
    yield f"the clip's {own:g} frames a second are shown at {fps:g}: {pace} (fps {own:g} keeps its pace)"


def _times(ratio: float) -> str:
    """A ratio above 1, as "2.5 times" or, of a small one, "4.2 %"."""
    if ratio < 1.5:
        return f"{100 * (ratio - 1):.2g} %"
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:,.0f} times"


def _loss(request: Request, what: str, reading: Reading) -> Iterator[str]:
    """What an input loses to the size, in a sentence where it is much of it; and the size that keeps most."""
    if request.canvas:  # which crops less than 16 pixels
        return
    source, size = _size(reading), (request.width, request.height)
    if (lost := 1 - kept(source, size)) < MUCH:
        return
    done = f"is stretched by {1 / (1 - lost) - 1:.0%}" if _stretches(request, source) else f"loses {lost:.0%} of itself"
    better = keeping(source, size)
    advice = f": size {better[0]}x{better[1]} loses {1 - kept(source, better):.0%}" if better != size else ""
    yield f"the {what} of {source[0]}x{source[1]} {done} to the size {size[0]}x{size[1]}{advice}"
