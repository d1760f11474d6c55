"""How long a run's sound is; docs/model.md, section 4.4. Imports no torch: estimates count with it, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..model.sound_config import SoundConfig

DOWN, NEAREST, LATENTS = "down", "nearest", "latents"
LENGTHS = (DOWN, NEAREST, LATENTS)
"""How a video's seconds become samples: cut off to a whole sample, rounded to one, or rounded to a latent frame."""
SOUND_SUFFIXES = (".wav", ".flac")
"""Of an output that is the sound alone."""


class Lasting(Protocol):
    """What of a request decides how long its sound is."""

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> float: ...

    @property
    def sound(self) -> bool: ...

    @property
    def sound_length(self) -> str: ...


@dataclass(frozen=True)
class SoundSize:
    """Latent `frames`, and of the waveform that is kept of what they decode to the `samples` of each channel, at so
    many a second."""

    frames: int
    samples: int
    rate: int


def sound_size(request: Lasting, config: SoundConfig | None) -> SoundSize | None:
    """What a request's sound takes on a codec of this config; None for a request without sound."""
    if not request.sound or config is None:
        return None
    seconds, rate = request.frames / request.fps, config.sampling_rate
    if request.sound_length == LATENTS:
        frames = max(1, round(seconds * rate / config.hop))
        return SoundSize(frames, frames * config.hop, rate)
    samples = int(seconds * rate) if request.sound_length == DOWN else round(seconds * rate)
    return SoundSize(config.frames(samples), samples, rate)
