"""Sound in and out, as fp32 waveforms [2, N] in [-1, 1]: read from any file that has some, written beside a clip's
frames or as a file of its own, which was played back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError, RunError
from .atomic import DISK_FULL, atomic
from .frames import read_back_error
from .sources import called, head_of, open_source

if TYPE_CHECKING:
    import av
    import numpy as np

CODECS = {".wav": "pcm_s16le", ".flac": "flac"}
COMMENT = "comment"
"""In a .wav: a file of that kind has a fixed list of keys, and all that is stored goes into this one as JSON."""
RATE, BITS_PER_SECOND = 48_000, 256_000
"""Of the track beside a clip's frames, which is AAC."""
PIECE = 1024
"""Samples that the encoder takes at a time: those of an AAC packet."""
LEVELS = 1 << 15
"""Of 16 bits, on each side of zero."""
SMOOTHED = 8
"""Samples whose mean is compared of a track that lost what AAC leaves out: 6 kHz and below."""
ALIKE, LOUD, SHARE = 0.5, 1e-3, 0.25
"""How alike the track has to be to what was encoded, from -1 to 1, where there is something below 6 kHz to compare:
louder than this, and than this share of the whole. Of noise, speech and clicks it is 0.96 and more; of noise
that is a packet late it is 0."""

CONTAINERS = "wav,flac,mp3,aac,ogg,mov,matroska,webm,aiff,caf,w64,avi,mpegts,asf,au,opus"
"""What is opened as sound, by FFmpeg's names."""
OPENING = {"protocol_whitelist": "none", "format_whitelist": CONTAINERS}
NEXT_STEP = "Pass a file with sound, such as a .wav"


@dataclass(frozen=True)
class Sound:
    """A waveform: fp32 [2, N] in [-1, 1], left and right, and how many samples it has in a second."""

    samples: np.ndarray
    rate: int

    @property
    def length(self) -> int:
        return self.samples.shape[1]


@dataclass(frozen=True)
class WrittenSound:
    """What the finished file holds of sound, as read back from it. `rate` in samples per second."""

    codec: str
    rate: int
    channels: int
    samples: int


def read_sound(source: Path | bytes, rate: int, most: int) -> tuple[Sound, dict[str, Any]]:
    """The first `most` samples of a file's sound at this rate, as two channels, and what was found in it as JSON: one
    channel becomes both, and of more than two the loudspeakers are mixed down. Fewer if it is shorter. Raises
    InputError if it cannot be read, has no sound, or holds NaN."""
    import av
    import numpy as np

    asked = f"reading {called(source)}"
    head_of(source, asked, NEXT_STEP)
    try:
        with (
            open_source(source) as file,
            av.open(file, "r", options=OPENING, metadata_errors="replace") as container,
        ):
            if not container.streams.audio or (stream := container.streams.audio[0]).codec_context is None:
                raise InputError(asked, "the file has no sound in it", NEXT_STEP)
            facts = {"file": called(source), "rate": stream.rate, "channels": stream.channels}
            pieces, count = [], 0
            for piece in _resampled(_decoded(container, stream), rate):
                pieces.append(piece)
                if (count := count + piece.shape[1]) >= most:
                    break
    except (OSError, av.error.FFmpegError) as error:
        found = f"it cannot be read as sound ({error.strerror or error})"
        raise InputError(asked, found, NEXT_STEP) from error
    if not pieces:
        raise InputError(asked, "no sound of it could be decoded", NEXT_STEP)
    samples = np.concatenate(pieces, axis=1)[:, :most]
    if not np.isfinite(samples).all():
        raise InputError(asked, "its sound holds NaN or infinity", NEXT_STEP)
    return Sound(samples.clip(-1, 1), rate), facts


