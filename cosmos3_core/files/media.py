"""Pictures and clips, in and out, as uint8 RGB arrays [H, W, 3].

A run costs minutes, so an output is checked twice. Before it, `check_output` finds the reasons a file could not be
written. After it, a writer reads its own file back and only then gives it its final name: a file that carries the
name asked for is whole, plays, and shows what the model made.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..contract import InputError, RunError

if TYPE_CHECKING:
    import av
    import numpy as np

IMAGE_SUFFIXES = (".png",)
VIDEO_SUFFIXES = (".mp4",)

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MUXER_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_FLAT_RANGE = 2
"""Levels of 255 between the darkest and the brightest pixel, up to which a frame counts as one flat colour."""
_CELL_TOLERANCE = 6
"""Mean difference of two frames' `_cells`, in levels of 255. Measured between a frame and itself from the file: 0.1 for
photo-like frames, 1.7 at worst (each channel 0 or 255 at random, 16 x 16 pixels). Measured between a photo-like frame
and the same one mirrored, green, black or with swapped channels: 19 and more."""

ENCODE_QUEUE = 8
"""Frames that wait for the encoder at most: it takes several at once, after it has looked ahead."""


@dataclass(frozen=True)
class WrittenVideo:
    """What the finished file holds, as read back from it. `fps` in frames per second, `bytes` is the file's size."""

    frames: int
    width: int
    height: int
    fps: float
    codec: str
    profile: str
    pix_fmt: str
    bytes: int


def check_output(path: Path, video: bool) -> None:
    """Raises InputError if a clip (`video`) or a picture cannot be written to `path`: wrong suffix, a folder or device
    in its place, a missing or unwritable folder, or no H.264 encoder. Costs nothing next to loading weights."""
    asked = f"writing {path}"
    kind, suffix = ("clip", VIDEO_SUFFIXES[0]) if video else ("picture", IMAGE_SUFFIXES[0])
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:
        found = f"the name cannot be used ({error.strerror})"
        raise InputError(asked, found, "Choose another name with -o") from error
    if stat.S_ISDIR(mode):
        raise InputError(asked, "it is a folder", f"Pass a file name, such as -o {path / 'out'}{suffix}")
    if path.suffix.lower() != suffix:
        found = f"this run makes a {kind}, which is written as {suffix}"
        raise InputError(asked, found, f"Pass -o {path.with_suffix(suffix)}")
    if not stat.S_ISREG(mode):
        raise InputError(asked, "it exists and is not an ordinary file", "Choose another name with -o")
    check_writable(path)
    if video:
        import av

        try:
            av.codec.Codec("libx264", "w")
        except av.codec.codec.UnknownCodecError:
            raise InputError(
                asked,
                "the installed PyAV has no H.264 encoder (libx264)",
                "Install the wheel that has one: pip install --force-reinstall --only-binary av av",
            ) from None


