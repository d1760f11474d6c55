"""Which packages have a backend, and the recipes and the kit's records that each of them carries."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from .. import __version__, reference
from ..contract import RECIPES, Backend, InputError
from ..plan.discovery import Rejected, installed, load
from .closure import CORE
from .recipe import Broken, Recipe, load_all


@dataclass(frozen=True)
class Package:
    """A package by its name and version, its plugin's `module`, and the backend there, or the `fault` for which there
    is none."""

    name: str
    version: str
    module: str
    backend: Backend | None
    fault: str = ""

    @property
    def recipes(self) -> Path | None:
        """The folder of its recipes, if it has any."""
        return self.backend.recipes if self.backend else None


def installed_packages(disabled: Collection[str] = ()) -> list[Package]:
    """The installed packages, cosmos3 itself first, whether they load or not. Raises InputError for a name in
    `disabled` that no package provides."""
    found = []
    for one in installed(disabled).values():
        module = one.value.partition(":")[0]
        try:
            found.append(Package(one.package, one.version, module, load(one.name)))
        except Rejected as error:
            found.append(Package(one.package, one.version, module, None, str(error)))
    return found


def in_tree(root: Path) -> list[Package]:
    """The packages of the checkout `root`, installed or not. Raises InputError for one that does not load."""
    core = replace(reference.BACKEND, recipes=root / CORE / RECIPES)
    found, path = [Package("cosmos3", __version__, reference.__name__, core)], list(sys.path)
    sys.path[:0] = [str(package.parent) for package in sorted(root.glob("backends/*/cosmos3_*"))]
    try:
        for plugin in sorted(root.glob("backends/*/cosmos3_*/plugin.py")):
            module = f"{plugin.parent.name}.plugin"
            try:
                backend = import_module(module).cosmos3_backend()
                project = tomllib.loads((plugin.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
            except Exception as error:  # whatever is wrong with a plugin, the page cannot be made
                said = f"it does not load ({type(error).__name__}: {error})"
                raise InputError(f"{plugin.relative_to(root)}", said, "Correct the plugin") from error
            if backend.recipes:  # of this checkout, wherever the module was imported from
                backend = replace(backend, recipes=plugin.parent / RECIPES)
            found.append(Package(project["name"], project["version"], module, backend))
    finally:
        sys.path[:] = path
    return found


def recipes_of(packages: Sequence[Package]) -> Iterator[tuple[Package, Recipe | Broken]]:
    """The recipes of the packages. What is no recipe, a package that does not load and a folder that is missing each
    stand in the place of theirs."""
    for package in packages:
        if package.fault:
            yield package, Broken(Path(package.name), package.fault)
        elif package.recipes:
            try:
                yield from ((package, one) for one in load_all(package.recipes))
            except InputError as error:
                yield package, Broken(Path(package.name), f"{error.asked}: {error.found}")
