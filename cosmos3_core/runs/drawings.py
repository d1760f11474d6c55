"""What of a run is shown to people who would rather look than read: a plot of its actions, a contact sheet of its clip,
which carry the manifest as the output does, and what stands beside the clip in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import Cosmos3Error, InputError, RunError
from ..files import plots
from ..files.images import IMAGE_SUFFIX
from ..files.video import WIDEST
from ..scenarios.action import acts
from ..scenarios.families import TASKS
from ..spelling import reason_of

if TYPE_CHECKING:
    import numpy as np

    from ..scenarios.request import Request

PLOT, SHEET = "plot", "sheet"


def check_drawings(request: Request, named: Mapping[str, Path | None], alone: str | None) -> None:
    """Raises InputError for a picture that there cannot be: of a task without actions or without a clip, of an output
    that is something else `alone`, under another suffix, or without matplotlib."""
    for name, path in named.items():
        if path is None:
            continue
        asked, task = f"`{name}` {path}", TASKS[request.task]
        if path.suffix.lower() != IMAGE_SUFFIX:
            found = f"it is written as {IMAGE_SUFFIX}"
            raise InputError(asked, found, f"Pass `{name}` {path.with_suffix(IMAGE_SUFFIX)}", name)
        if name == PLOT and not acts(task):
            takers = " or ".join(other.name for other in TASKS.values() if acts(other))
            raise InputError(asked, f"{task.title} has no actions", f"Drop `{name}`, or use `task` {takers}", name)
        if name == SHEET and not request.is_video:
            raise InputError(asked, "this run makes one picture, and a sheet shows frames", f"Drop `{name}`", name)
        if name == SHEET and alone:
            found = f"of an output that is {alone} alone no frame is decoded"
            raise InputError(asked, found, f"Drop `{name}`, or choose an `output` ending in {task.suffix}", name)
    if named.get(PLOT):
        plots.check_matplotlib(f"`{PLOT}` {named[PLOT]}")


def check_wide(request: Request) -> None:
    """Raises InputError for a clip that is too wide for its encoder with what it shows beside itself."""
    beside = bool(request.show_input) + len(request.controls) * bool(request.show_controls)
    if (width := (1 + beside) * request.width) > WIDEST:
        asked = f"{1 + beside} clips of {request.width} pixels beside each other"
        found = f"they are {width:,} wide, and an .mp4 is {WIDEST:,} at most"
        raise InputError(
            asked, found, "Use a smaller `size`, or set show_controls or show_input false", "show_controls"
        )


def plot_of(request: Request, actions: tuple[np.ndarray, dict[str, Any]]) -> np.ndarray:
    """The plot of a run's actions, predicted or given, and what one is: uint8 [H, W, 3]."""
    (rows, about), chunks = actions, request.chunks
    begins = [chunks.start(index) + chunks.carry - 1 for index in range(1, chunks.count)]
    made = "predicted" if request.predicts_actions else "given"
    title = f"{request.task}, {request.domain}\n{len(rows)} actions {made}, {about['fps']:g} a second"
    try:
        return plots.drawn(rows, about, begins, title)
    except Cosmos3Error:
        raise
    except Exception as error:  # of matplotlib's many parts; what the run made is written by now
        found = f"matplotlib could not draw it: {reason_of(error)}"
        raise RunError("drawing the actions", found, "The run's other files are written; draw their tables") from error
