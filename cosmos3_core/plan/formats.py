"""Which quantization formats there are: the built-in ones, a backend's own, and those of packages without a device.

A package names an entry point of the group "cosmos3.formats" for each; its value is a `quant.Format`, or a tuple of
them. These packages are imported when a format is asked for that is neither built in nor the backend's, or when all
formats are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..contract import FORMATS_GROUP, Backend, InputError
from ..quant import ELEMENTS, FORMATS, SCALES, Format
from ..spelling import did_you_mean, reason_of
from .declared import inconsistent, mistyped

BUILT_IN = "cosmos3"
"""Who brings a format that no package does."""


@dataclass(frozen=True)
class Brought:
    """A format and who brings it: `BUILT_IN`, a backend, a package and its version."""

    format: Format
    by: str


@dataclass(frozen=True)
class Packages:
    """What the packages bring, by the formats' names, more than one entry where several claim it; and what is wrong
    with packages, one error for each."""

    brought: Mapping[str, Sequence[Brought]]
    faults: Sequence[InputError]


def known(backend: Backend) -> dict[str, Format]:
    """The formats that need no other package, by name."""
    return FORMATS | {format.name: format for format in backend.formats}


def completed(backend: Backend, asked: Mapping[str, str]) -> Backend:
    """The backend with the formats that are asked for, by op, where packages bring them. Raises InputError for a name
    that nobody brings, or more than one package."""
    for op, name in asked.items():
        if name not in ("none", *known(backend)):
            backend = replace(backend, formats=(*backend.formats, _of_packages(op, name, backend)))
    return backend


def listed(backends: Sequence[Backend]) -> tuple[dict[str, Brought], list[InputError]]:
    """Every format by name, with who brings it: cosmos3, one of these backends, or a package; and what is wrong with
    packages. Of a name that is claimed twice the first claim counts."""
    found = {name: Brought(format, BUILT_IN) for name, format in FORMATS.items()}
    for backend in backends:
        for format in backend.formats:
            found.setdefault(format.name, Brought(format, f"backend {backend.name}"))
    packages = of_packages()
    for name, claims in packages.brought.items():
        found.setdefault(name, claims[0])
    doubles = [_double(name, claims) for name, claims in packages.brought.items() if len(claims) > 1]
    return found, [*packages.faults, *doubles]


def of_packages() -> Packages:
    """Imports every package that brings formats."""
    brought: dict[str, list[Brought]] = {}
    faults = []
    for by, entry in _entries():
        try:
            for format in _loaded(by, entry):
                brought.setdefault(format.name, []).append(Brought(format, by))
        except InputError as error:
            faults.append(error)
    return Packages(brought, faults)


def complaint(format: object) -> str | None:
    """What is wrong with a format that a package or a backend brings, or None."""
    if type(format) is not Format:  # a class of one's own may count other bytes than it packs
        return f"it brings an object of type {type(format).__name__}, and a quant.Format is wanted"
    name = format.name
    if wrong := mistyped(format):
        return f"of its format {name!r} {wrong}"
    if name in (*FORMATS, "none") or not name or any(letter in "=,*" or letter.isspace() for letter in name):
        taken = "is built in" if name in FORMATS else "cannot be asked for by this name"
        return f"its format {name!r} {taken}"
    if format.own_element is None and format.element not in ELEMENTS:
        said = f"the element of its format {name} is {format.element!r}, which is none of {', '.join(ELEMENTS)}"
        return f"{said}, and there is no own_element"
    if format.own_element is not None and format.element in ELEMENTS:
        return f"its format {name} brings an element {format.element!r}, which is built in"
    for scale in filter(None, (format.scale, format.super_scale)):
        if scale not in SCALES:
            return f"a scale of its format {name} is {scale!r}, which is none of {', '.join(SCALES)}"
    if wrong := inconsistent(format):
        return f"its format {name}: {wrong}"
    if format.inputs is not None and format.inputs != FORMATS.get(format.inputs.name):
        return complaint(format.inputs)
    return None


def _of_packages(op: str, name: str, backend: Backend) -> Format:
    packages, asked = of_packages(), f"`format` {op}={name}"
    claims = packages.brought.get(name, ())
    if len(claims) > 1:
        double = _double(name, claims)
        raise InputError(asked, double.found, double.next_step)
    if claims:
        return claims[0].format
    found = f"neither cosmos3, nor backend {backend.name}, nor an installed package brings a format of that name"
    found += "".join(f"; {fault.asked}: {fault.found}" for fault in packages.faults)
    names = [*known(backend), *packages.brought]
    hint = did_you_mean(name, names, f"Formats are {', '.join(names)}")
    raise InputError(asked, found, hint)


def _double(name: str, claims: Sequence[Brought]) -> InputError:
    packages = [claim.by.partition(" ")[0] for claim in claims]
    found = f"it is brought by {' and '.join(claim.by for claim in claims)}, and cosmos3 does not choose between them"
    return InputError(f"format {name}", found, f"Type {' or '.join(f'pip uninstall {one}' for one in packages)}")


def _entries() -> Iterator[tuple[str, EntryPoint]]:
    """(package and version, entry point). What an interrupted pip leaves behind is the same package once more."""
    seen = set()
    for entry in sorted(entry_points(group=FORMATS_GROUP), key=lambda entry: (entry.name, entry.value)):
        package = entry.dist.name if entry.dist else entry.value
        if (package, entry.name) not in seen:
            seen.add((package, entry.name))
            yield f"{package} {entry.dist.version if entry.dist else '?'}", entry


def _loaded(by: str, entry: EntryPoint) -> tuple[Format, ...]:
    """What an entry point names. Raises InputError for what is no format."""
    package, asked = by.partition(" ")[0], f"formats of {by}"
    try:
        value: Any = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a package does not end the command
        fix = f"pip install --upgrade {package}, or tell its author"
        raise InputError(asked, f"loading {entry.value} raised {reason_of(error)}", fix) from None
    formats = value if isinstance(value, tuple) else (value,)
    for format in formats:
        if problem := complaint(format):
            raise InputError(asked, f"{entry.value}: {problem}", "Its author should correct it, or uninstall it")
    return formats
