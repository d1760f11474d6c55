"""How the Triton kernels are launched: tables by architecture, which ship with this package and with backends.

They are measured by `python -m cosmos3_triton.tune`, and never while a model runs. What it measures on a user's machine
is for that GPU and that build alone, and goes before what ships: the file's name has the fingerprint of both in it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .targets import TARGETS, Target

BEFORE_TMA = ("sm_80", "sm_86", "sm_87", "sm_89")
"""NVIDIA's without the tensor memory accelerator, which on newer ones loads and stores the tiles of a matrix."""
SHIPPED = Path(__file__).parent / "launches"
TRITONS = ("triton", "triton-rocm", "triton-xpu", "pytorch-triton-rocm", "pytorch-triton-xpu")
"""The packages that Triton comes in: torch's build for a vendor's GPUs brings that vendor's."""
TILE = {"block_m", "block_n", "warps", "stages"}
PRODUCT = TILE | {"block_k", "persistent"}
KERNELS = {
    "flash": TILE,
    "eight_bit": TILE | {"text"},
    "ranges": {"block_n", "warps"},
    "add_segment": TILE,
    "scaled_mm": PRODUCT | {"rows"},
    "adding_mm_8bit": PRODUCT,
    "gated_mm_8bit": PRODUCT,
    "gated_mm_16bit": PRODUCT,
    "a16_mm": TILE | {"rows", "split"},
    "patch_embed": TILE | {"block_k"},
    "rms_norm": {"warps"},
    "norm_rope": {"warps"},
    "gate": {"elements", "warps"},
    "gate_rows": {"warps"},
    "norm_silu": {"elements", "warps"},
}
"""What a launch of each says; of these, `OPTIONAL` may be left out. Those with `rows` may have several launches."""
OPTIONAL = {"persistent", "rows", "split", "text"}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A tile's sizes or the elements that a program takes, warps (of as many threads as the architecture's have), and
    loads that are under way at a time. It holds for calls with up to `rows` rows. A `persistent` kernel has one program
    per multiprocessor, which loads a tile while it stores the one before; others have a program per tile, or `split` of
    them, which sum over a part of the features each. `text`: keys of a block in 16 bits beside blocks in 8."""

    warps: int
    stages: int = 3
    block_m: int = 0
    block_n: int = 0
    block_k: int = 0
    elements: int = 0
    persistent: bool = False
    split: int = 1
    text: int = 64
    rows: float = math.inf


Launches = Mapping[str, tuple[Launch, ...]]


@dataclass(frozen=True)
class Table:
    """An architecture's launches, of each kernel for up to how many rows which, in rising order. `origin` says in a
    word, for `cosmos3 backends` and for records, where they come from."""

    arch: str
    launches: Launches
    origin: str = "not measured"

    @property
    def target(self) -> Target | None:
        return TARGETS.get(self.arch)

    @property
    def tma(self) -> bool:
        return self.arch.startswith("sm_") and self.arch not in BEFORE_TMA

    def find(self, kernel: str, rows: int = 0) -> Launch | None:
        """For a call with so many rows; None where the kernel is not to be used for it."""
        return next((launch for launch in self.launches.get(kernel, ()) if rows <= launch.rows), None)

    def launch(self, kernel: str, rows: int = 0) -> Launch:
        """As `find`, of a kernel that is to be used. KeyError for another."""
        if (found := self.find(kernel, rows)) is None:
            raise KeyError(f"{self.arch} has no launch of {kernel} for {rows} rows")
        return found


Find = Callable[..., Table]
"""Tables of a backend's rows: called as `table`, with an architecture and perhaps the name of a device."""


