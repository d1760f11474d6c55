"""Which backends are installed, and loading the one that is asked for.

A package's entry point names its backend. To list names imports nothing; to load one imports that package and no other,
and whatever is wrong with it becomes one message with the package's name in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata
from pathlib import Path
from typing import TypeVar

import pluggy

from .. import __version__, contract, reference
from ..contract import (
    API,
    COMPOSITES,
    FORMATTED,
    GROUP,
    OPS,
    RECIPES,
    Backend,
    Ceiling,
    Device,
    InputError,
    Kernel,
    Tuning,
    Unavailable,
)
from ..files.checkout import sources
from ..spelling import did_you_mean, nearest, reason_of
from . import contract1, formats

T = TypeVar("T")
BUILT_IN = reference.BACKEND.name
ALL = "all"
"""In a list of disabled backends: every one that a package provides."""


@dataclass(frozen=True)
class Found:
    """A backend's name and the package that provides it, known without importing it. `value` is the entry point's,
    `module` or `module:attribute`; `rivals` are other packages that claim the name."""

    name: str
    package: str
    version: str
    value: str
    rivals: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"backend {self.name} of {self.package} {self.version}"


class Rejected(InputError):
    """An installed backend that cannot be used. `state` is "duplicate", "incompatible" or "broken"."""

    def __init__(self, state: str, asked: str, found: str, next_step: str):
        super().__init__(asked, found, next_step)
        self.state = state


def installed(disabled: Collection[str] = ()) -> dict[str, Found]:
    """The backends there are by name, `reference` first, less the `disabled` ones (names, or ALL). Imports none of
    them. Raises InputError for a disabled name that no package provides."""
    claims: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        # By package name: what an interrupted pip leaves behind is the same package once more, and no rival.
        package = entry.dist.name if entry.dist else None
        claims.setdefault(entry.name, {}).setdefault(package or entry.value, entry)
    taken = tuple(sorted(claims.pop(BUILT_IN, {})))
    for name in disabled:
        if name not in claims and name != ALL:
            hint = did_you_mean(name, [*claims, ALL], f"It takes {', '.join([*sorted(claims), ALL])}")
            raise InputError(f"COSMOS3_DISABLE_BACKENDS={name}", "no installed package provides it", hint)
    found = {BUILT_IN: Found(BUILT_IN, "cosmos3", __version__, reference.__name__, taken)}
    for name, entries in sorted(claims.items()):
        if name not in disabled and ALL not in disabled:
            package, *rivals = sorted(entries)
            entry = entries[package]
            version = entry.dist.version if entry.dist else None
            found[name] = Found(name, package, version or "?", entry.value, tuple(rivals))
    return found


def extras() -> tuple[str, ...]:
    """The backends this cosmos3 can be installed with: `pip install "cosmos3[NAME]"`. Other extras bring tools and
    libraries, and no cosmos3-NAME."""
    try:
        described = metadata("cosmos3")
    except PackageNotFoundError:  # sources on the path, not installed
        return ()
    names, required = (described.get_all(key) or () for key in ("Provides-Extra", "Requires-Dist"))
    return tuple(name for name in names if any(re.match(rf"cosmos3-{name}\b", one) for one in required))


def conflict(found: Found) -> Rejected | None:
    """What to tell the user where more than one package claims a name."""
    if not found.rivals:
        return None
    if found.name == BUILT_IN:
        packages, said = found.rivals, "too, and the name is cosmos3's own"
    else:
        packages, said = (found.package, *found.rivals), "and cosmos3 does not choose between them"
    unwanted = " or ".join(f"pip uninstall {package}" for package in packages)
    said = f"it is provided by {' and '.join(packages)} {said}"
    return Rejected("duplicate", f"backend {found.name}", said, f"Type {unwanted}")


def load(name: str, disabled: Collection[str] = ()) -> Backend:
    """Import the package that provides this backend, and no other, and check what it declares. Raises InputError for a
    name that nothing installed provides and `Rejected` for a package that is at fault."""
    found = _find(name, disabled)
    if name == BUILT_IN:
        return reference.BACKEND
    if error := conflict(found):
        raise error
    return _guarded(found, "loading it", lambda: _open(found), f"pip install --upgrade {found.package}")


def probe(backend: Backend) -> Device:
    """The backend's device. Raises `Unavailable` with the backend's sentence, and `Rejected` for a probe that fails in
    any other way."""
    who = f"backend {backend.name}"
    device = _guarded(who, "its probe()", backend.probe, "Upgrade its package", Unavailable)
    if problem := _odd(device):
        advice = "return a contract.Device with both from 1 on, or raise contract.Unavailable"
        raise _faulty(who, f"what its probe() returned {problem}", advice)
    return device


def _odd(device: object) -> str | None:
    """What is wrong with a package's description of a device, in words."""
    if not isinstance(device, Device):
        return f"is an object of type {type(device).__name__}"
    for key in ("arch", "name"):
        value = getattr(device, key)
        if not isinstance(value, str) or not value.strip():
            return f"has {'an' if key == 'arch' else 'a'} {key} of {value!r}"
    for key in ("count", "memory"):
        value = getattr(device, key)
        if not isinstance(value, int) or value < 1:
            return f"has a {key} of {value!r}"
    return None


