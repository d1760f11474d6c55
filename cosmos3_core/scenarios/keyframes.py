"""Pictures that frames of a clip are made to be, and where in the clip they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from ..spelling import shown


class Keyframe(NamedTuple):
    """The picture `image`, a path, that the pixel frame `frame` is; a negative frame is counted from the end."""

    frame: int
    image: str


def held(frame: int) -> tuple[int, int]:
    """The first and the last pixel frame that show a keyframe: those of its latent frame (docs/model.md, section
    5.1). Frame 0 is alone."""
    last = -(-frame // TEMPORAL_COMPRESSION) * TEMPORAL_COMPRESSION
    return max(0, last - TEMPORAL_COMPRESSION + 1), last


def placed(keyframes: Sequence[Keyframe], frames: int) -> tuple[Keyframe, ...]:
    """The keyframes of a clip of so many frames, in their order, counted from its beginning. Raises InputError for one
    that lies outside, and for two that share a latent frame."""
    found: dict[int, Keyframe] = {}
    for one in keyframes:
        at = one.frame + frames if one.frame < 0 else one.frame
        if not 0 <= at < frames:
            next_step = f"Use indices from 0 to {frames - 1}, or ask for more `frames`"
            raise InputError(f"keyframe {one.frame}={shown(one.image)}", f"the clip has {frames} frames", next_step)
        first, last = held(at)
        if other := found.get(last):
            said = f"frames {first} to {last} are one latent frame, which holds one picture" if last else "they are one"
            raise InputError(f"keyframes {other.frame} and {one.frame}", said, "Drop one, or move it")
        found[last] = Keyframe(at, one.image)
    return tuple(found[last] for last in sorted(found))
