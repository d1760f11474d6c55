"""Pictures and clips that a program hands over instead of a file: bytes, PIL images, numpy arrays, torch tensors.

What a value may be, as pixels of one picture:

    bytes, bytearray, memoryview    a whole file: PNG, JPEG, WebP ...
    PIL image                       any mode that a file may have, with its EXIF orientation
    numpy array, torch tensor       [H, W, C] or [C, H, W], C = 1, 3 or 4, or grey [H, W]; uint8, or floats in [0, 1]

A clip is the bytes of a whole file, a list of such pictures of one size, or an array or tensor [F, H, W, C] or
[F, C, H, W]. Colours and orientation are as in files: `images.decoded` has the rule for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..contract import InputError
from .frames import Reading
from .images import decoded, read_image
from .sources import SAID
from .video import play_video, read_video

CHANNELS = (1, 3, 4)
"""Of an array: grey, RGB, or RGB with transparency."""
PICTURES = ("image", "keyframe")
"""Fields that hold a picture, or several; all others hold a clip."""
PICTURE = "Give a path, the bytes of a picture file, a PIL image, or an array or tensor [H, W, 3]"
CLIP = "Give a path, the bytes of a clip, a list of pictures, or an array or tensor [F, H, W, 3]"


@dataclass(frozen=True)
class Media:
    """A picture or clip of a request's `field`, or of a part of it, such as keyframe.188. `what` it was handed over as,
    in words, and the SHA-256 of its upright RGB pixels, or of the bytes of a clip's file. `read` takes how many frames
    are wanted, whether the "first" or the "last", and how many frames a second (None: as they come), and returns up to
    so many; it raises InputError for a clip that cannot be decoded. Only the bytes of a clip's file have a frame
    rate. `play` takes that rate, and gives all frames one by one, uint8 [H, W, 3]."""

    field: str
    what: str
    sha256: str
    read: Callable[[int, str, float | None], Reading]
    play: Callable[[float | None], Iterator[np.ndarray]]

    @property
    def said(self) -> str:
        """What the request's field holds in its place."""
        return f"memory: {self.what}, sha256 {self.sha256}"

    @classmethod
    def of(cls, field: str, value: Any) -> Media:
        """What was handed over as `field`. The pixels are copied: the value may change afterwards. Raises InputError
        for what is no picture or no clip."""
        if _moves(field) and isinstance(value, bytes | bytearray | memoryview):
            data = bytes(value)
            _, height, width, _ = read_video(data, 1, "first").frames.shape
            sha256 = hashlib.sha256(data).hexdigest()
            what, play = f"{_called(value)}, {width}x{height}", partial(play_video, data)
            return cls(field, what, sha256, partial(read_video, data), play)
        reading = _clip(field, value) if _moves(field) else _picture(field, value)
        count, height, width, _ = reading.frames.shape
        sha256 = hashlib.sha256(f"{count}x{height}x{width}:".encode() + reading.frames.tobytes()).hexdigest()

        def read(count: int, keep: str, fps: float | None) -> Reading:
            return replace(reading, frames=reading.frames[:count] if keep == "first" else reading.frames[-count:])

        return cls(field, f"{_called(value)}, {width}x{height}", sha256, read, lambda fps: iter(reading.frames))


def check_same(field: str, name: str | None, media: Media | None) -> None:
    """InputError unless what was handed over is what the request's `field` says; `media` None for nothing."""
    said, of = SAID.fullmatch(name or ""), field.partition(".")[0]
    if media is None:
        if said:
            raise InputError(
                f"`{field}` {name}",
                "a Python program handed it over in memory, so no file has it",
                f"Hand the same one over again in Python, or start a run with a file as `{field}`",
                of,
            )
        return
    if not said:
        found = f"the request's {field} is {name!r}"
        raise InputError(f"`{field}` handed over as {media.said}", found, "Drop one of them", of)
    if media.sha256 != said[3]:
        found = f"the request was made for another one: {name}"
        raise InputError(f"`{field}` handed over as {media.said}", found, "Hand over the same one as before", of)


def _refusal(field: str, value: Any, found: str, next_step: str) -> InputError:
    return InputError(f"`{field}` handed over as {_called(value)}", found, next_step, field.partition(".")[0])


def _moves(field: str) -> bool:
    return field.partition(".")[0] not in PICTURES


def _taken(field: str) -> str:
    return CLIP if _moves(field) else PICTURE


