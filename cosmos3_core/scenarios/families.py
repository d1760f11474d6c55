"""Every task that there is, by name. A new family adds its rows here."""

from __future__ import annotations

from . import action, image, video
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*image.TASKS, *video.TASKS, *action.TASKS)}
INPUTS = tuple(dict.fromkeys(task.input for task in TASKS.values() if task.input))
"""The fields that hold the file a task starts from."""
