"""What a measurement depends on besides the recipe: the code that computes, the chosen rows, versions, the device."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checkpoint.repository import ASSETS, EMBEDDED
from ..contract import Backend, Device, Kernel
from ..files.digests import sha256_json
from ..plan import Plan
from ..plan.choice import rows, tuning_of
from .closure import CORE, Closure, Sources

ROOT = Path(__file__).parents[2]
"""The checkout, or the folder of the installed package."""
ROOTS = (
    "model",
    "quant",
    "reference",
    "sampling",
    "plan.execution",
    "engine.passes",
    "scenarios.canvas",
    "scenarios.conditioning",
    "scenarios.controls",
    "scenarios.prompts",
)
"""The parts of the core that compute; what they import counts as well."""
OUTSIDE = ("cli", "files", "checkpoint", "runs", "evidence", "testing", "contract.errors", "spelling")
"""Parts that compute nothing, whoever imports them."""
DEFAULTS = "scenarios/defaults.toml"
CARD = "README.md"
"""Of the files of the model inside the package the one that nothing is computed with."""
LIBRARIES = ("torch",)
IMPORTERS = {"import_module", "__import__"}
NAMED = 5
"""Files that a sentence names at most."""


def fingerprint(
    backend: Backend, device: Device, kernels: Sequence[Kernel], *, embedded: bool, sources: Sources | None = None
) -> dict[str, Any]:
    """Of what is computed on these rows, with the `embedded` model if that is run, from `sources` (None: as they are
    now). The record keeps it; `differences` compares two."""
    sources, ordered = sources or Sources(ROOT), sorted(kernels, key=lambda kernel: (kernel.op, kernel.name))
    builds = sorted({place for kernel in ordered for place in places_of(kernel.build, sources)})
    needs = sorted({name.partition(".")[0] for kernel in ordered for name in kernel.needs})
    return {
        "kernels": [[kernel.op, kernel.name] for kernel in ordered],
        "rows": sha256_json([*map(row_facts, ordered), *map(asdict, backend.formats)]),
        "builds": builds,
        "files": _files(builds, embedded, sources),
        "versions": versions_of((*LIBRARIES, *needs)) | dict(device.versions),
        "device": {"backend": backend.name, "name": device.name, "arch": device.arch},
        "tuning": asdict(tuning_of(backend, device)),
    }


def chosen(plan: Plan) -> list[Kernel]:
    """The rows that a plan runs, each once: those for short calls too, and none for what is done inside another."""
    running = [choice for choice in plan.choices if choice.op not in plan.fused] + list(plan.kept)
    found = [kernel for c in running for kernel in (c.kernel, *(row for _, row in c.below))]
    return list({(kernel.op, kernel.name): kernel for kernel in found}.values())


def named(backend: Backend, kernels: Iterable[Sequence[str]]) -> list[Kernel]:
    """The backend's rows of today for a fingerprint's `kernels`."""
    return [row for op, name in kernels for row in rows(backend, op) if row.name == name]


def files_now(recorded: Mapping[str, Any], sources: Sources, *, embedded: bool) -> dict[str, str]:
    """The digests of the files that a fingerprint's kernels compute with today, from the sources alone. Of a package
    that is not here nothing is known, so its files count as they were."""
    gone = {name: old for name, old in recorded["files"].items() if sources.folder(re.split("[/.]", name)[0]) is None}
    return _files(recorded["builds"], embedded, sources) | gone


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two fingerprints differ in, in words; a part or name that is unknown now is not counted, such as
    the version of a library that nothing is computed with any more."""
    if missing := [part for part in ("files", "tuning") if part not in recorded]:
        return [f"records name the {' and '.join(missing)} they were measured with, and this one does not"]
    said, old, new = [], recorded["files"], now["files"]
    if changed := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        said.append(f"the code changed: {', '.join(changed[:NAMED])}{more}")
    if now.get("rows", recorded["rows"]) != recorded["rows"]:
        said.append("the backend declares its rows otherwise")
    for table in ("versions", "device", "tuning"):
        new = now.get(table, recorded[table])
        for name, value in sorted(new.items()):
            if (old_value := recorded[table].get(name)) != value:
                said.append(f"{name} was {old_value} and is {value}")
    return said


def row_facts(kernel: Kernel) -> dict[str, Any]:
    """What a row declares of itself, as JSON."""
    code_or_prose = ("build", "refuse", "notes")
    facts = {field.name: getattr(kernel, field.name) for field in fields(kernel) if field.name not in code_or_prose}
    facts["delegates"] = [asdict(delegate) for delegate in kernel.delegates]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed versions, None of what is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def places_of(build: Callable[[Device], Any], sources: Sources) -> set[str]:
    """Where the code of a row's build function stands, as "module:definition"; and the "module" for each that a
    factory told it to import by name. Where that cannot be known, the whole package."""
    places, package = set(), ""
    for part in _parts(build):
        if inspect.isroutine(part) or inspect.isclass(part):
            module = part.__module__ or ""
            package = package or module.partition(".")[0]
            if module.partition(".")[0] == package or module.startswith("cosmos3_"):
                places.add(f"{module}:{part.__qualname__.partition('.')[0]}")
        elif sources.file(named := f"{sources.package_of(module)}.{part}"):
            places.add(named)
    imports = {name for part in _parts(build) for name in getattr(getattr(part, "__code__", None), "co_names", ())}
    if imports & IMPORTERS and not any(":" not in place for place in places):
        places.add(package)
    return places


def _parts(value: Any) -> Iterator[Any]:
    """The functions and classes that a callable is made of, each before the strings that are bound to it."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, str):
            yield part
        elif isinstance(part, functools.partial):
            waiting += [*part.args, *part.keywords.values(), part.func]
        elif inspect.ismethod(part):
            waiting += [part.__self__, part.__func__]
        elif inspect.isfunction(part := inspect.unwrap(part) if callable(part) else part):
            yield part
            for cell in part.__closure__ or ():
                with suppress(ValueError):  # a cell that is not filled yet
                    waiting.append(cell.cell_contents)
        elif inspect.isclass(part) or inspect.isroutine(part):
            yield part
        elif callable(part):
            waiting += [*getattr(part, "__dict__", {}).values(), type(part)]


def _files(builds: Sequence[str], embedded: bool, sources: Sources) -> dict[str, str]:
    asked = (*builds, EMBEDDED) if embedded else tuple(builds)
    if asked not in sources.digests:
        sources.digests[asked] = _found(builds, embedded, sources)
    return sources.digests[asked]


def _found(builds: Sequence[str], embedded: bool, sources: Sources) -> dict[str, str]:
    roots = [module for name in ROOTS for module in sources.modules(f"{CORE}.{name}")]
    definitions = [place.split(":") for place in builds if ":" in place]
    found = Closure(sources, [f"{CORE}.{name}" for name in OUTSIDE], [module for module, _ in definitions])
    for module in roots:
        found.add_module(module)
    for place in builds:
        for module in sources.modules(place) if ":" not in place else ():
            found.add_module(module)
    for module, name in definitions:
        found.add_definition(module, name)
    core = ROOT / CORE
    data = [core / DEFAULTS, *((core / ASSETS.name / EMBEDDED).rglob("*") if embedded else ())]
    for file in data:
        if file.is_file() and file.name != CARD:
            found.add_file(file, CORE)
    return dict(sorted(found.digests.items()))
