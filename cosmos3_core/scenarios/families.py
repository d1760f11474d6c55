"""Every task that there is, by name. A new family adds its rows here."""

from __future__ import annotations

from . import action, image, transfer, video
from .task import Task

FAMILIES = (image, video, transfer, action)
TASKS: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}
INPUTS = tuple(dict.fromkeys(task.input for task in TASKS.values() if task.input))
"""The fields that hold the file a task starts from."""
FILES = tuple(dict.fromkeys([*INPUTS, *(name for task in TASKS.values() for name in (*task.takes, *task.tables))]))
"""The fields that hold a file which a run reads: these, controls, and tables of actions and their statistics."""