def check_writable(path: Path) -> None:
    """Raises InputError unless a file called `path` can be made: its folder exists and can be written to."""
    if path.is_dir():
        raise InputError(f"writing {path}", "it is a folder", "Pass the name of a file")
    _reserve(path).unlink()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields an empty hidden file next to `path`, with its suffix, for the block to write; at the end it becomes `path`
    in one step. If the block fails in any way it is deleted, and a file that was at `path` is as it was.

    Raises InputError if the folder cannot be written to or the disk is full (or a quota or size limit is reached).
    """
    temp = _reserve(path)
    try:
        yield temp
        with temp.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException as error:
        written = temp.stat().st_size if temp.exists() else 0
        temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            found = f"the disk is full (needed more than {written / 1e6:.1f} MB: {error.strerror})"
            raise InputError(f"writing {path}", found, "Free space or choose another folder with -o") from error
        raise


def _reserve(path: Path) -> Path:
    # Short, whatever the length of path.name: that one may already be as long as the file system allows.
    temp = path.with_name(f".cosmos3-{secrets.token_hex(4)}{path.suffix}")
    try:
        temp.touch(exist_ok=False)
    except OSError as error:
        if not path.parent.is_dir():
            found = f"there is no folder {path.parent}"
            raise InputError(f"writing {path}", found, "Create it with mkdir -p, or choose another with -o") from None
        found = f"the folder {path.parent} cannot be written to ({error.strerror})"
        raise InputError(f"writing {path}", found, "Choose another folder") from error
    return temp


def read_image(path: Path) -> np.ndarray:
    """The picture as uint8 [H, W, 3], turned upright by its EXIF orientation; transparent parts are put on white, as
    picture viewers show them. Of an animation the first frame; 16-bit grey is scaled to 8 bits.

    Raises InputError if the file cannot be read, is no picture, is broken or is too large to be safe to decode.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):
                # convert() would clip these at 255: a depth map would turn white.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError("its 32-bit values have no known range")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        found = "the file is not a picture Pillow can read"
    except OSError as error:
        found = f"the picture cannot be read ({error.strerror or error})"
    except Exception as error:  # Pillow's readers let anything through on a broken file: SyntaxError, struct.error...
        found = f"the picture cannot be read ({error})"
    raise InputError(f"reading {path}", found, "Pass a whole PNG, JPEG or WebP file")


def read_video(path: Path, count: int, keep: Literal["first", "last"]) -> tuple[np.ndarray, float]:
    """Up to `count` frames from the start or the end of a clip, as uint8 [F, H, W, 3] turned upright, and the clip's
    frames per second. F < `count` if the clip is shorter. Holds `count` frames in memory, however long the clip.

    Pixels are taken as square. A clip that is cut off or damaged gives the frames that decode.
    Raises InputError if the file cannot be read, has no video, or not one frame of it decodes.
    """
    import numpy as np
    from av.stream import Disposition

    with _opened(path) as container:
        # An audio file's cover picture is a video stream as well.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise InputError(f"reading {path}", "the file has no video in it", "Pass a clip, such as an .mp4 file")
        stream = streams[0]
        stream.thread_type = "AUTO"
        decoded = _decoded(container, stream)
        frames = deque(islice(decoded, count) if keep == "first" else decoded, maxlen=count)
        if not frames:
            found = "no frame of it could be decoded"
            raise InputError(f"reading {path}", found, "Pass a whole clip, such as an .mp4 file")
        # A stream may change its size on the way; all frames of the result have the first one's.
        size = {"width": frames[0].width, "height": frames[0].height}
        fps = float(stream.average_rate or stream.guessed_rate)
        return np.stack([_upright(frame, **size) for frame in frames]), fps


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, metadata: dict[str, str]) -> WrittenVideo:
    """Writes frames, each uint8 [H, W, 3] with even H and W, to an .mp4: H.264 High, 4:2:0, BT.709 limited range,
    visually lossless, playable while it downloads. Each frame is encoded as the iterator gives it.

    `fps` near an NTSC rate (23.976, 29.97...) is written as the exact fraction. `metadata` comes back from
    `read_metadata`; the keys `encoder`, `major_brand`, `minor_version` and `compatible_brands` belong to the muxer.

    Raises InputError if the disk is full or the folder cannot be written to, and RunError if every frame is one flat
    colour or the finished file does not read back as what was written. What the iterator raises passes through. In
    all these cases nothing is left behind and an older file at `path` is untouched.
    """
    import av

    rate = _exact_rate(fps)
    with atomic(path) as temp:
        try:
            sent = _encode(temp, frames, rate, metadata)
        except av.error.FFmpegError as error:
            if error.errno in _DISK_FULL:
                raise
            raise RunError(
                f"writing {path}",
                f"FFmpeg could not encode the clip ({error.strerror})",
                "Check the disk; if it is sound, reinstall the encoder: pip install --force-reinstall av",
            ) from error
        if sent.flat:
            raise _flat(path)
        return _verified(path, temp, sent, metadata)


