"""Clips in and out, as uint8 RGB arrays [F, H, W, 3]; what is written is an mp4 that was played back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError, RunError
from . import images
from .atomic import DISK_FULL, atomic
from .audio import Sound, Track, WrittenSound, check_track
from .decoding import Shower, scaler
from .frames import Reading, check_frame, flat_error, is_flat, read_back_error
from .sources import called, head_of, open_source
from .timing import Shown, resampled, same_rate, timed, watched

if TYPE_CHECKING:
    import av
    import numpy as np

VIDEO_SUFFIX = ".mp4"
CODEC, PROFILE, PIXELS = "h264", "High", "yuv420p"
MUXER_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
CELL_TOLERANCE = 6
"""Mean difference of two frames' `_cells`, in levels of 255. Measured between a frame and itself from the file: 0.1 for
photo-like frames, 1.7 at worst (each channel 0 or 255 at random, 16 x 16 pixels). Measured between a photo-like frame
and the same one mirrored, green, black or with swapped channels: 19 and more."""

CONTAINERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,obu,h264,hevc,m4v,dv,yuv4mpegpipe,mjpeg,"
    "jpeg_pipe,mp3"
)
"""What is opened as a clip, by FFmpeg's names; an mp3 to say that it has none."""
OPENING = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS}
MAX_AREA = 8192 * 4608
"""Pixels of the largest frame that is decoded: 8K and a little. A damaged file can say that it has more."""
NEXT_STEP = "Pass a whole clip, such as an .mp4 file"
WIDEST = 16384
"""Pixels of a side that libx264 takes."""
MOST_HELD = 1000
"""New frames that one frame of a resampled clip is shown for at most."""
JPEG = b"\xff\xd8\xff"
ENCODE_QUEUE = 8
"""Frames that wait for the encoder at most: it takes several at once, after it has looked ahead."""


@dataclass(frozen=True)
class WrittenVideo:
    """What the finished file holds, as read back from it. `fps` in frames per second, `bytes` is the file's size,
    `sound` None where it has none."""

    frames: int
    width: int
    height: int
    fps: float
    codec: str
    profile: str
    pix_fmt: str
    bytes: int
    sound: WrittenSound | None = None


def read_video(source: Path | bytes, count: int, keep: str, fps: float | None = None, skip: int = 0) -> Reading:
    """Up to `count` frames, the "first" after `skip` or the "last" of a clip or of an animated picture, as they are
    meant to be seen (`decoding.Shower`, `images.decoded`). With `fps` the clip is resampled to as many frames a second,
    by the times at which its frames are shown; without, its frames are taken one by one. Fewer than `count` if the clip
    is shorter. Holds `count` frames in memory, however long the clip. A clip that is cut off or damaged gives the
    frames that decode.

    Raises InputError if the file cannot be read, has no video, or not one frame of it decodes.
    """
    with _playing(source) as clip:
        shown = watched(clip.shown, clip.rate, clip.notes, fps is not None)
        if fps is not None:
            shown = resampled(shown, fps, clip.rate, skip + count)
        frames = deque(islice(shown, skip, skip + count) if keep == "first" else shown, maxlen=count)
        if not frames:
            raise InputError(f"reading {called(source)}", "no frame of it could be decoded", NEXT_STEP)
        arrays = [clip.show(one.frame) for one in frames]
    still = clip.facts.get("pictures") == 1
    facts = {"file": called(source)} | ({} if still else {"fps": clip.rate}) | clip.facts
    if fps is not None and not still and not same_rate(clip.rate, fps):
        facts["resampled_to_fps"] = fps
    return Reading(_stacked(arrays), facts, tuple(dict.fromkeys(clip.notes)), None if still else clip.rate)


def play_video(source: Path | bytes, fps: float | None = None) -> Iterator[np.ndarray]:
    """All frames of a clip one by one, uint8 [H, W, 3] of the first one's size, as `read_video` reads them. Raises
    InputError as that does."""
    with _playing(source) as clip:
        shown = clip.shown if fps is None else resampled(clip.shown, fps, clip.rate, MOST_HELD)
        size: tuple[int, ...] = ()
        for one in shown:
            array = clip.show(one.frame)
            size = size or array.shape
            yield array if array.shape == size else _sized(array, size)


