"""A request as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ...scenarios.branches import branches_of
from ...scenarios.sound import DOWN


@dataclass(frozen=True, kw_only=True)
class Job:
    """The numbers of a request. Sizes in pixels; `guided_steps` of the `steps` run with guidance; `input_frames` pixel
    frames are encoded first; `tile` is the decode's, in pixels (None: whole). `fps` and `sound_length` say how long the
    `sound` is, which is encoded where it is given (`audio`) and decoded where it is not; `other_tokens` are those of
    media besides vision and sound.

    `controls` are the hints of control clips, of as many frames, to each of which attention goes alone if it is
    `weighted`, and `control_steps` of the steps run with control guidance. `a16_steps` of the steps, of those with
    guidance and of those with control guidance have activations in 16 bits. All of it is done in each of the `chunks`.
    What is encoded has the size of the `canvas`, width and height, if there is one. Where the video itself is not
    wanted (`decodes`), only what a further chunk begins with is decoded.
    """

    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    guided_steps: int
    prompt_tokens: int
    negative_tokens: int
    input_frames: int = 0
    tile: int | None = None
    fps: float = 24.0
    sound: bool = False
    sound_length: str = DOWN
    audio: bool = False
    other_tokens: int = 0
    controls: tuple[str, ...] = ()
    control_guidance: float = 1.0
    control_steps: int = 0
    weighted: bool = False
    a16_steps: int = 0
    a16_guided_steps: int = 0
    a16_control_steps: int = 0
    chunks: int = 1
    canvas: tuple[int, int] | None = None
    decodes: bool = True

    @property
    def decoded(self) -> int:
        """How often the frames of a chunk are decoded: what the next one begins with, and all of them at the end."""
        return self.chunks - 1 + self.chunks * self.decodes

    @property
    def encoded(self) -> tuple[int, ...]:
        """Pixel frames of each clip that is encoded in a chunk."""
        return (*[self.frames] * len(self.controls), *[self.input_frames] * bool(self.input_frames))

    @property
    def texts(self) -> tuple[int, ...]:
        """Token counts of the prompts that are read."""
        return (self.prompt_tokens, self.negative_tokens)[: len(branches_of(self.guidance))]