def write_image(path: Path, frame: np.ndarray, metadata: dict[str, str]) -> None:
    """Writes a uint8 [H, W, 3] picture to a .png with `metadata` as text chunks (keys: 1 to 79 Latin-1 characters).

    Raises InputError if the disk is full or the folder cannot be written to, and RunError if the picture is one flat
    colour or does not read back. Then nothing is left behind and an older file at `path` is untouched.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    _check(frame)
    if _is_flat(frame):
        raise _flat(path)
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)
    with atomic(path) as temp:
        # Level 6, the default, takes two to five times as long for a sixth less.
        Image.fromarray(frame).save(temp, format="PNG", pnginfo=info, compress_level=1)
        try:
            same = np.array_equal(read_image(temp), frame) and read_metadata(temp) == metadata
        except InputError as error:
            raise _does_not_read_back(path, error.found) from error
        if not same:
            raise _does_not_read_back(path, "its pixels or its metadata differ")


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored in a .png or .mp4 file, such as those given to `write_image` or `write_video`.

    Raises InputError if the file cannot be read as what its suffix says.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        from PIL import Image

        try:
            with Image.open(path, formats=("PNG",)) as image:
                return {key: str(value) for key, value in image.text.items()}
        except (OSError, SyntaxError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not a whole PNG file"
            raise InputError(f"reading {path}", reason, "Pass a picture this program wrote") from error
    with _opened(path) as container:
        return {key: value for key, value in container.metadata.items() if key not in _MUXER_KEYS}


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """An open clip; what FFmpeg raises while it is open becomes an InputError that names the file."""
    import av

    try:
        # A file may be a playlist in disguise. It gets to FFmpeg as an open file, and no protocol is allowed, so it
        # cannot make this process read other files or fetch addresses.
        with (
            path.open("rb") as file,
            av.open(file, options={"protocol_whitelist": "none"}, metadata_errors="replace") as container,
        ):
            yield container
    except (OSError, av.error.FFmpegError) as error:
        found = f"it cannot be read as video ({error.strerror or error})"
        raise InputError(f"reading {path}", found, "Pass a whole clip, such as an .mp4 file") from error


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            # A damaged packet costs its own frames; a player goes on after it, too.
            continue


def _upright(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    import numpy as np

    array = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation=_scaler())
    return np.rot90(array, round(frame.rotation / 90))


def _scaler() -> int:
    from av.video.reformatter import Interpolation

    # The default takes a shortcut through the chroma planes that costs about 2 dB.
    return Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


def _exact_rate(fps: float) -> Fraction:
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(ntsc - fps) < 2e-4 * fps:
        return ntsc
    return Fraction(fps).limit_denominator(1001)


def _check(frame: np.ndarray) -> None:
    import numpy as np

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame is uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")


@dataclass
class _Sent:
    """What the encoder was given: `cells` has one entry for each frame, see `_cells`."""

    rate: Fraction
    width: int = 0
    height: int = 0
    flat: bool = True
    cells: list[np.ndarray] = field(default_factory=list)


def _encode(temp: Path, frames: Iterable[np.ndarray], rate: Fraction, metadata: dict[str, str]) -> _Sent:
    import av
    import numpy as np
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

    sent, reformatter, waiting = _Sent(rate), VideoReformatter(), deque()
    # use_metadata_tags stores any key; without it MP4 has a fixed list of them.
    options = {"movflags": "faststart+use_metadata_tags"}
    # Absolute, because FFmpeg takes a relative name with a colon in it for an address.
    output = av.open(str(temp.absolute()), "w", format="mp4", options=options)
    # Whoever makes the frames, and what is done to them here, goes on while the encoder is at work.
    with ThreadPoolExecutor(1) as encoder, _closed_by(encoder, output, waiting):
        output.metadata.update(metadata)
        stream = output.add_stream("libx264", rate=rate, options={"crf": "16"})
        codec = stream.codec_context
        codec.profile = "High"
        codec.pix_fmt = "yuv420p"
        codec.colorspace = Colorspace.ITU709
        codec.color_primaries = ColorPrimaries.BT709
        codec.color_trc = ColorTrc.BT709
        codec.color_range = ColorRange.MPEG

        def encode(picture: av.VideoFrame | None) -> None:
            output.mux(stream.encode(picture))

        for index, frame in enumerate(frames):
            _check(frame)
            height, width, _ = frame.shape
            if index == 0:
                sent.width, sent.height = codec.width, codec.height = width, height
            if (width, height) != (sent.width, sent.height) or width % 2 or height % 2:
                raise ValueError(f"frames of a clip have one size, even both ways; frame {index} is {width}x{height}")
            # Where the frame lies, without a copy; it is converted before the iterator can reuse its memory.
            shared = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), format="rgb24")
            picture = reformatter.reformat(
                shared,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_scaler(),
            )
            sent.flat = sent.flat and _is_flat(frame)
            sent.cells.append(_cells(picture))
            picture.pts, picture.time_base = index, 1 / rate
            waiting.append(encoder.submit(encode, picture))
            if len(waiting) > ENCODE_QUEUE:
                waiting.popleft().result()
        if not sent.cells:
            raise ValueError("a clip has at least one frame")
        waiting.append(encoder.submit(encode, None))
        while waiting:
            waiting.popleft().result()
    return sent


@contextmanager
def _closed_by(encoder: Executor, output: av.container.OutputContainer, waiting: deque[Future]) -> Iterator[None]:
    """Closes the file in the thread that writes it, after the frame it is at: whoever stops the run twice would have it
    closed under the encoder's hands."""
    try:
        yield
    finally:
        for frame in waiting:
            frame.cancel()
        encoder.submit(output.close).result()


