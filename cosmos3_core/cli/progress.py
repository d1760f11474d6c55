"""Progress on stderr: the stage in hand, and the steps with the time left. Plain lines where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Use as a context manager around a run."""

    def __init__(self, steps: int):
        self.steps, self.console = steps, Console(stderr=True)
        counts, times = (BarColumn(), MofNCompleteColumn()), (TimeElapsedColumn(), TimeRemainingColumn())
        columns = TextColumn("{task.description:<20}"), *counts, *times
        self.plain = not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, transient=True, disable=self.plain)
        self.task = self.progress.add_task("starting", total=steps)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def stage(self, name: str) -> None:
        """A stage other than the steps begins."""
        self.progress.update(self.task, description=name)
        if self.plain:
            self.console.print(name)

    def steps_done(self, count: int) -> None:
        """So many steps are done."""
        self.progress.update(self.task, description="steps", completed=count)
        if self.plain and (count == self.steps or count % max(self.steps // 10, 1) == 0):
            self.console.print(f"step {count} of {self.steps}")