def length_of(source: Path | bytes, most: int, fps: float | None = None) -> tuple[int, float]:
    """How many frames `read_video` would find, up to `most`, and the clip's own number of frames per second. Raises
    InputError as that does."""
    with _playing(source) as clip:
        shown = clip.shown if fps is None else resampled(clip.shown, fps, clip.rate, most)
        return sum(1 for _ in islice(shown, most)), clip.rate


@dataclass(frozen=True)
class _Playing:
    """An open clip: its frames, how many it has in a second, what makes one an array, and what is found out then."""

    shown: Iterator[Shown]
    rate: float
    show: Callable[[Any], np.ndarray]
    facts: dict[str, Any]
    notes: list[str]


def _playing(source: Path | bytes) -> AbstractContextManager[_Playing]:
    """An open clip, or an open picture, which is one of a single frame."""
    head = head_of(source, f"reading {called(source)}", NEXT_STEP)
    still = images.is_picture(head) or (head.startswith(JPEG) and (b"MPF\0" in head or not _are_several(source)))
    return _animation(source, head) if still else _clip(source)


def _are_several(source: Path | bytes) -> bool:
    """Whether a file that begins as a JPEG picture is a clip of them, one after another."""
    try:
        with _opened(source) as container:
            return len([*islice((packet for packet in container.demux() if packet.size), 2)]) > 1
    except InputError:
        return False


@contextmanager
def _clip(source: Path | bytes) -> Iterator[_Playing]:
    from av.stream import Disposition

    asked = f"reading {called(source)}"
    with _opened(source) as container:
        # An audio file's cover picture is a video stream as well.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise InputError(asked, "the file has no video in it", "Pass a clip, such as an .mp4 file")
        stream = streams[0]
        if stream.codec_context is None:
            found = "there is no decoder for its video, or it is cut off"
            raise InputError(asked, found, f"{NEXT_STEP} in H.264")
        _check_area(source, stream.width, stream.height)
        stream.thread_type = "SLICE"  # with a frame a thread, a damaged one would cost all that are under way
        if not (rate := stream.average_rate or stream.guessed_rate):
            raise InputError(asked, "it has no frame rate", "Pass a clip, such as an .mp4 file")
        shower = Shower(source, stream.sample_aspect_ratio)
        if len(streams) > 1:
            shower.facts["video_streams"] = len(streams)
            shower.notes.append(f"the clip has {len(streams)} video streams: the first is taken")
        if any(key.lower() == "alpha_mode" and value != "0" for key, value in stream.metadata.items()):
            shower.facts["alpha"] = "left out"
            shower.notes.append(
                "the clip's transparency is beside its colours and left out: they are taken as they are"
            )
        frames = timed(_decoded(container, stream, shower.notes), float(rate))
        yield _Playing(frames, float(rate), shower.show, shower.facts, shower.notes)


@contextmanager
def _animation(source: Path | bytes, head: bytes) -> Iterator[_Playing]:
    """A GIF, an animated WebP, AVIF or PNG; a single picture is a clip of one frame."""
    notes: list[str] = []
    with images.opened(source, notes) as picture:
        _check_area(source, *picture.size)
        durations = images.durations(picture)
        picture.seek(min(durations))
        first = images.decoded(picture, head)
        facts = {key: value for key, value in first.facts.items() if key != "mode"}
        facts["pictures"] = len(durations)

        def show(index: int) -> np.ndarray:
            picture.seek(index)
            return images.decoded(picture, head).frames[0]

        ends = accumulate(durations.values())
        shown = (Shown(index, end - durations[index], end) for index, end in zip(durations, ends, strict=True))
        yield _Playing(shown, len(durations) / sum(durations.values()), show, facts, notes)
        notes += first.notes


def _check_area(source: Path | bytes, width: int, height: int) -> None:
    if width * height > MAX_AREA:
        found, next_step = f"its frames have {width}x{height} pixels", "Scale it down to 4096 pixels a side or less"
        raise InputError(f"reading {called(source)}", found, next_step)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """One array. A stream may change its size on the way; all frames of the result have the first one's."""
    import numpy as np

    size = arrays[0].shape
    return np.stack([array if array.shape == size else _sized(array, size) for array in arrays])


