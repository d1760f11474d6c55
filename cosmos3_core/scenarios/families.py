"""Every task that there is, by name. A new family adds its rows here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import action, image, transfer, video
from .task import Task

FAMILIES = (image, video, transfer, action)
TASKS: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}
INPUTS = tuple(dict.fromkeys(task.input for task in TASKS.values() if task.input))
"""The fields that hold the file a task starts from."""
MEDIA = tuple(dict.fromkeys([*INPUTS, *(name for task in TASKS.values() for name in task.takes)]))
"""The fields that hold pictures and clips which a run reads: these, and controls."""
FILES = tuple(dict.fromkeys([*MEDIA, "audio", *(name for task in TASKS.values() for name in task.tables)]))
"""The fields that hold a file which a run reads: these, a sound, and tables of actions and their statistics."""
WORDS = (transfer.AUTO, action.CHECKPOINT, action.NO_STATS)
"""What stands in such a field and is no path."""


def sources(files: Mapping[str, Any]) -> dict[str, str]:
    """The paths of files as JSON has them by field: by the field, and of several of one field by that and their key,
    such as keyframe.188."""
    found: dict[str, str] = {}
    for name, value in files.items():
        parts = {f"{name}.{key}": path for key, path in value.items()} if isinstance(value, dict) else {name: value}
        found |= {label: path for label, path in parts.items() if isinstance(path, str) and path not in WORDS}
    return found
