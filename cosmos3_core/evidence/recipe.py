"""A recipe: one way of running one model on a device or several, as a TOML file that asserts its own plan.

    title = "..."
    [run]           model, task, prompt, size, frames, steps, seed, profile, backend, dtype, high_precision_steps,
                    parallel: how `count` devices share it, "cfg=2,ulysses=4"
    [run.kernels]   op = "kernel": named, so met or refused
    [run.formats]   op = "quantization format": named, so met or refused
    [run.request]   any other request field
    [device]        name, arch, count, memory_gib: what it is for
    [plan]          op = "kernel": asserted before a weight is read, every time
    [expect]        seconds, peak_device_gib, peak_host_gib: upper bounds, checked after a run
    [known]         state, reason, note, source: what is known without a record of ours
    [validated]     written by `cosmos3 recipes validate` only

The file is called `<model>-<task>-<size>-<device>x<n>.toml`, with the formats before the device if there are any:
`nano-t2v-1280x720-fp8-attnfp8-h100x1.toml`; `high_precision_steps` "2,2" stand behind them as steps2_2. A task with
sound has an s more: t2vs.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

from ..contract import FORMATTED, OPS, Device, InputError
from ..files.digests import sha256_json
from ..files.sources import check_source
from ..plan import mesh
from ..plan.cost.units import GIB
from ..plan.known import names_alike
from ..quant.steps import OPTION, StepPolicy
from ..scenarios.action import GIVEN, OBSERVED
from ..scenarios.defaults import PROFILES
from ..scenarios.families import FILES, TASKS, sources
from ..scenarios.fields import FIELDS
from ..scenarios.request import check, check_keys
from ..spelling import did_you_mean
from .verdict import MODALITIES

STOCK_PROMPT = "a robot arm pours coffee into a cup"
STOCK_SEED = 0
"""A measurement that draws another seed each time measures the seed."""
KNOWN_STATES = ("rehearsed", "help wanted", "unsupported")
LARGEST = 1 << 18
"""Bytes of a recipe's file."""
SIZED_ALIKE = 0.9
"""A device reports less than the memory it is sold with."""

MOST = 1e9
"""Of any number here: counts, GiB and seconds."""

