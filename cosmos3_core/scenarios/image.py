"""Pictures: one frame, from text, or from a picture and what to change of it."""

from __future__ import annotations

from .task import DISTILLED, FULL, Task

TASKS = (
    Task(
        name="t2i",
        title="text to image",
        result="an image",
        suffix=".png",
        aspect="1:1",
        single=True,
        latents=("vision",),
        variants=(*FULL, DISTILLED),
    ),
    Task(
        name="edit",
        title="editing a picture",
        result="an image",
        suffix=".png",
        aspect="1:1",
        single=True,
        latents=("vision",),
        input="image",
        source="picture",
        beside="source",
        system="edit",
    ),
)