def pip_install(extra: str) -> str:
    """The command that installs a backend: in a checkout from its folder, as the extra there means it."""
    folder = sources()
    return f'pip install -e "{folder}[{extra}]"' if folder else f'pip install "cosmos3[{extra}]"'


def check_op(op: str) -> None:
    """InputError for an op that does not exist."""
    if op not in OPS:
        raise InputError(f"a kernel for {op!r}", "there is no such op", f"Ops are {', '.join(OPS)}", "kernel")


def _find(name: str, disabled: Collection[str]) -> Found:
    here, asked = installed(disabled), f"`backend` {name}"
    if name in here:
        return here[name]
    if name in installed():
        raise InputError(asked, "COSMOS3_DISABLE_BACKENDS disables it", "Take it off that list")
    if name in extras():
        raise InputError(asked, "its package is not installed", f"Type {pip_install(name)}")
    hint = did_you_mean(name, {*here, *extras()}, f"Backends here: {', '.join(here)}")
    raise InputError(asked, "no installed package provides it", hint)


def _guarded(who: Found | str, doing: str, call: Callable[[], T], fix: str, *passing: type[Exception]) -> T:
    """A call into a package: an exception of any kind is the package's fault, and is told as such."""
    ours: tuple[type[BaseException], ...] = (KeyboardInterrupt, Rejected, *passing)
    try:
        return call()
    except ours:
        raise
    except BaseException as error:  # SystemExit too: a package does not end the command
        raise Rejected("broken", str(who), f"{doing} raised {reason_of(error)}", f"{fix}, or tell its author") from None


def _faulty(who: Found | str, found: str, advice: str) -> Rejected:
    return Rejected("broken", str(who), found, f"Its author should {advice}")


