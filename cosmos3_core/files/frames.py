"""What a frame is, a uint8 sRGB array [H, W, 3], what reading some of them comes to, and what their writers have in
common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..contract import RunError

if TYPE_CHECKING:
    import numpy as np

FLAT_RANGE = 2
"""Levels of 255 between the darkest and the brightest pixel, up to which a frame counts as one flat colour."""


@dataclass(frozen=True)
class Reading:
    """What was read: `frames` as uint8 sRGB [F, H, W, 3], upright and with square pixels. `facts` are JSON: what was
    found, what was assumed and what was changed. `notes` are sentences on what a user would see changed. `fps` is a
    clip's own number of frames per second, and None for a picture."""

    frames: np.ndarray
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    fps: float | None = None


def check_frame(frame: np.ndarray) -> None:
    """Raises ValueError for an array that is no frame."""
    import numpy as np

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame is uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")


def is_flat(frame: np.ndarray) -> bool:
    """Whether the frame shows one colour, but for rounding."""
    from PIL import Image

    channels = cast(tuple[tuple[float, float], ...], Image.fromarray(frame).getextrema())
    return all(high - low <= FLAT_RANGE for low, high in channels)


def flat_error(path: Path) -> RunError:
    """The error of an output that shows nothing."""
    return RunError(
        f"writing {path}",
        "every frame is one flat colour, which a working model does not produce; nothing was written",
        "Check the weights (they may be damaged or belong to another model) and try another `seed`",
    )


def read_back_error(path: Path, found: str) -> RunError:
    """The error of an output that was written and is not whole."""
    return RunError(
        f"writing {path}",
        f"the finished file does not read back as what was written ({found}), so it was deleted",
        "Check the disk; if it is sound, reinstall the encoder: pip install --force-reinstall av pillow",
    )
