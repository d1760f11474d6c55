"""Every task that there is, by name. A new family adds its rows here."""

from __future__ import annotations

from . import image, transfer, video
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*image.TASKS, *video.TASKS, *transfer.TASKS)}
INPUTS = tuple(dict.fromkeys(task.input for task in TASKS.values() if task.input))
"""The fields that hold the file a task starts from."""
FILES = tuple(dict.fromkeys([*INPUTS, *(name for task in TASKS.values() for name in task.takes)]))
"""The fields that hold a file which a run reads: these, and controls."""
