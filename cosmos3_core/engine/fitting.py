"""Pictures and clips that were read, fitted to the size of the output, and what that changed, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..files.frames import Reading
from ..files.timing import same_rate
from ..scenarios.canvas import placed
from ..scenarios.conditioning import fit, kept
from ..scenarios.request import Request
from ..scenarios.sizes import keeping

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
        stretch=_stretches(request),
    )


def fitting_notes(request: Request, name: str, reading: Reading) -> Iterator[str]:
    """What reading and fitting the picture or clip of a field changed."""
    yield from reading.notes
    yield from _pace(request, reading)
    yield from _loss(request, "picture" if name == "image" else "clip", reading)


def _stretches(request: Request) -> bool:
    return request.image is None and request.video_fit == "stretch"


def _pace(request: Request, reading: Reading) -> Iterator[str]:
    """What becomes of a clip's own frame rate, in a sentence where it is another than the request's."""
    own, fps = reading.fps, request.fps
    if own is None or same_rate(own, fps):
        return
    if request.video_fps == "resample":
        yield f"the clip's {own:g} frames a second were resampled to {fps:g} (video_fps keep takes them one by one)"
        return
    pace = f"{own / fps:.2g} times slower" if own > fps else f"{fps / own:.2g} times faster"
    yield f"the clip's {own:g} frames a second are shown at {fps:g}: {pace} (fps {own:g} keeps its pace)"


def _loss(request: Request, what: str, reading: Reading) -> Iterator[str]:
    """What an input loses to the size, in a sentence where it is much of it; and the size that keeps most."""
    if request.canvas:  # which crops less than 16 pixels
        return
    source, size = (reading.frames.shape[2], reading.frames.shape[1]), (request.width, request.height)
    if (lost := 1 - kept(source, size)) < MUCH:
        return
    done = f"is stretched by {1 / (1 - lost) - 1:.0%}" if _stretches(request) else f"loses {lost:.0%} of itself"
    better = keeping(source, size)
    advice = f": size {better[0]}x{better[1]} loses {1 - kept(source, better):.0%}" if better != size else ""
    yield f"the {what} of {source[0]}x{source[1]} {done} to the size {size[0]}x{size[1]}{advice}"