NUMBER = (int, float)
TABLES: dict[str, dict[str, Any]] = {
    "": {
        "title": str,
        "run": dict,
        "device": dict,
        "plan": dict,
        "expect": dict,
        "known": dict,
        "validated": dict,
    },
    "run": {
        "model": str,
        **{field.name: field.kind.type for field in FIELDS.values() if field.headline},
        "profile": str,
        "backend": str,
        "dtype": str,
        OPTION: str,
        "parallel": str,
        "kernels": dict,
        "formats": dict,
        "request": dict,
    },
    "run.kernels": dict.fromkeys(OPS, str),
    "run.formats": dict.fromkeys(FORMATTED, str),
    "device": {"name": str, "arch": str, "count": int, "memory_gib": NUMBER},
    "plan": dict.fromkeys(OPS, str),
    "expect": {"seconds": NUMBER, "peak_device_gib": NUMBER, "peak_host_gib": NUMBER},
    "known": {"state": str, "reason": str, "note": str, "source": str},
    "validated": {"state": str, "record": str, "sha256": str, "date": str},
}
REQUIRED = {
    "": ("title", "run", "device"),
    "run": ("model", "task", "size", "backend"),
    "device": ("name",),
    "known": ("state", "reason"),
    "validated": ("state", "record", "sha256", "date"),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe file, checked. `tables` is the file as parsed, `sha256` that of its canonical JSON without [validated],
    so that comments and layout may change and nothing else."""

    path: Path
    tables: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def run(self) -> dict[str, Any]:
        return self.tables["run"]

    @property
    def kernels(self) -> dict[str, str]:
        return self.run.get("kernels", {})

    @property
    def formats(self) -> dict[str, str]:
        return self.run.get("formats", {})

    @property
    def high_precision_steps(self) -> str | None:
        """As `StepPolicy.typed` takes them; without them a quantized checkpoint's own policy holds."""
        return self.run.get(OPTION)

    @property
    def parallel(self) -> str | None:
        """How several devices share the run, as `plan.mesh.typed` reads it; None of one."""
        return self.run.get("parallel")

    @property
    def device(self) -> dict[str, Any]:
        return {"count": 1} | self.tables["device"]

    @property
    def plan(self) -> dict[str, str]:
        return self.tables.get("plan", {})

    @property
    def expect(self) -> dict[str, float]:
        return self.tables.get("expect", {})

    @property
    def known(self) -> dict[str, str]:
        return self.tables.get("known", {"state": "help wanted", "reason": "nobody has measured it"})

    @property
    def validated(self) -> dict[str, str] | None:
        return self.tables.get("validated")

    def given(self) -> dict[str, Any]:
        """The request fields that the recipe sets. Paths of input media are taken from the recipe's folder."""
        given: dict[str, Any] = {"prompt": STOCK_PROMPT, "seed": STOCK_SEED}
        given |= {key: self.run[key] for key in FIELDS if key in self.run} | self.run.get("request", {})
        return put(given, {label: str(self.path.parent / path) for label, path in files_of(given).items()})

    @property
    def scenario(self) -> str:
        """The task, with an s if sound is made or given beside it."""
        given = self.run.get("request", {})
        heard = given.get("sound") or given.get("audio") is not None
        return f"{self.run['task']}s" if heard else self.run["task"]

    @property
    def made(self) -> tuple[str, ...]:
        """The modalities that its run makes, and that are judged."""
        task, given = self.run["task"], self.run.get("request", {})
        found = {"vision"} if task == GIVEN else {"action"} if task == OBSERVED else set(TASKS[task].latents)
        found |= {"sound"} if given.get("sound") and given.get("audio") is None else set()
        return tuple(one for one in MODALITIES if one in found)

    def check_device(self, found: Device, *, counted: bool) -> None:
        """InputError unless `found` is the device that the recipe is for, and where they are `counted` there are so
        many of it on this host."""
        wanted, memory = self.device, found.memory / GIB
        if "arch" in wanted and wanted["arch"] != found.arch:
            said = f"this is {found.name} ({found.arch})"
        elif not names_alike(wanted["name"], f"{found.name} {found.arch}"):
            said = f"this is {found.name}"
        elif counted and wanted["count"] > found.count:
            said = f"there is {found.count} of them here"
        elif memory < wanted.get("memory_gib", 0) * SIZED_ALIKE:
            said = f"this {found.name} has {memory:.0f} GiB"
        else:
            return
        needed = f"{wanted['count']} x {wanted['name']}"
        needed += f" ({wanted['arch']})" if "arch" in wanted else ""
        needed += f" with {wanted['memory_gib']:g} GiB" if "memory_gib" in wanted else ""
        next_step = "See cosmos3 recipes list, or copy the recipe and write your device into it"
        raise InputError(f"recipe {self.name}", f"it is for {needed}, and {said}", next_step)


def files_of(values: Mapping[str, Any]) -> dict[str, str]:
    """The files among a request's fields, by what `families.sources` calls each."""
    return sources({name: values[name] for name in FILES if values.get(name) is not None})


def put(values: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The fields with other `files` in the place of theirs."""
    found = dict(values)
    for label, path in files.items():
        name, _, key = label.partition(".")
        found[name] = {**found[name], key: path} if key else path
    return found


def load(path: Path) -> Recipe:
    """Read and check a recipe. Raises InputError that names the file, the table and the key."""
    asked, next_step = f"recipe {path}", "See cosmos3 recipes list"
    check_source(path, asked, next_step)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError(asked, f"it is larger than {LARGEST >> 10} KiB, which no recipe is", next_step)
        tables = tomllib.loads(data.decode(), parse_float=_finite)
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), next_step) from None
    except (ValueError, RecursionError) as error:
        found = f"it is not TOML with finite numbers ({error})"
        raise InputError(asked, found, "Correct it, or copy another recipe") from None
    _check_no_date(path.name, tables)
    _check_table(path.name, "", tables)
    recipe = Recipe(path, tables, sha256_json({key: table for key, table in tables.items() if key != "validated"}))
    _check_values(recipe)
    return recipe


def _check_no_date(name: str, value: Any) -> None:
    """InputError for TOML's dates and times, which nothing here is, and no JSON can say."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(one, date | time):
            raise InputError(f"{name}: {one}", "it is a date or a time", "Write text in quotes, or a number")
        _check_no_date(name, one)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} counts nothing")
    return value


@dataclass(frozen=True)
class Broken:
    """A file that should be a recipe, and what is wrong with it in one line."""

    path: Path
    fault: str

    @property
    def name(self) -> str:
        return self.path.stem


def load_all(folder: Path) -> list[Recipe | Broken]:
    """Every recipe of a folder, by name, and in their places the files that are none. Raises InputError if there is no
    such folder."""
    if not folder.is_dir():
        raise InputError(f"recipes in {folder}", "there is no such folder", "Name a `folder` of recipes")
    found: list[Recipe | Broken] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            found.append(load(path))
        except InputError as error:
            found.append(Broken(path, f"{error.asked.removeprefix(f'{path.name}: ')}: {error.found}"))
    return found


def find(name: str, folders: Sequence[Path]) -> Recipe:
    """A recipe by the path of its file, or by its name in one of the `folders`. Raises InputError where none or several
    have it."""
    if name.endswith(".toml"):
        return load(Path(name))
    paths = [path for folder in folders if os.path.lexists(path := folder / f"{name}.toml")]
    if len(paths) > 1:
        said = f"several packages have one of that name: {' and '.join(map(str, paths))}"
        raise InputError(f"recipe {name!r}", said, "Give the path of its file")
    if not paths:
        names = [path.stem for folder in folders for path in sorted(folder.glob("*.toml"))]
        hint = did_you_mean(name, names, "See cosmos3 recipes list")
        where = f"in {folders[0]}" if len(folders) == 1 else "in the installed packages"
        raise InputError(f"recipe {name!r}", f"there is none of that name {where}", hint)
    return load(paths[0])


def file_name(recipe: Recipe) -> str:
    """The name that the recipe's file has to have."""
    model = recipe.run["model"].rstrip("/").split("/")[-1].lower().removeprefix("cosmos3-")
    device = re.sub("[^a-z0-9]", "", recipe.device["name"].lower())
    formats = [
        f"{'attn' if op == 'attention' else ''}{name}" for op, name in sorted(recipe.formats.items(), reverse=True)
    ]
    formats += [f"steps{steps}"] if (steps := recipe.high_precision_steps) else []
    parts = [model, recipe.scenario, recipe.run["size"].replace(":", "_"), *formats]
    return re.sub(r"[^\w.-]", "_", "-".join([*parts, f"{device}x{recipe.device['count']}.toml"]))


def _check_table(file: str, name: str, table: Mapping[str, Any]) -> None:
    keys, asked = TABLES[name], f"{file}: [{name}]" if name else file
    for key, value in table.items():
        if key not in keys:
            hint = did_you_mean(key, list(keys), f"Keys are {', '.join(keys)}")
            raise InputError(f"{asked} {key!r}", "there is no such key", hint)
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            kinds = {str: "text", int: "a whole number", dict: "a table", NUMBER: "a number"}
            raise InputError(f"{asked} {key} = {value!r}", f"it is not {kinds[keys[key]]}", f"Make {key} one")
        inner = f"{name}.{key}" if name else key
        if inner in TABLES:
            _check_table(file, inner, value)
    for key in REQUIRED.get(name, ()):
        if key not in table:
            raise InputError(asked, f"it has no {key}", f"Add {key}; nano-t2v-1280x720-h200x1.toml is an example")


def _check_values(recipe: Recipe) -> None:
    file, run, extra = recipe.path.name, recipe.run, recipe.run.get("request", {})
    choices = [("run", "task", run["task"], tuple(TASKS)), ("known", "state", recipe.known["state"], KNOWN_STATES)]
    if "profile" in run:
        choices.append(("run", "profile", run["profile"], PROFILES))
    for table, key, value, allowed in choices:
        if value not in allowed:
            hint = did_you_mean(value, list(allowed), f"Choices are {', '.join(allowed)}")
            raise InputError(f"{file}: [{table}] {key} = {value!r}", "there is no such choice", hint)
    if twice := [key for key, field in FIELDS.items() if field.headline and key in extra]:
        raise InputError(f"{file}: [run.request] {twice[0]}", f"{twice[0]} belongs into [run]", "Move it there")
    try:
        check_keys(extra)
    except InputError as error:
        raise InputError(f"{file}: [run.request] {error.asked}", error.found, error.next_step) from None
    given = {key: run[key] for key in FIELDS if key in run} | extra
    if "keyframe" in given and not isinstance(given["keyframe"], dict):
        found, next_step = "paths in one text cannot be told apart", 'Write a table: keyframe = { 0 = "a.png" }'
        raise InputError(f"{file}: [run.request] keyframe", found, next_step)
    try:
        check(given, run.get("profile", PROFILES[0]), partial=True)
    except InputError as error:
        raise InputError(f"{file}: [run] {error.asked}", error.found, error.next_step) from None
    if (steps := recipe.high_precision_steps) is not None:
        try:
            StepPolicy.typed(steps)
        except InputError as error:
            raise InputError(f"{file}: [run] {OPTION} = {steps!r}", error.found, error.next_step) from None
    _check_layout(recipe)
    if "note" in recipe.known and "source" not in recipe.known:
        raise InputError(f"{file}: [known] note", "a number without whose it is", "Add source: who published it")
    bounds = {"count": recipe.device["count"], "memory_gib": recipe.device.get("memory_gib", 1)} | recipe.expect
    for key, value in bounds.items():
        if not 0 < value < MOST:
            raise InputError(
                f"{file}: {key} = {value}",
                "it is not above zero" if value <= 0 else "no device has that",
                f"Correct {key}",
            )
    if file != file_name(recipe):
        raise InputError(f"recipe {file}", "its name is not what it holds", f"Name it {file_name(recipe)}")


def _check_layout(recipe: Recipe) -> None:
    file, count = recipe.path.name, recipe.device["count"]
    if recipe.parallel is None:
        if count > 1:
            found, next_step = "it does not say how they share the run", 'Add parallel to [run], such as "cfg=2"'
            raise InputError(f"{file}: [device] count = {count}", found, next_step)
        return
    asked = f"{file}: [run] parallel = {recipe.parallel!r}"
    try:
        layout = mesh.typed(recipe.parallel)
    except InputError as error:
        raise InputError(asked, error.found, error.next_step) from None
    if layout.size == 1 or layout.size != count:
        found = f"it takes {layout.size} devices, and [device] has a count of {count}"
        raise InputError(asked, found, "Correct one of them, or leave both out for one device")
