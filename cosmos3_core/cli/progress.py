"""Progress on stderr: the stage in hand, its parts and the time left. Plain lines where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Use as a context manager around a run, which calls `show`."""

    def __init__(self) -> None:
        self.stage, self.console = "", Console(stderr=True)
        counts, times = (BarColumn(), MofNCompleteColumn()), (TimeElapsedColumn(), TimeRemainingColumn())
        columns = TextColumn("{task.description:<20}"), *counts, *times
        self.plain = not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, transient=True, disable=self.plain)
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
        if stage == "steps" and (begins or done == total or done % max(total // 10, 1) == 0):
            self.console.print(f"step {done} of {total}")
        elif begins:
            self.console.print(stage)
