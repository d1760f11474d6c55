"""Progress on stderr: the stage in hand, its parts and the time left. Plain lines where there is no terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .terminal import quiet, remark, unescaped

COUNTED = {"steps": "step", "tensors": "tensor", "calibration": "calibration step", "groups": "group"}
"""Stages of many parts, of which plain lines tell about every tenth."""


class Display:
    """Use as a context manager around a run, which calls `show`."""

    def __init__(self) -> None:
        # rich takes FORCE_COLOR for a terminal: what a file gets are lines all the same.
        terminal = bool(sys.stderr and sys.stderr.isatty())
        self.stage, console = "", Console(file=unescaped(sys.stderr), force_terminal=terminal)
        counts, times = (BarColumn(), MofNCompleteColumn()), (TimeElapsedColumn(), TimeRemainingColumn())
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
