"""Videos: several frames, from text, from pictures that some of them are, or from a clip that they go on from."""

from __future__ import annotations

from dataclasses import replace

from ..model.config import TEMPORAL_COMPRESSION
from .keyframes import held
from .task import DISTILLED, FULL, Conditions, Task


def _keyframes(request: Conditions) -> tuple[int, ...]:
    """The latent frame of each keyframe."""
    return tuple(held(one.frame)[1] // TEMPORAL_COMPRESSION for one in request.keyframe or ())


T2V = Task(
    name="t2v",
    title="text to video",
    result="a video",
    suffix=".mp4",
    aspect="16:9",
    single=False,
    latents=("vision",),
    sounding=True,
)
TASKS = (
    T2V,
    replace(
        T2V,
        name="i2v",
        title="image to video",
        input="image",
        source="picture",
        variants=(*FULL, DISTILLED),
        clean=lambda request: (0,),
    ),
    replace(
        T2V,
        name="v2v",
        title="video to video",
        input="video",
        source="clip",
        chooses_frames=True,
        clean=lambda request: request.condition_frame_indexes,
    ),
    replace(
        T2V,
        name="extend",
        title="going on from a clip",
        input="extend",
        source="clip",
        sounding=False,  # the output begins before what is generated
        chooses_frames=True,
        clean=lambda request: request.condition_frame_indexes,
    ),
    replace(
        T2V,
        name="keyframes",
        title="keyframes to video",
        input="keyframe",
        source="picture",
        clean=_keyframes,
    ),
)