def _open(found: Found) -> Backend:
    plugin = EntryPoint(found.name, found.value, GROUP).load()
    manager = pluggy.PluginManager("cosmos3")  # of its own: no other plugin can answer for this one
    manager.add_hookspecs(contract)
    advice = "define `@hookimpl def cosmos3_backend() -> Backend` and put @hookimpl on nothing else"
    try:
        manager.register(plugin, found.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise _faulty(found, " ".join(str(error).split()), advice) from None
    if not manager.hook.cosmos3_backend.get_hookimpls():
        raise _faulty(found, f"{found.value} has no hook", advice)
    return _checked(found, manager.hook.cosmos3_backend())


def _checked(found: Found, backend: object) -> Backend:
    if not isinstance(backend, Backend):
        said = f"its cosmos3_backend() returned an object of type {type(backend).__name__}"
        raise _faulty(found, said, "return a contract.Backend")
    if type(backend.api) is not int:
        raise _faulty(found, f"its api is {backend.api!r}, which is no version of the contract", f"state api={API}")
    if backend.api not in (API - 1, API):
        said = f"it is written for contract {backend.api}, and this cosmos3 takes {API - 1} and {API}"
        older = found.package if backend.api < API else "cosmos3"
        raise Rejected("incompatible", str(found), said, f"Type pip install --upgrade {older}")
    if strangers := [row for row in backend.kernels if not isinstance(row, Kernel)]:
        raise _faulty(found, f"one of its rows is an object of type {type(strangers[0]).__name__}", "make it a Kernel")
    for key, kind in (("tuning", Tuning), ("ceilings", Ceiling)):
        for arch, value in getattr(backend, key).items():
            if not isinstance(value, kind):
                said = f"its {key} of {arch} is an object of type {type(value).__name__}"
                raise _faulty(found, said, f"make it a contract.{kind.__name__}")
    if isinstance(backend.known, Device):
        raise _faulty(found, "what it knows is one device, and no tuple of them", "write known=(Device(...),)")
    for one in backend.known:
        if problem := _odd(one):
            raise _faulty(found, f"a device that it knows {problem}", "describe it as its probe() would")
    if backend.recipes is not None and (not isinstance(backend.recipes, Path) or backend.recipes.name != RECIPES):
        said = f"its recipes are {backend.recipes!r}"
        raise _faulty(found, said, f'write recipes=Path(__file__).parent / "{RECIPES}"')
    names: set[str] = set()
    for format in backend.formats:
        if problem := formats.complaint(format):
            raise _faulty(found, problem, "make it a row of quant.Format with a name and parts of its own")
        if format.name in names:
            raise _faulty(found, f"it brings two formats named {format.name}", "give each a name of its own")
        names.add(format.name)
    if backend.api < API:
        backend = contract1.adapted(backend)
    _check_rows(found, backend)
    return backend


def _check_rows(found: Found, backend: Backend) -> None:
    if backend.name != found.name:
        said = f"its Backend is named {backend.name!r}"
        raise _faulty(found, said, "give the Backend and its entry point one name")
    seen = {(row.op, row.name): "eager torch, which every backend has" for row in reference.BACKEND.kernels}
    for row in backend.kernels:
        if complaint := _complaint(row, backend):
            raise _faulty(found, *complaint)
        if taken := seen.get((row.op, row.name)):
            said = f"its row {row.op}={row.name} has the name of {taken}"
            raise _faulty(found, said, "give every row of an op a name of its own")
        seen[row.op, row.name] = "another row"


def _complaint(row: Kernel, backend: Backend) -> tuple[str, str] | None:
    """(what is wrong with a row of the backend, what to do about it)."""
    if row.op not in OPS:
        advice = f"use {nearest(row.op, OPS) or ' or '.join(OPS)}"
        return f"its row {row.name} is for the op {row.op!r}, which does not exist", advice
    if row.name == "auto" or not row.name or any(letter in "=," or letter.isspace() for letter in row.name):
        said = f"its row {row.op}={row.name} cannot be asked for by this name"
        return said, "use another, without spaces, commas and ="
    who, apart = f"its row {row.op}={row.name}", [op for op in OPS if op not in COMPOSITES]
    for key in ("arch", "dtypes", "formats", "needs", "fuses"):
        if isinstance(getattr(row, key), str):
            said = f"{key} of its row {row.op}={row.name} is the text {getattr(row, key)!r}"
            return said, f"write a tuple: ({getattr(row, key)!r},)"
    if row.formats != ("none",) and row.op not in (*FORMATTED, *COMPOSITES):
        return f"{who} declares formats", f"leave them to {', '.join((*FORMATTED, *COMPOSITES))}"
    if "*" in row.formats and row.op in FORMATTED:
        return f"{who} declares every format, those of others too", "name those that it knows"
    if row.packed and row.op not in ("pack_linear", *COMPOSITES):
        return f"{who} takes packed weights", f"leave that to {', '.join(('pack_linear', *COMPOSITES))}"
    if row.widens and row.op != "pack_linear":
        return f"{who} widens weights", "leave that to pack_linear"
    if row.fuses and row.op not in COMPOSITES:
        return f"{who} fuses {', '.join(row.fuses)}", f"leave that to {' and '.join(COMPOSITES)}"
    if unknown := [op for op in row.fuses if op not in apart]:
        return f"{who} fuses {unknown[0]!r}, which is no op of its own", f"use {', '.join(apart)}"
    if (row.prepares or row.delegates) and row.op != "attention":
        return f"{who} prepares segments or delegates calls", "leave that to attention"
    others = {other.name: other for other in backend.kernels if other.op == row.op and other is not row}
    for delegate in row.delegates:
        other = others.get(delegate.to)
        if other is None or other.delegates or other.prepares:
            said = f"{who} delegates to {delegate.to!r}, which is no other row of {row.op} that serves by itself"
            return said, "name one that neither delegates nor prepares"
        if type(delegate.below) is not int:
            return f"{who} delegates calls below {delegate.below!r} queries", "give a number"
    return None
