"""Videos: several frames, from text, from a picture that they begin with, or from a clip that they go on from."""

from __future__ import annotations

from dataclasses import replace

from .task import DISTILLED, FULL, Task

T2V = Task(
    name="t2v",
    title="text to video",
    result="a video",
    suffix=".mp4",
    aspect="16:9",
    single=False,
    latents=("vision",),
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
)
