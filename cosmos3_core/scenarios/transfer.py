"""Transfer: a clip that follows control clips, such as edges or depth; docs/model.md, section 4.9."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from .chunks import Chunks
from .faults import Faults
from .task import Conditions, Task

DERIVED = ("edge", "blur")
"""Hints that can be made of the input clip."""
HINTS = (*DERIVED, "depth", "seg", "wsm")
"""The kinds of control, in the order in which their clips are packed."""
EDGES = {
    "none": (20, 50),
    "very_low": (20, 50),
    "low": (50, 100),
    "medium": (100, 200),
    "high": (200, 300),
    "very_high": (300, 400),
}
"""Canny's two thresholds."""
BLURS = {"none": (1, 1), "very_low": (1, 4), "low": (4, 4), "medium": (2, 10), "high": (1, 16), "very_high": (4, 16)}
"""By how much a frame is shrunk before the bilateral filter, and after it, before it is enlarged again."""
AUTO = "auto"
"""What stands in the place of a control's file where it is made of the input clip."""
DEFAULT_HINT = HINTS[0]
"""What a plan has that names none."""
TRANSFER = "transfer"
"""The task's name."""
SUFFIX = (
    " Follow the {hints} control video precisely: shape, contour, silhouette, position, and motion of every visible"
    " structure must align with the {hints} signal at every frame."
)
"""What emphasis adds to the prompt (NVIDIA cosmos-framework 5eee9ed5, vllm-omni 0.32.0rc1)."""


def hints_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of control that are given, in their order."""
    return tuple(hint for hint in HINTS if values.get(hint) is not None)


def shares(values: Mapping[str, Any]) -> dict[str, float]:
    """The weight of each control that is given: 1, unless it is said."""
    return {hint: dict(values["control_weights"] or ()).get(hint, 1.0) for hint in hints_of(values)}


def _clean(request: Conditions) -> tuple[int, ...]:
    """The latent frames that the frames which a chunk begins with reach into, as all engines count them."""
    return tuple(range((request.first_frames - 1) // TEMPORAL_COMPRESSION + 1)) if request.first_frames else ()


def _chunk_frames(request: Any) -> int:
    return request.chunk_frames or -(-(request.frames - 1) // TEMPORAL_COMPRESSION) * TEMPORAL_COMPRESSION + 1


def _chunks(request: Any) -> Chunks:
    return Chunks(request.frames, _chunk_frames(request), request.carry_frames)


def _of_chunk(request: Any, index: int) -> Any:
    chunks = request.chunks
    seed = request.seed + index if request.chunk_noise == "seed" else request.seed
    first = min(chunks.carry, chunks.frames) if index else request.first_frames
    return replace(request, frames=chunks.frames, chunk_frames=chunks.frames, first_frames=first, seed=seed % 2**64)


TASKS = (
    Task(
        name=TRANSFER,
        title="transfer",
        result="a video",
        suffix=".mp4",
        aspect="16:9",
        single=False,
        latents=("vision",),
        takes=("video", *HINTS),
        system="transfer",
        variants=("base",),
        clean=_clean,
        chunks=_chunks,
        of_chunk=_of_chunk,
    ),
)


def check_controls(faults: Faults, request: Any) -> None:
    """Controls, chunks and frames to begin with that do not go together are added to the faults."""
    hints, frames = request.controls, _chunk_frames(request)
    for name, _ in request.control_weights:
        with faults.of("control_weights"):
            if name not in hints:
                found = f"there is no {name} control"
                raise InputError(f"a control weight of {name}", found, f"Give `{name}` FILE, or drop its weight")
    for hint in hints:
        with faults.of(hint):
            if getattr(request, hint) == AUTO and request.video is None:
                found = "it is made of the input clip, and there is none"
                raise InputError(f"`{hint}` {AUTO}", found, f"Add `video` FILE, or give `{hint}` a clip of its own")
    with faults.of("first_frames"):
        if request.first_frames and request.video is None:
            found = "they are taken from the input clip, and there is none"
            raise InputError(f"first_frames = {request.first_frames}", found, "Add `video` FILE, or drop first_frames")
    for name, count in (("carry_frames", request.carry_frames), ("first_frames", request.first_frames)):
        with faults.of(name):
            if count >= frames:
                found = f"a chunk has {frames} frames, and some have to be new"
                raise InputError(f"{name} = {count}", found, f"Use at most {frames - 1}")
