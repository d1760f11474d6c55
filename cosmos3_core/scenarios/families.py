"""Every task that there is, by name. A new family adds its rows here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import image, transfer, video
from .task import Task

TASKS: dict[str, Task] = {task.name: task for task in (*image.TASKS, *video.TASKS, *transfer.TASKS)}
INPUTS = tuple(dict.fromkeys(task.input for task in TASKS.values() if task.input))
"""The fields that hold the file a task starts from."""
FILES = tuple(dict.fromkeys([*INPUTS, "audio", *(name for task in TASKS.values() for name in task.takes)]))
"""The fields that hold a file which a run reads: these, a sound, and controls."""


def sources(files: Mapping[str, Any]) -> dict[str, str]:
    """The paths of files as JSON has them by field: by the field, and of several of one field by that and their key,
    such as keyframe.188."""
    found: dict[str, str] = {}
    for name, value in files.items():
        parts = {f"{name}.{key}": path for key, path in value.items()} if isinstance(value, dict) else {name: value}
        found |= {label: path for label, path in parts.items() if isinstance(path, str) and path != transfer.AUTO}
    return found
