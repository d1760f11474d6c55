"""Contact sheets: frames of a clip in a grid, each over its number and its time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MOST = 16
"""Frames on a sheet."""
COLUMNS = 4
SIDE = 320
"""Pixels of a frame's longer side, at most: it is scaled down and never up."""
GAP = 8
PAPER, INK = (255, 255, 255), (40, 40, 40)


class Sheet:
    """The sheet of a clip of so many frames a second, whose length need not be known before: of every frame that passes
    through `watching` it keeps as few as it needs, small."""

    def __init__(self, fps: float):
        self._fps, self._count = fps, 0
        self._kept: dict[int, Image.Image] = {}
        self._last: np.ndarray | None = None

    def watching(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, uint8 [H, W, 3] each, as they come. Begins anew each time."""
        self._kept, stride = {}, 1
        for index, frame in enumerate(frames):
            if index % stride == 0:
                self._kept[index] = _small(frame)
            if len(self._kept) > 4 * MOST:
                stride *= 2
                self._kept = {index: one for index, one in self._kept.items() if index % stride == 0}
            self._count, self._last = index + 1, frame
            yield frame

    def chosen(self) -> dict[int, Image.Image]:
        """Up to `MOST` frames by number, evenly spaced, the first and the last among them."""
        if self._last is None:
            return {}
        found, last = {**self._kept, self._count - 1: _small(self._last)}, self._count - 1
        steps = min(MOST, self._count) - 1
        wanted = [round(i * last / steps) for i in range(steps + 1)] if steps else [0]
        nearest = {min(found, key=lambda index: abs(index - one)) for one in wanted}
        return {index: found[index] for index in sorted(nearest)}

    def drawn(self) -> np.ndarray:
        """The sheet of what has passed: uint8 [H, W, 3]."""
        import numpy as np
        from PIL import Image, ImageDraw, ImageFont

        font, frames = ImageFont.load_default(), self.chosen()
        labels = {index: f"frame {index}, {index / self._fps:.2f} s" for index in frames}
        below = 2 * GAP + max(int(font.getbbox(label)[3]) for label in labels.values())
        width = max(max(one.width for one in frames.values()), *(int(font.getlength(one)) for one in labels.values()))
        height = max(one.height for one in frames.values()) + below
        across = min(COLUMNS, len(frames))
        down = -(-len(frames) // across)
        sheet = Image.new("RGB", (across * (width + GAP) + GAP, down * height + GAP), PAPER)
        draw = ImageDraw.Draw(sheet)
        for place, (index, one) in enumerate(frames.items()):
            x, y = GAP + place % across * (width + GAP), GAP + place // across * height
            sheet.paste(one, (x, y))
            draw.text((x, y + one.height + GAP // 2), labels[index], fill=INK, font=font)
        return np.asarray(sheet)


def _small(frame: np.ndarray) -> Image.Image:
    from PIL import Image

    picture = Image.fromarray(frame)
    scale = min(1.0, SIDE / max(picture.size))
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.copy() if scale == 1 else picture.resize((width, height), Image.Resampling.BOX)
