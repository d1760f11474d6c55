"""`cosmos3 show`: the manifest that an output carries, for reading."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..contract import InputError
from ..files.outputs import read_metadata
from ..plan.cost.units import GIB
from ..runs.manifest import KEY, read_manifest
from ..scenarios.families import TASKS
from ..scenarios.fields import FIELDS
from .terminal import console, printable

MOST = 2000
"""Rows that are shown; a manifest has about 150."""
LONGEST = 200
"""Characters of a value that are shown; --json has it whole."""
PIPED_WIDTH = 160
"""Columns where there is no terminal to ask."""


def execute(file: str, as_json: bool) -> None:
    """Print the manifest in an .mp4 or .png, or in a manifest file. Raises InputError where there is none."""
    asked = f"cosmos3 show {file}"
    if Path(file).suffix == ".safetensors" and Path(file).is_file() and KEY not in read_metadata(Path(file)):
        next_step = f"Of a stopped run type cosmos3 run --resume {shlex.quote(file)} --dry-run"
        raise InputError(asked, "it holds tensors and no manifest", next_step)
    manifest = read_manifest(file, asked)
    if as_json:
        print(json.dumps(manifest, indent=2))
    else:
        _print(manifest)


def _print(manifest: dict[str, Any]) -> None:
    """One block a subject, in the order of a reader's questions. Keys that are not known here come last: nothing of a
    manifest is left out but what is empty, and fields of the request that its task does not take."""
    screen, rest = console(**({} if sys.stdout.isatty() else {"width": PIPED_WIDTH})), dict(manifest)
    request, origin, plan = rest.pop("request"), rest.pop("origin", {}), dict(rest.pop("plan"))
    scalars = {key: rest.pop(key) for key in list(rest) if not isinstance(rest[key], dict | list)}
    blocks = [_rows(scalars), _rows(rest.pop("model", {}), "model"), _rows(rest.pop("profile", {}), "profile")]
    task = request.get("task")
    taken = {key: value for key, value in request.items() if _applies(key, task)}
    blocks.append([(f"request.{key}", _text(value), _origin(origin, key)) for key, value in taken.items()])
    refused = plan.pop("refused", [])
    blocks.append(_rows(plan, "plan"))
    blocks.append([("refused", _text(row), "") for row in refused])
    blocks += [_rows(value, key) for key, value in rest.items()]
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    left = MOST
    for block in filter(None, blocks):
        for row in block[:left]:
            table.add_row(*(Text(printable(cell)) for cell in row))
        table.add_row()
        left = max(0, left - len(block))
    if not left:
        table.add_row("", f"and more than {MOST:,} rows: --json has them whole", "")
    screen.print(table)


def _rows(value: Any, name: str = "") -> list[tuple[str, str, str]]:
    """A value as (dotted name, text, ""): one row for each leaf."""
    if isinstance(value, dict) and value:
        return [row for key, inner in value.items() for row in _rows(inner, f"{name}.{key}".lstrip("."))]
    if isinstance(value, int) and "memory" in name and abs(value) < 1 << 60:
        value = f"{value} ({value / GIB:.2f} GiB)"
    return [(name, _text(value), "")] if value not in ({}, []) else []


def _applies(name: str, task: Any) -> bool:
    """Whether a task takes a field; what is not known here does."""
    return task not in tuple(TASKS) or name not in FIELDS or task in FIELDS[name].tasks


def _origin(origin: Any, key: str) -> str:
    return str(origin.get(key, "")) if isinstance(origin, dict) else ""


def _text(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), LONGEST)
