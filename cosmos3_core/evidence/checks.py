"""Records of the conformance kit that a package carries: what each says, and whether that holds for today's code.

They are read like a stranger's. A record holds while the package's code, the kit and the contract are as they were.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..contract import API, RECIPES, Backend, InputError
from ..files.digests import sha256_files, sha256_json
from ..files.schema import Anything, Number, Table, Text
from ..files.sources import check_source
from ..spelling import shown
from .closure import CORE, Sources

FOLDER = "checks"
"""Of the kit's records, in the folder of a package's recipes."""
FULL = "full"
"""The depth of a run that a tick needs."""
FAILED = ("failed", "xpassed")
OUTCOMES = {"passed", "skipped", "xfailed", *FAILED}
LARGEST = 16 << 20
"""Bytes of a record's file."""
SHAPE = Table(
    {
        "fingerprint": Table(
            {
                "contract": Number(whole=True),
                "kit": Text(),
                "backend": Table({"name": Text(), "sources": Text()}, others=Anything()),
                "device": Table({"name": Text(), "arch": Text()}, others=Anything()),
            },
            others=Anything(),
        ),
        "finished": Text(),
        "exit_status": Number(whole=True),
        "selected": Text(none=True),
        "tests": Table(others=Table({"outcome": Text()}, others=Anything())),
    },
    {"depth": Text()},
    others=Anything(),
)


@dataclass(frozen=True)
class Check:
    """A record of the kit: its file, what it `found` in a sentence, whether that is a tick's worth, and whether it is
    `stale`, of other code than today's."""

    path: Path
    found: str
    holds: bool
    stale: bool = False


def checks_of(folder: Path, backend: Backend, module: str, sources: Sources) -> list[Check]:
    """The kit's records beside the recipes in `folder`, of a backend whose plugin is `module`, by their files' names,
    held against the `sources`."""
    return [_check(path, backend, module, sources) for path in sorted((folder / FOLDER).glob("*.json"))]


def _check(path: Path, backend: Backend, module: str, sources: Sources) -> Check:
    try:
        check_source(path, f"reading {path}", "Check again")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        record = parse_json(data.decode())
        SHAPE.check(record, "it")
        _check_outcomes(record)
    except (OSError, ValueError, RecursionError) as error:
        return Check(path, f"broken: it is damaged: {error}", False)
    except InputError as error:
        return Check(path, f"broken: {error.found}", False)
    found, counts = record["fingerprint"], Counter(test["outcome"] for test in record["tests"].values())
    depth = record.get("depth")
    said = f"{'passed' if record['exit_status'] == 0 else 'did not pass'} on {found['device']['name']} "
    said += f"({found['device']['arch']}) on {record['finished'][:10]}"
    said += f", {f'depth {depth}' if depth else 'of no stated depth'}"
    said += f", only {record['selected']}" if record["selected"] else ""
    said += f": {', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items()))}"
    if changed := _changed(found, backend, module, sources):
        return Check(path, f"stale, {said}; since then {' and '.join(changed)}", False, stale=True)
    return Check(path, said, record["exit_status"] == 0 and depth == FULL and not record["selected"])


def _check_outcomes(record: dict[str, Any]) -> None:
    """Raises ValueError where the tests say otherwise than the exit status does."""
    counts = Counter(test["outcome"] for test in record["tests"].values())
    if strange := sorted(counts.keys() - OUTCOMES):
        raise ValueError(f"a test's outcome is {shown(strange[0])}")
    if record["exit_status"] == 0 and (not counts["passed"] or any(counts[outcome] for outcome in FAILED)):
        raise ValueError(f"its exit status is 0, and {'a test failed' if counts['passed'] else 'no test passed'}")


def _changed(found: dict[str, Any], backend: Backend, module: str, sources: Sources) -> list[str]:
    now = {
        "the contract changed": found["contract"] == API,
        "the kit changed": found["kit"] == kit_digest(sources),
        "the code changed": found["backend"]["sources"] == code_digest(backend, module, sources),
        f"it is of {backend.name}, not {found['backend']['name']}": found["backend"]["name"] == backend.name,
    }
    return [said for said, same in now.items() if not same]


def kit_digest(sources: Sources) -> str:
    """SHA-256 over the kit's own sources, and with them the tests and bounds that were applied."""
    folder = sources.root / CORE / "testing"
    return sha256_json(sha256_files(folder.rglob("*.py"), folder))


def code_digest(backend: Backend, module: str, sources: Sources) -> str:
    """SHA-256 over the files of a backend's package and of those that its rows come from, names included, without
    recipes, their records and the rows' notes: these may say whether a record knows the row."""
    modules: Sequence[str] = (module, *(kernel.build.__module__ for kernel in backend.kernels))
    found = {name: _files(name, sources.folder(name)) for name in sorted({one.partition(".")[0] for one in modules})}
    return sha256_json(found)


def _files(package: str, folder: Path | None) -> dict[str, str]:
    assert folder is not None, f"{package}, which a row comes from, is gone"
    inside = folder / package
    if not inside.is_dir():
        inside, files = folder, [folder / f"{package}.py"]
    else:
        parts = ((path, path.relative_to(inside).parts) for path in inside.rglob("*") if path.is_file())
        files = [path for path, names in parts if not {"__pycache__", RECIPES} & {*names}]
    return {path.relative_to(inside).as_posix(): _digest(path) for path in sorted(files)}


def _digest(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(_without_notes(data) if path.suffix == ".py" else data).hexdigest()


def _without_notes(source: bytes) -> bytes:
    """Python's source without the value of any argument `notes`. What is no Python is left as it is."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return source
    lines = source.splitlines(keepends=True)
    calls = (node for node in nodes if isinstance(node, ast.Call))
    notes = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "notes"]
    for value in sorted(notes, key=lambda value: (value.lineno, value.col_offset), reverse=True):
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        before, after = lines[first][: value.col_offset], lines[last][value.end_col_offset :]
        lines[first : last + 1] = [before + after]
    return b"".join(lines)
