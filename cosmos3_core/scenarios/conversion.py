"""A request of another program on its way to one of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..spelling import shown
from .kinds import URL


@dataclass
class Work:
    """A request on its way: what it came to so far. `said` lists what was mapped, `dropped` what was not and why,
    `wrong` what stands in the way, `lacking` the keys that ask for what is not here, by that."""

    asked: str
    owner: str
    folder: Path | None
    given: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    said: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=dict)

    def put(self, key: str, name: str, value: Any) -> None:
        """`name` is `value`, because of `key`."""
        if name in self.given and self.given[name] != value:
            self.differs(f"{key} and another key", name, value, self.given[name])
        self.given[name] = value
        if key != name:
            self.said.append(f"{key} → {name}")

    def differs(self, keys: str, name: str, one: Any, other: Any) -> None:
        """Two `keys` say that `name` is this and something else."""
        self.wrong.append(f"{keys} set {name}, to {shown(one)} and {shown(other)}")

    def drop(self, key: str, why: str) -> None:
        self.dropped.append(f"{key} ({why})")

    def path(self, key: str, name: str) -> Path | None:
        """A file that the request names."""
        if self.folder is None:
            self.wrong.append(f"{key}: a request from elsewhere may not name files of this machine")
        return self.folder and self.folder / name


def file_of(work: Work, key: str, value: Any) -> str | None:
    """The path of a file that a key names, however it is wrapped; None where it is none or an error."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    if isinstance(value, dict):
        value = next((value[name] for name in ("image_url", "video_url", "url") if name in value), value)
    if not isinstance(value, str):
        work.wrong.append(f"{key}: it names no file. Give the path of a picture or a clip")
    elif value.startswith("@"):
        work.wrong.append(f"{key}: curl's @ uploads a file. Give the path alone, {value[1:]}")
    elif URL.match(value) or value.startswith("data:") or len(value) > 4096:
        work.wrong.append(f"{key}: files are not fetched or decoded from text. Save it, and give its path")
    elif value and (path := work.path(key, value)):
        return str(path)
    return None


def number_of(value: Any) -> Any:
    """Forms hold numbers and switches as text."""
    if isinstance(value, str) and len(value) < 32:
        text = value.strip()
        try:
            parsed = json.loads(text.lower() if text.lower() in ("true", "false") else text)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, int | float | bool) else value
    return value