def _decoded(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:  # as of video: a damaged packet costs its own samples
            continue


def _resampled(frames: Iterator[av.AudioFrame], rate: int) -> Iterator[np.ndarray]:
    """fp32 [2, n] each."""
    import av

    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
    for frame in frames:
        frame.pts = None
        yield from (piece.to_ndarray() for piece in resampler.resample(frame))
    yield from (piece.to_ndarray() for piece in resampler.resample(None))


def _frames(sound: Sound, format: str, size: int) -> Iterator[av.AudioFrame]:
    """The waveform in pieces of so many samples."""
    import av
    import numpy as np

    values = sound.samples.astype(np.float32) if format == "fltp" else _bytes16(sound.samples).T.reshape(1, -1)
    width = 1 if format == "fltp" else 2
    for start in range(0, sound.length, size):
        part = np.ascontiguousarray(values[:, start * width : (start + size) * width])
        frame = av.AudioFrame.from_ndarray(part, format=format, layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, start, Fraction(1, sound.rate)
        yield frame


def _bytes16(samples: np.ndarray) -> np.ndarray:
    """int16 [2, N]."""
    import numpy as np

    return np.rint(samples * LEVELS).clip(-LEVELS, LEVELS - 1).astype(np.int16)


class Track:
    """The sound of a clip that is being written: AAC at 48 kHz, stereo, 256 kb/s. Its first sample and the first frame
    are at the same moment: what the encoder puts before it, the file says to skip."""

    def __init__(self, output: av.container.OutputContainer, sound: Sound):
        self.output, self.sent = output, _at(sound, RATE)
        self.stream: av.AudioStream = output.add_stream("aac", rate=RATE, layout="stereo")
        self.stream.bit_rate = BITS_PER_SECOND
        self._frames, self._end = _frames(self.sent, "fltp", PIECE), 0.0

    def until(self, seconds: float) -> None:
        """Encode what is heard before this time: a player reads both tracks side by side."""
        while self._end < seconds and (frame := next(self._frames, None)) is not None:
            self._end += frame.samples / RATE
            self.output.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Encode the rest."""
        self.until(float("inf"))
        self.output.mux(self.stream.encode(None))


def _at(sound: Sound, rate: int) -> Sound:
    """The same at another rate."""
    import numpy as np

    if sound.rate == rate:
        return sound
    pieces = [*_resampled(_frames(sound, "fltp", PIECE), rate)]
    return Sound(np.concatenate(pieces, axis=1)[:, : round(sound.length * rate / sound.rate)].clip(-1, 1), rate)


def check_track(path: Path, container: av.container.InputContainer, sent: Sound) -> WrittenSound:
    """What the open clip holds of the sound that was encoded. Raises RunError where it is something else."""
    import numpy as np

    stream = container.streams.audio[0] if container.streams.audio else None
    if stream is None or (codec := stream.codec_context) is None:
        raise read_back_error(path, "it has no sound")
    found, expected = (codec.name, stream.rate, stream.channels), ("aac", sent.rate, sent.samples.shape[0])
    if found != expected:
        raise read_back_error(path, f"its sound is {found}, not {expected}")
    parts = [frame.to_ndarray() for frame in container.decode(stream)]
    samples = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0))
    if not sent.length <= samples.shape[1] <= sent.length + 2 * PIECE:
        raise read_back_error(path, f"its sound has {samples.shape[1]} samples, not {sent.length}")
    if not _alike(samples[:, : sent.length], sent.samples):
        raise read_back_error(path, "its sound is another one")
    return WrittenSound(codec.name, stream.rate, stream.channels, sent.length)


def _alike(found: np.ndarray, sent: np.ndarray) -> bool:
    """Whether a track is what was encoded, but for AAC's loss; True where there is next to nothing to compare."""
    import numpy as np

    whole = sent.shape[1] // SMOOTHED * SMOOTHED
    if not whole:
        return True
    a, b = (x[:, :whole].reshape(2, -1, SMOOTHED).mean(2, dtype=np.float64) for x in (found, sent))
    loudness = float(np.sqrt((b**2).mean()))
    if loudness < max(LOUD, SHARE * float(np.sqrt((sent.astype(np.float64) ** 2).mean()))):
        return True
    return float((a * b).sum()) > ALIKE * float(np.sqrt((a**2).sum() * (b**2).sum()))


def write_sound(path: Path, sound: Sound, metadata: dict[str, str], *, overwrite: bool = True) -> dict[str, Any]:
    """Write a .wav or .flac of 16 bits at the waveform's own rate, and return what it holds, `bytes` of the file among
    it. `metadata` comes back from `read_metadata`. Raises InputError if the disk is full or the folder cannot be
    written to, and RunError if the file does not read back; then nothing is left, and an older file is untouched."""
    import av

    with atomic(path, overwrite=overwrite) as temp:
        try:
            _encode(temp, path.suffix.lower(), sound, metadata)
        except av.error.FFmpegError as error:
            if error.errno in DISK_FULL or not temp.exists():
                raise
            next_step = "Check the disk; if it is sound, reinstall the encoder: pip install --force-reinstall av"
            raise RunError(f"writing {path}", f"FFmpeg could not encode it ({error.strerror})", next_step) from error
        written = _verified(path, temp, sound, metadata)
        return vars(written) | {"bytes": temp.stat().st_size}


def _encode(temp: Path, suffix: str, sound: Sound, metadata: dict[str, str]) -> None:
    import av

    # Absolute, because FFmpeg takes a relative name with a colon in it for an address.
    with av.open(str(temp.absolute()), "w", format=suffix.removeprefix(".")) as output:
        output.metadata.update({COMMENT: json.dumps(metadata)} if suffix == ".wav" else metadata)
        stream: Any = output.add_stream(CODECS[suffix], rate=sound.rate, layout="stereo")
        for frame in _frames(sound, "s16", 4096):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _verified(path: Path, temp: Path, sound: Sound, metadata: dict[str, str]) -> WrittenSound:
    import av
    import numpy as np

    try:
        with temp.open("rb") as file, av.open(file, "r", options=OPENING) as container:
            stream = container.streams.audio[0]
            found = (stream.codec_context.name, stream.rate, stream.channels)
            parts = [frame.to_ndarray() for frame in container.decode(stream)]
        samples = np.concatenate(parts, axis=1).reshape(-1, 2).T
        stored = read_metadata(temp, path.suffix)
    except (OSError, ValueError, IndexError, av.error.FFmpegError, InputError) as error:
        raise read_back_error(path, str(error)) from error
    if found != (CODECS[path.suffix.lower()], sound.rate, 2) or not np.array_equal(samples, _bytes16(sound.samples)):
        raise read_back_error(path, "its sound is another one")
    if stored != metadata:
        raise read_back_error(path, "its metadata differ")
    return WrittenSound(*found, sound.length)


def read_metadata(path: Path, suffix: str | None = None) -> dict[str, str]:
    """The texts stored in a .wav or .flac. Raises InputError if it cannot be read as one."""
    import av

    asked, wav = f"reading {path}", (suffix or path.suffix).lower() == ".wav"
    try:
        with path.open("rb") as file, av.open(file, "r", options=OPENING, metadata_errors="replace") as container:
            found = {key: value for key, value in container.metadata.items() if key != "encoder"}
    except (OSError, av.error.FFmpegError) as error:
        found_ = f"it cannot be read as sound ({error.strerror or error})"
        raise InputError(asked, found_, NEXT_STEP) from error
    if not wav:
        return found
    try:
        stored = json.loads(found.get(COMMENT, "{}"))
    except ValueError:
        return {}
    return stored if isinstance(stored, dict) else {}
