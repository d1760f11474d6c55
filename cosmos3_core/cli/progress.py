"""Progress on stderr: the stage in hand, its parts and the time left. Plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .terminal import quiet, remark, unescaped

if TYPE_CHECKING:
    from ..engine.stages import Loading

COUNTED = {"steps": "step", "tensors": "tensor", "calibration": "calibration step", "groups": "group"}
"""Stages of many parts, of which plain lines tell about every tenth."""


class Bytes(ProgressColumn):
    """What was read of a component that is being loaded, and the time left at the pace so far."""

    def __init__(self, loading: Callable[[], Loading | None]):
        super().__init__()
        self.loading = loading

    def render(self, task: Task) -> Text:
        """Nothing, where nothing is loaded."""
        if (now := self.loading()) is None or not now.total:
            return Text()
        pace = now.done / max(1e-3, time.perf_counter() - now.begun)
        left = f", {max(0, now.total - now.done) / pace:.0f} s left" if pace else ""
        return Text(f"{now.done / 1e9:.1f} of {now.total / 1e9:.1f} GB, {pace / 1e9:.1f} GB/s{left}")


def _nothing() -> None:
    return None


class Display:
    """Use as a context manager around a run, which calls `show`. `loading` is asked what is being loaded."""

    def __init__(self, loading: Callable[[], Loading | None] = _nothing) -> None:
        # rich takes FORCE_COLOR for a terminal: what a file gets are lines all the same.
        terminal = bool(sys.stderr and sys.stderr.isatty())
        self.stage, console = "", Console(file=unescaped(sys.stderr), force_terminal=terminal)
        counts, times = (
            (BarColumn(), MofNCompleteColumn(), Bytes(loading)),
            (TimeElapsedColumn(), TimeRemainingColumn()),
        )
        columns = TextColumn("{task.description:<20}"), *counts, *times
        self.plain = quiet() or not terminal or console.is_dumb_terminal
        self.progress = Progress(*columns, console=console, transient=True, disable=self.plain)
        self.task = self.progress.add_task("starting", total=None)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """So many parts of a stage are done, as `Watch` tells."""
        begins, self.stage = stage != self.stage, stage
        if begins:
            self.progress.reset(self.task, description=stage, completed=done, total=total)
        else:
            self.progress.update(self.task, completed=done)
        if not self.plain:
            return
        if stage in COUNTED and (begins or done == total or done % max(total // 10, 1) == 0):
            remark(f"{COUNTED[stage]} {done} of {total}")
        elif begins:
            remark(stage)