@functools.cache
def table(arch: str, device: str | None = None, own: Path | None = None) -> Table:
    """What ships for the architecture: with this package, and before that in `own`, a file of a backend. Before both,
    what was measured here on the device of that name. Raises ValueError for a file that is none of ours, and for a
    launch that the architecture cannot have."""
    launches: dict[str, tuple[Launch, ...]] = {}
    origin = Table.origin
    names = ["default", *(["before_sm_90"] if arch in BEFORE_TMA else []), arch]
    shipped = [path for name in names if (path := SHIPPED / f"{name}.toml").exists()]
    for path in [*shipped, *([own] if own else [])]:
        found, measured = read(path)
        launches |= found
        origin = measured or origin
    if device is not None and _is_file(path := measured_here(arch, device)):
        found, _ = read(path)
        launches |= found
        origin += f"; {', '.join(sorted(found))}: here ({hashlib.sha256(path.read_bytes()).hexdigest()[:8]})"
    for kernel, found_launches in launches.items():
        for launch in found_launches:
            if reason := unfit(arch, kernel, launch):
                raise ValueError(f"{arch}: a launch of {kernel} {reason}")
    return Table(arch, launches, origin)


def unfit(arch: str, kernel: str, launch: Launch) -> str | None:
    """Why the architecture cannot have the launch, where it is one that is known. A compiler looks at neither."""
    target, tiles = TARGETS.get(arch), in_flight(arch, kernel, launch)
    if target is not None and launch.warps * target.warp > target.threads:
        return f"asks for {launch.warps} warps of {target.warp} threads, and a program has {target.threads} at most"
    if target is not None and tiles > target.shared:
        return f"holds tiles of {tiles:,} bytes in shared memory, and there are {target.shared:,}"
    return None


HEAD_DIM = 128
"""Of the widest heads that attention's kernels are for."""


def in_flight(arch: str, kernel: str, launch: Launch) -> int:
    """Bytes of the operands' tiles that are in shared memory at a time. AMD's compiler loads the tiles of the last
    stage to registers."""
    keys, one = launch.block_n * HEAD_DIM, (launch.block_m + launch.block_n) * launch.block_k
    tiles = {
        "flash": 4 * keys,
        "eight_bit": max(2 * keys, 4 * launch.text * HEAD_DIM),
        "add_segment": 3 * keys,
        "scaled_mm": one,
        "adding_mm_8bit": one,
        "gated_mm_8bit": one,
        "gated_mm_16bit": 2 * one,
        "patch_embed": 2 * one,
    }.get(kernel, 0)
    return tiles * max(launch.stages - arch.startswith("gfx"), 1)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # of another user, say
        return False


def read(path: Path) -> tuple[dict[str, tuple[Launch, ...]], str]:
    """A file's launches, and on what and with what they were measured. Raises ValueError for anything else in it."""
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
        measured = entries.pop("measured", {})
        found = {kernel: tuple(_launch(kernel, entry) for entry in listed) for kernel, listed in entries.items()}
        for kernel, launches in found.items():
            rows = [launch.rows for launch in launches]
            if rows != sorted(set(rows)):
                raise ValueError(f"{kernel} has two launches for {rows[0]:g} rows, or not in rising order")
        origin = f"{measured['device']}, triton {measured['triton']}" if measured else ""
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # of TOML, or of another shape than a table's
        raise ValueError(f"{path}: {error}") from None
    return found, origin


def _launch(kernel: str, entry: Mapping[str, Any]) -> Launch:
    if (known := KERNELS.get(kernel)) is None:
        raise ValueError(f"there is no kernel {kernel}; there are {', '.join(KERNELS)}")
    if wrong := (set(entry) - known) | (known - OPTIONAL - set(entry)):
        raise ValueError(f"a launch of {kernel} says {', '.join(sorted(known))}; look at {', '.join(sorted(wrong))}")
    for key, value in entry.items():
        if type(value) is not (bool if key == "persistent" else int) or value < (key != "persistent"):
            raise ValueError(f"a launch of {kernel} has {key} = {value!r}")
    return Launch(**entry)


def measured_here(arch: str, device: str) -> Path:
    """Where `cosmos3_triton.tune` keeps what it measured on this device for this build."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return cache / "cosmos3" / "triton" / f"{arch}-{fingerprint(device)[:16]}.toml"


@functools.cache
def fingerprint(device: str) -> str:
    """Of the device and of what makes the kernels: this package's sources and Triton."""
    total = hashlib.sha256(f"{device}, triton {triton_version()}\n".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def triton_version() -> str:
    for package in TRITONS:
        with suppress(PackageNotFoundError):
            return version(package)
    return "none"


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