def _is_flat(frame: np.ndarray) -> bool:
    from PIL import Image

    return all(high - low <= _FLAT_RANGE for low, high in Image.fromarray(frame).getextrema())


def _flat(path: Path) -> RunError:
    return RunError(
        f"writing {path}",
        "every frame is one flat colour, which a working model does not produce; nothing was written",
        "Check the weights (they may be damaged or belong to another model) and try another --seed",
    )


def _cells(picture: av.VideoFrame) -> np.ndarray:
    """As much of a 4:2:0 frame as is kept to recognise it after the encoder's loss: the means of a grid over its three
    planes, int16 [12, 8]. In RGB the comparison would also count what no 4:2:0 frame can hold, such as colour noise."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture.to_ndarray()).resize((8, 12), Image.Resampling.BOX), dtype=np.int16)


def _verified(path: Path, temp: Path, sent: _Sent, metadata: dict[str, str]) -> WrittenVideo:
    """Decodes the finished file and compares it with what the encoder was given. Raises RunError if they differ."""
    expected = (sent.width, sent.height, sent.rate, "h264", "High", "yuv420p")
    try:
        with _opened(temp) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            codec = stream.codec_context
            found = (codec.width, codec.height, stream.average_rate, codec.name, codec.profile, codec.pix_fmt)
            if found != expected:
                raise _does_not_read_back(path, f"it has {found}, not {expected}")
            count = 0
            for count, picture in enumerate(container.decode(stream), 1):
                if count <= len(sent.cells) and abs(_cells(picture) - sent.cells[count - 1]).mean() > _CELL_TOLERANCE:
                    raise _does_not_read_back(path, f"frame {count} shows something else")
            if count != len(sent.cells):
                raise _does_not_read_back(path, f"it has {count} frames, not {len(sent.cells)}")
        if read_metadata(temp) != metadata:
            raise _does_not_read_back(path, "its metadata differ")
    except InputError as error:
        raise _does_not_read_back(path, error.found) from error
    width, height, rate, *names = found
    return WrittenVideo(count, width, height, float(rate), *names, temp.stat().st_size)


def _does_not_read_back(path: Path, found: str) -> RunError:
    return RunError(
        f"writing {path}",
        f"the finished file does not read back as what was written ({found}), so it was deleted",
        "Check the disk; if it is sound, reinstall the encoder: pip install --force-reinstall av pillow",
    )