def _sized(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    metadata: dict[str, str],
    sound: Sound | None = None,
    *,
    overwrite: bool = True,
) -> WrittenVideo:
    """Writes frames, each uint8 [H, W, 3] with even H and W, to an .mp4: H.264 High, 4:2:0, BT.709 limited range,
    visually lossless, playable while it downloads. Each frame is encoded as the iterator gives it. A `sound` begins
    with the first frame and is AAC (`audio.Track`).

    `fps` near an NTSC rate (23.976, 29.97...) is written as the exact fraction. `metadata` comes back from
    `read_metadata`; the keys `encoder`, `major_brand`, `minor_version` and `compatible_brands` belong to the muxer.

    Raises InputError if the disk is full or the folder cannot be written to, and RunError if every frame is one flat
    colour or the finished file does not read back as what was written. What the iterator raises passes through. In
    all these cases nothing is left behind and an older file at `path` is untouched, as it always is without
    `overwrite`.
    """
    import av

    rate = _exact_rate(fps)
    with atomic(path, overwrite=overwrite) as temp:
        try:
            sent = encode(temp, frames, rate, metadata, sound)
        except av.error.FFmpegError as error:
            if error.errno in DISK_FULL or not temp.exists():
                raise
            raise RunError(
                f"writing {path}",
                f"FFmpeg could not encode the clip ({error.strerror})",
                "Check the disk; if it is sound, reinstall the encoder: pip install --force-reinstall av",
            ) from error
        if sent.flat:
            raise flat_error(path)
        return _verified(path, temp, sent, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored in a clip, less the muxer's own. Raises InputError if it cannot be read as one."""
    with _opened(path) as container:
        return {key: value for key, value in container.metadata.items() if key not in MUXER_KEYS}


@contextmanager
def _opened(source: Path | bytes) -> Iterator[av.container.InputContainer]:
    """An open clip; what FFmpeg raises while it is open becomes an InputError that names the file."""
    import av

    try:
        # A file may be a playlist in disguise. It gets to FFmpeg as an open file, and no protocol is allowed, so it
        # cannot make this process read other files or fetch addresses; and what is no container of clips stays shut.
        with (
            open_source(source) as file,
            av.open(file, "r", options=OPENING, metadata_errors="replace") as container,
        ):
            yield container
    except (OSError, av.error.FFmpegError) as error:
        found = f"it cannot be read as video ({error.strerror or error})"
        raise InputError(f"reading {called(source)}", found, NEXT_STEP) from error


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, notes: list[str]
) -> Iterator[av.VideoFrame]:
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            # A damaged packet costs its own frames; a player goes on after it, too.
            notes.append("the clip is damaged: frames that do not decode are left out")


def _exact_rate(fps: float) -> Fraction:
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if abs(ntsc - fps) < 2e-4 * fps:
        return ntsc
    return Fraction(fps).limit_denominator(1001)


@dataclass
class Sent:
    """What the encoder was given: `cells` has one entry for each frame, see `_cells`, and `sound` is as the track has
    it."""

    rate: Fraction
    width: int = 0
    height: int = 0
    flat: bool = True
    cells: list[np.ndarray] = field(default_factory=list)
    sound: Sound | None = None


