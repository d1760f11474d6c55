"""In a process whose NPUs are rehearsed. REHEARSED_LAUNCHES names a file that gets what was launched in it, as JSON."""

from __future__ import annotations

import atexit
import json
import os
import threading
from pathlib import Path
from typing import Any

from .device import Launches, Rehearsal

LAUNCHES = Launches()
"""Of every thread of this process."""


def rehearse() -> None:
    """NPUs compute from now on, in this thread and in every one that starts later. torch_npu is there already."""
    import torch_npu

    soc, run = torch_npu._C._npu_get_soc_version(), threading.Thread.run

    def rehearsed(thread: threading.Thread) -> Any:
        with Rehearsal(LAUNCHES, soc):
            return run(thread)

    threading.Thread.run = rehearsed  # type: ignore[method-assign]
    Rehearsal(LAUNCHES, soc).__enter__()
    if target := os.environ.get("REHEARSED_LAUNCHES"):
        atexit.register(write_launches, Path(target))


def write_launches(path: Path) -> None:
    found = {"launches": dict(LAUNCHES.counts), "waits": dict(LAUNCHES.waits), "unchecked": sorted(LAUNCHES.unchecked)}
    path.write_text(json.dumps(found, indent=2) + "\n")
