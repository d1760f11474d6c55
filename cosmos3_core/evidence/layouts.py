"""Which features work on which axes of a layout: the record that `make test-parallel` writes, and its table.

The record is read like a stranger's. Of each part of the tests it has the cases by pair of features, and the code that
they ran with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..files.digests import sha256_files, sha256_json
from ..files.schema import Listed, Number, Table, Text
from ..files.sources import check_source
from ..plan.mesh import DEGREES, Layout
from ..plan.placement import DISK, RESIDENT, STREAMED
from ..quant import FORMATS
from ..scenarios.families import TASKS
from .closure import CORE

RECORD = Path("tests") / "parallel" / "record.json"
LARGEST = 4 << 20
"""Bytes of its file."""
SOUND, CAPTURED = "sound", "captured passes"
PLACED = {RESIDENT: "resident weights", STREAMED: "streamed weights", DISK: "weights on disk"}
"""The feature's name of where both towers lie."""
BETWEEN = " x "
COMPUTES = "contract", "engine", "model", "parallel", "quant", "reference", "sampling"
"""The packages of the core whose code makes the numbers, but for what starts processes and what reads checkpoints: no
case has a quantized one."""
APART = "launch*.py", "dialects/*.py"
NOT_RUN, REFUSED, LOOSE = "not run", "refused", "as good: "
COUNT = Number(low=0, whole=True)
PAIR = Table({"cases": COUNT, "over": COUNT, "worst": Number(low=0), "processes": Listed(COUNT)})
PART = Table({"code": Text(), "pairs": Table(others=PAIR), "refused": Table(others=Text())})
SHAPE = Table({"bound": Number(low=0), "parts": Table(others=PART)})


def pair_of(one: str, other: str) -> str:
    """The key of two features, in either order."""
    return BETWEEN.join(sorted((one, other)))


def code_digest(root: Path) -> str:
    """SHA-256 over the sources of a checkout that compute, names included."""
    folder = root / CORE
    files = (path for name in COMPUTES for path in (folder / name).rglob("*.py") if not any(map(path.match, APART)))
    return sha256_json(sha256_files(files, folder))


@dataclass
class Cell:
    """What all parts found of two features: how many `cases`, how many of them `over` their bound, the `worst` error,
    among how many `processes`, and why it is `refused`. Quantized cases may have a bound of their own above `bound`."""

    bound: float
    cases: int = 0
    over: int = 0
    worst: float = 0.0
    processes: set[int] = field(default_factory=set)
    refused: str = ""

    def add(self, pair: Mapping[str, Any]) -> None:
        self.cases, self.over = self.cases + pair["cases"], self.over + pair["over"]
        self.worst = max(self.worst, pair["worst"])
        self.processes |= {*pair["processes"]}

    def __str__(self) -> str:
        if not self.cases:
            return REFUSED if self.refused else NOT_RUN
        if self.over:
            return f"{self.worst:.1e} ({self.over} of {self.cases} failed)"
        return f"{LOOSE if self.worst >= self.bound else ''}{self.worst:.1e} ({self.cases})"


def section(root: Path) -> tuple[str, Sequence[str], list[Sequence[str]]]:
    """What is said of the table, its head and its rows, of the record in a checkout. Raises InputError for a broken
    one."""
    record = _read(root / RECORD)
    cells: defaultdict[str, Cell] = defaultdict(lambda: Cell(record["bound"]))
    for part in record["parts"].values():
        for pair, found in part["pairs"].items():
            cells[pair].add(found)
        for pair, why in part["refused"].items():
            cells[pair].refused = why
    return _said(root, record, cells), ("Feature", *DEGREES), list(_rows(cells))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"bound": 0.0, "parts": {}}
    try:
        check_source(path, f"reading {path}", "Type make test-parallel")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        record: dict[str, Any] = parse_json(data.decode())
        SHAPE.check(record, "it")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"reading {path}", f"it is damaged: {error}", "Type make test-parallel") from None
    return record


def _rows(cells: defaultdict[str, Cell]) -> Iterator[Sequence[str]]:
    for name in (*DEGREES, *TASKS, SOUND, *PLACED.values(), CAPTURED, *FORMATS):
        found = [cells[pair_of(name, axis)] for axis in DEGREES]
        if name == CAPTURED:
            never = {axis for axis in DEGREES if Layout(**{axis: 2}).exchanges}
            yield name, *("never" if axis in never else str(cell) for axis, cell in zip(DEGREES, found, strict=True))
        else:
            yield name, *map(str, found)


def _said(root: Path, record: Mapping[str, Any], cells: Mapping[str, Cell]) -> str:
    parts, now = record["parts"], code_digest(root)
    if not parts:
        return "No record of `make test-parallel`.\n"
    processes = sorted(set().union(*(cell.processes for cell in cells.values())))
    said = (
        "Written by `make test-parallel`: on a CPU with gloo, in fp32, on "
        f"{', '.join(map(str, processes))} processes against one. A cell has the largest relative error of a pass of a "
        "request with both, and how many were run; an axis beside itself has all of its own. "
        f"The bound is {record['bound']:.0e}. “{LOOSE.strip(': ')}”: the numbers are others, and such a pass loses at "
        "most 1.25 times what one process does, against one that is not quantized. The last bits of a sum decide codes "
        "of activations under `ring` and `tensor`, and nvfp4 has a scale of all rows that a process has in a pass. "
        f"“{NOT_RUN}”: no case has both. “never”: a pass in which devices exchange anything is not captured.\n"
    )
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    for pair, cell in sorted(cells.items()):
        if cell.refused and not cell.cases:
            one, other = pair.split(BETWEEN)
            name, axis = (other, one) if one in DEGREES else (one, other)
            refused[name, cell.refused].append(axis)
    said += "".join(
        f"\nRefused is {name} with {', '.join(axes) if len(axes) < len(DEGREES) else 'any'}: {why}.\n"
        for (name, why), axes in refused.items()
    )
    if stale := [name for name, part in parts.items() if part["code"] != now]:
        said += f"\nThe code has changed since these ran: {'; '.join(stale)}.\n"
    return said