def encode(
    temp: Path, frames: Iterable[np.ndarray], rate: Fraction, metadata: dict[str, str], sound: Sound | None = None
) -> Sent:
    """Encodes the frames into the file `temp`, each as the iterator gives it, and what is heard beside it. Raises
    ValueError for frames that cannot be a clip."""
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    sent, reformatter = Sent(rate), VideoReformatter()
    waiting: deque[Future[None]] = deque()
    # use_metadata_tags stores any key; without it MP4 has a fixed list of them.
    options = {"movflags": "faststart+use_metadata_tags"}
    # Absolute, because FFmpeg takes a relative name with a colon in it for an address.
    output = av.open(str(temp.absolute()), "w", format="mp4", options=options)
    # Whoever makes the frames, and what is done to them here, goes on while the encoder is at work.
    with ThreadPoolExecutor(1) as encoder, closed_by(encoder, output, waiting):
        output.metadata.update(metadata)
        stream = _stream(output, rate)
        codec = stream.codec_context
        track = Track(output, sound) if sound else None
        sent.sound = track.sent if track else None

        def send(picture: av.VideoFrame | None, shown: float) -> None:
            output.mux(stream.encode(picture))
            if track:
                track.until(shown)

        for index, frame in enumerate(frames):
            check_frame(frame)
            height, width, _ = frame.shape
            if index == 0:
                sent.width, sent.height = codec.width, codec.height = width, height
            if (width, height) != (sent.width, sent.height) or width % 2 or height % 2:
                raise ValueError(f"frames of a clip have one size, even both ways; frame {index} is {width}x{height}")
            # Where the frame lies, without a copy; it is converted before the iterator can reuse its memory.
            shared = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), format="rgb24")
            picture = reformatter.reformat(
                shared,
                format=PIXELS,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=scaler(),
            )
            sent.flat = sent.flat and is_flat(frame)
            sent.cells.append(_cells(picture))
            picture.pts, picture.time_base = index, 1 / rate
            waiting.append(encoder.submit(send, picture, float((index + 1) / rate)))
            if len(waiting) > ENCODE_QUEUE:
                waiting.popleft().result()
        if not sent.cells:
            raise ValueError("a clip has at least one frame")
        waiting.append(encoder.submit(send, None, float("inf")))
        if track:
            waiting.append(encoder.submit(track.close))
        while waiting:
            waiting.popleft().result()
    return sent


def _stream(output: av.container.OutputContainer, rate: Fraction) -> av.VideoStream:
    """A clip's frames, not yet of any size."""
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    stream: av.VideoStream = output.add_stream("libx264", rate=rate, options={"crf": "16"})
    codec = stream.codec_context
    codec.profile, codec.pix_fmt = PROFILE, PIXELS
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


@contextmanager
def closed_by(encoder: Executor, output: av.container.OutputContainer, waiting: deque[Future]) -> Iterator[None]:
    """Closes the file in the thread that writes it, after the frame it is at: whoever stops the run twice would have it
    closed under the encoder's hands."""
    try:
        yield
    finally:
        for frame in waiting:
            frame.cancel()
        encoder.submit(output.close).result()


def _cells(picture: av.VideoFrame) -> np.ndarray:
    """As much of a 4:2:0 frame as is kept to recognise it after the encoder's loss: the means of a grid over its three
    planes, int16 [12, 8]. In RGB the comparison would also count what no 4:2:0 frame can hold, such as colour noise."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture.to_ndarray()).resize((8, 12), Image.Resampling.BOX), dtype=np.int16)


def _verified(path: Path, temp: Path, sent: Sent, metadata: dict[str, str]) -> WrittenVideo:
    """Decodes the finished file and compares it with what the encoder was given. Raises RunError if they differ."""
    expected, heard = (sent.width, sent.height, sent.rate, CODEC, PROFILE, PIXELS), None
    try:
        with _opened(temp) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            codec = stream.codec_context
            found = (codec.width, codec.height, stream.average_rate, codec.name, codec.profile, codec.pix_fmt)
            if found != expected:
                raise read_back_error(path, f"it has {found}, not {expected}")
            count = 0
            for count, picture in enumerate(container.decode(stream), 1):
                if count <= len(sent.cells) and abs(_cells(picture) - sent.cells[count - 1]).mean() > CELL_TOLERANCE:
                    raise read_back_error(path, f"frame {count} shows something else")
            if count != len(sent.cells):
                raise read_back_error(path, f"it has {count} frames, not {len(sent.cells)}")
        if sent.sound:
            with _opened(temp) as container:
                heard = check_track(path, container, sent.sound)
        if read_metadata(temp) != metadata:
            raise read_back_error(path, "its metadata differ")
    except InputError as error:
        raise read_back_error(path, error.found) from error
    size = temp.stat().st_size
    return WrittenVideo(count, sent.width, sent.height, float(sent.rate), CODEC, PROFILE, PIXELS, size, heard)
