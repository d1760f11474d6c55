"""How the Triton kernels are launched: tables by architecture, which ship with this package.

They are measured by `python -m cosmos3_cuda.tune`, and never while a model runs. What it measures on a user's machine
is for that build of that machine alone, and goes before what ships: the file's name has the build's fingerprint in it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BEFORE_TMA = ("sm_80", "sm_86", "sm_87", "sm_89")
"""Without the tensor memory accelerator, which elsewhere loads and stores the tiles of a matrix."""
SHIPPED = Path(__file__).parent / "launches"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A tile's sizes or the elements that a program takes, warps of 32 threads, and loads that are under way at a time.
    It holds for calls with up to `rows` rows. A `persistent` kernel has one program per multiprocessor, which loads a
    tile while it stores the one before; others have a program per tile."""

    warps: int
    stages: int = 3
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    elements: int = 0
    persistent: bool = False
    rows: float = math.inf


@dataclass(frozen=True)
class Table:
    """An architecture's launches, of each kernel for up to how many rows which, in rising order. `measured` says on
    what and with what; nothing where nothing was."""

    arch: str
    launches: Mapping[str, tuple[Launch, ...]]
    measured: Mapping[str, str] = field(default_factory=dict)

    @property
    def tma(self) -> bool:
        return self.arch not in BEFORE_TMA

    def launch(self, kernel: str, rows: int = 0) -> Launch | None:
        """For a call with so many rows; None where the kernel is not to be used for it."""
        return next((launch for launch in self.launches.get(kernel, ()) if rows <= launch.rows), None)


@functools.cache
def table(arch: str) -> Table:
    """What ships for the architecture, and before it what was measured here for this build. Raises ValueError for a
    file that holds anything else."""
    names = ["default", *(["before_sm_90"] if arch in BEFORE_TMA else []), arch]
    found = Table(arch, {})
    for path in [*(SHIPPED / f"{name}.toml" for name in names), measured_here(arch)]:
        if path.exists():
            found = read(path, found)
    return found


def read(path: Path, base: Table) -> Table:
    """The table with what a file says instead. Raises ValueError for a key that is none."""
    entries = tomllib.loads(path.read_text("utf-8"))
    measured = entries.pop("measured", {})
    try:
        launches = {kernel: tuple(Launch(**entry) for entry in listed) for kernel, listed in entries.items()}
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    return Table(base.arch, {**base.launches, **launches}, measured)


def measured_here(arch: str) -> Path:
    """Where `cosmos3_cuda.tune` keeps what it measured for this build."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "cosmos3" / "cuda" / f"{arch}-{build()[:16]}.toml"


@functools.cache
def build() -> str:
    """The fingerprint of what makes the kernels: this package's sources and Triton."""
    total = hashlib.sha256(f"triton {triton_version()}\n".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def origin(arch: str) -> str:
    """In a word, for `cosmos3 backends`, where the launches come from."""
    measured = table(arch).measured
    return (
        ", ".join(f"{key} {value}" if key != "device" else value for key, value in measured.items()) or "not measured"
    )


def written(found: Mapping[str, list[dict[str, Any]]], measured: Mapping[str, str]) -> str:
    """A table as TOML."""

    def lines(entry: Mapping[str, Any]) -> list[str]:
        spelt = {key: str(value).lower() if isinstance(value, int) else f'"{value}"' for key, value in entry.items()}
        return [f"{key} = {value}" for key, value in spelt.items()]

    parts = ["[measured]", *lines(measured), ""]
    for kernel, entries in found.items():
        for entry in entries:
            parts += [f"[[{kernel}]]", *lines(entry), ""]
    return "\n".join(parts)
