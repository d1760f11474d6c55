"""Pictures: one frame, from text."""

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
)
