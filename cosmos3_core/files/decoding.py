"""A decoded frame of a clip as a player shows it: turned upright, with square pixels, in sRGB."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from .colour import TRANSFERS, WIDE, to_srgb, told
from .sources import called

if TYPE_CHECKING:
    import av
    import numpy as np

BT709, UNTAGGED = 1, 2
MATRICES = {BT709: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"}
"""Of YCbCr to RGB, by H.273's code points: what swscale has."""
BT601 = 6
PLAIN_TRANSFERS = (1, UNTAGGED, 4, 5, 6, 7, 11, 13, 14, 15, 0, 3)
"""Of SDR, which players show alike, and no more than reserved numbers."""
PRIMARIES = {1: "BT.709", 4: "BT.470 M", 5: "BT.601 625", 6: "BT.601 525", 7: "SMPTE 240M", 8: "film"}
PRIMARIES |= {10: "XYZ", 22: "EBU 3213"} | WIDE
"""By H.273's code points."""
SKEW = 0.02
"""Of a frame's side, by which a display matrix may miss a turn by quarters."""
STRETCH = 8
"""Times that a pixel may be wider than high, or higher than wide; what says more is damaged."""


class Shower:
    """Makes arrays of a clip's frames, and collects what it finds: `facts` and `notes`. `aspect` is a pixel's width by
    its height, as the container has it."""

    def __init__(self, source: Path | bytes, aspect: Fraction | None):
        self.source, self.facts, self.notes = source, dict[str, Any](), list[str]()
        self.aspect = aspect if aspect and aspect > 0 else Fraction(1)
        if not 1 / STRETCH <= self.aspect <= STRETCH:
            self.notes.append(f"the clip says that its pixels are {self.aspect} times as wide as high: not followed")
            self.aspect = Fraction(1)

    def show(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 sRGB [H, W, 3]. Raises InputError for colours that there is no conversion of."""
        import numpy as np

        first = "pixels" not in self.facts
        facts = self._colours(frame)
        transfer, primaries = frame.color_trc, frame.color_primaries
        deep = transfer in TRANSFERS or primaries in WIDE
        clear = any(component.is_alpha for component in frame.format.components)
        layout = "rgb48le" if deep else "rgba" if clear else "rgb24"
        array = frame.to_ndarray(format=layout, **self._size(frame), **_swscale(frame))
        self._tell_of(frame)
        if deep:
            array = to_srgb(_whole(array, frame), transfer, primaries)
        elif clear:
            if array[..., 3].min() < 255:
                self._note("the clip's transparent parts are put on white")
            array = _on_white(array)
        facts["transform"], array = _upright(frame, array)
        if first:
            self.facts |= {"width": frame.width, "height": frame.height, "pixel_aspect": str(self.aspect)} | facts
            self._tell(frame)
        return np.ascontiguousarray(array)

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _tell_of(self, frame: av.VideoFrame) -> None:
        """What may be of any frame, and not only of the first."""
        if frame.is_corrupt:
            self._note("the clip is damaged: parts of its frames are what the decoder put in their place")
        if _is_skewed(frame):
            self._note("the clip is to be turned by no quarter, or skewed: it is taken at the nearest quarter")

    def _size(self, frame: av.VideoFrame) -> dict[str, Any]:
        """With square pixels, and no row or column fewer."""
        if self.aspect >= 1:
            return {"width": round(frame.width * self.aspect), "height": frame.height}
        return {"width": frame.width, "height": round(frame.height / self.aspect)}

    def _colours(self, frame: av.VideoFrame) -> dict[str, Any]:
        matrix, transfer, primaries = frame.colorspace, frame.color_trc, frame.color_primaries
        if not frame.format.is_rgb and matrix not in (*MATRICES, UNTAGGED, 0, 3):
            found = f"its colours are coded by a matrix (number {matrix} of H.273) that cannot be undone here"
            raise InputError(f"reading {called(self.source)}", found, "Convert it to BT.709 first")
        if transfer not in (*TRANSFERS, *PLAIN_TRANSFERS):
            found = f"its colours follow a curve (number {transfer} of H.273) that cannot be undone here"
            raise InputError(f"reading {called(self.source)}", found, "Convert it to BT.709 first")
        name = "RGB" if frame.format.is_rgb else MATRICES[_matrix(frame)]
        return {
            "pixels": frame.format.name,
            "matrix": name if matrix in MATRICES or name == "RGB" else f"{name} (assumed by its size)",
            "range": "full" if _is_full(frame) else "limited",
            "transfer": TRANSFERS.get(transfer, "SDR"),
            "primaries": PRIMARIES.get(primaries, "BT.709 (assumed)"),
        }

    def _tell(self, frame: av.VideoFrame) -> None:
        if frame.color_trc in TRANSFERS or frame.color_primaries in WIDE:
            self.notes.append(told("clip", frame.color_trc, frame.color_primaries))
        if self.aspect != 1:
            self.notes.append(f"the clip's pixels are {self.aspect} times as wide as high: scaled to square ones")
        if frame.interlaced_frame:
            self.notes.append("the clip is interlaced: its frames are taken as they are, with both fields")


def _is_full(frame: av.VideoFrame) -> bool:
    """Whether black is 0; swscale takes untagged grey so."""
    grey = frame.format.name.startswith("gray") and frame.color_range == 0
    return grey or frame.format.is_rgb or frame.color_range == 2


def _matrix(frame: av.VideoFrame) -> int:
    """The matrix of YCbCr to RGB. Untagged, high definition is BT.709 and less is BT.601, as players have it."""
    if frame.colorspace in MATRICES:
        return frame.colorspace
    return BT709 if frame.height >= 720 or frame.width >= 1280 else BT601


def _swscale(frame: av.VideoFrame) -> dict[str, Any]:
    from av.video.reformatter import ColorRange, Colorspace

    names = {4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601, 7: Colorspace.SMPTE240M}
    names |= {BT709: Colorspace.ITU709, 9: Colorspace.BT2020}
    source = {} if frame.format.is_rgb else {"src_colorspace": names[_matrix(frame)]}
    return {"interpolation": scaler(), "dst_color_range": ColorRange.JPEG} | source


def scaler() -> int:
    """How swscale is to work."""
    from av.video.reformatter import Interpolation

    # The default takes a shortcut through the chroma planes that costs about 2 dB.
    return Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


def _whole(rgb: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """16-bit values over their full range: swscale makes 255 x 256 of white, where it comes from YCbCr."""
    import numpy as np

    if frame.format.is_rgb:
        return rgb
    return (rgb * np.float32(65535 / 65280) + 0.5).clip(0, 65535).astype(np.uint16)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(rgba)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))


def _display_matrix(frame: av.VideoFrame) -> Any:
    """Its nine numbers as PyAV has them, if there are any. PyAV fails on a frame with data of a kind that it does not
    know, and then knows the rotation only."""
    try:
        return frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        return None


def _is_skewed(frame: av.VideoFrame) -> bool:
    """Whether the display matrix does more than to mirror a frame, to turn it by quarters and to scale it."""
    if (data := _display_matrix(frame)) is None:
        return False
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(data))
    straight, turned = sorted((max(abs(a), abs(d)), max(abs(b), abs(c))), reverse=True)
    return turned > SKEW * straight or min(abs(a), abs(d)) == 0 == min(abs(b), abs(c))


def _upright(frame: av.VideoFrame, array: np.ndarray) -> tuple[str, np.ndarray]:
    """What the display matrix does to a frame, in words, and the frame after it: mirrored, and turned by the nearest
    quarter. The matrix takes (x, y) to (a x + c y, b x + d y)."""
    import numpy as np

    data = _display_matrix(frame)
    if data is None:
        turned = round(frame.rotation / 90) % 4
        return (f"turned by {90 * turned} degrees" if turned else "none"), np.rot90(array, turned)
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(data))
    done = []
    if abs(b) + abs(c) > abs(a) + abs(d):
        array, a, d = array.swapaxes(0, 1), c, b
        done.append("transposed")
    if a < 0:
        array = array[:, ::-1]
        done.append("mirrored left to right")
    if d < 0:
        array = array[::-1]
        done.append("mirrored top to bottom")
    return ", ".join(done) or "none", array