def _called(value: Any) -> str:
    """A value in words, without its pixels."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{memoryview(value).nbytes} bytes"
    if isinstance(value, Image.Image):
        return f"PIL image {value.mode}"
    if isinstance(value, np.ndarray):
        return f"numpy array {value.dtype} {list(value.shape)}"
    if isinstance(value, torch.Tensor):
        return f"torch tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a value of type {type(value).__name__}"


def _picture(field: str, value: Any) -> Reading:
    """One frame."""
    if isinstance(value, bytes | bytearray | memoryview):
        return read_image(bytes(value))
    if isinstance(value, np.ndarray | torch.Tensor):
        frame = _bytes(field, value)
        if frame.ndim == 2:
            frame = frame[..., None]
        if frame.ndim != 3:
            next_step = _taken(field) + (", such as x[0]" if frame.ndim == 4 else "")
            raise _refusal(field, value, f"a picture has 2 or 3 axes, not {frame.ndim}", next_step)
        return _rgb(_channels_last(field, value, frame))
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise _refusal(field, value, "it is empty", _taken(field))
        try:
            return decoded(value)
        except Exception as error:  # as for files: Pillow reads an opened one only now
            raise _refusal(field, value, f"the picture cannot be read ({error})", _taken(field)) from None
    raise _refusal(field, value, f"that is no {'clip' if _moves(field) else 'picture'}", _taken(field))


def _clip(field: str, value: Any) -> Reading:
    if isinstance(value, list | tuple):
        return _stacked(field, [_picture(field, frame) for frame in value], value)
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise _refusal(field, value, "that is no clip", CLIP)
    frames = _bytes(field, value)
    if frames.ndim != 4:
        raise _refusal(field, value, f"a clip has 4 axes, not {frames.ndim}", CLIP)
    return _stacked(field, [_rgb(frame) for frame in _channels_last(field, value, frames)], value)


def _stacked(field: str, pictures: Sequence[Reading], value: Any) -> Reading:
    """One clip, with the facts of its first frame and the notes of all."""
    sizes = {picture.frames.shape[2:0:-1] for picture in pictures}
    if len(sizes) != 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sorted(sizes)[:2])
        found = f"its frames are of different sizes, {listed}" if sizes else "it has no frames"
        raise _refusal(field, value, found, "Give frames of one size")
    notes = tuple(dict.fromkeys(note for picture in pictures for note in picture.notes))
    return Reading(np.concatenate([picture.frames for picture in pictures]), pictures[0].facts, notes)


def _bytes(field: str, value: np.ndarray | torch.Tensor) -> np.ndarray:
    """The same shape as uint8; floats from 0 to 1 become 0 to 255, rounded."""
    if isinstance(value, torch.Tensor):
        try:
            plain = value.detach().cpu()
            array = plain.float().numpy() if plain.is_floating_point() else plain.numpy()
        except (RuntimeError, TypeError) as error:  # of no memory, or of a layout that numpy has not
            found = f"it is {value.layout} on {value.device}, and cannot be read ({error})".partition("\n")[0]
            raise _refusal(field, value, found, f"{_taken(field)}, dense and on a device") from None
    else:
        array = value
    if not array.size:
        raise _refusal(field, value, "it is empty", _taken(field))
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        found = f"its values are {array.dtype}"
        raise _refusal(field, value, found, "Give uint8 from 0 to 255, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _refusal(field, value, "it holds NaN or infinity", "Give finite values from 0 to 1")
    if low < 0 or high > 1:
        next_step = "Give floats from 0 to 1, or uint8 from 0 to 255"
        if -1 <= low < 0 and high <= 1:
            next_step = "Values in [-1, 1] are the VAE's: give (x + 1) / 2"
        raise _refusal(field, value, f"its values go from {low:.3g} to {high:.3g}", next_step)
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def _channels_last(field: str, value: Any, array: np.ndarray) -> np.ndarray:
    """[..., C, H, W] as [..., H, W, C]."""
    last, first = array.shape[-1] in CHANNELS, array.shape[-3] in CHANNELS
    if last and first:
        found = f"{list(array.shape[-3:])} could be [H, W, C] and [C, H, W]"
        raise _refusal(field, value, found, "Give a PIL image, which says so, or a larger picture")
    if not (last or first):
        raise _refusal(field, value, "none of its axes can be the channels: those are 1, 3 or 4", _taken(field))
    return array if last else np.moveaxis(array, -3, -1)


def _rgb(frame: np.ndarray) -> Reading:
    """[H, W, C] by the rule of files."""
    return decoded(Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[2] == 1 else frame)))
