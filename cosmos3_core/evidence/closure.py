"""Which sources a module computes with: its own and those of what it imports, found by reading, never by importing.

Imports count wherever they stand, also inside functions; a block for type checkers does not. A package's `__init__`
counts where something is imported from it, not where it merely stands above a module. Data files count if they lie
beside a module that spells their name, or their folder's. A package's recipes and their records are not.

Some modules hold the rows of a backend, and with them the build function of every kernel. Of these modules only the
definitions count that a build function reaches, with what those import.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..contract import RECIPES
from ..files.digests import sha256_file, sha256_json

CORE = "cosmos3_core"
DATA_NAME = re.compile(r"[\w-]+(\.\w+)?")


class Import(NamedTuple):
    """`name` of `module` (or with no name the module itself), under the name that it is `bound` to."""

    bound: str
    module: str
    name: str


class References(NamedTuple):
    """What code refers to: its imports, and its `texts` that could be the name of a file or folder."""

    imports: tuple[Import, ...]
    texts: frozenset[str]

    @classmethod
    def of(cls, trees: Iterable[ast.AST], package: str) -> References:
        """What stands in or below the nodes, in a module of that package."""
        nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        texts = {node.value for node in nodes if isinstance(node.value, str) and DATA_NAME.fullmatch(node.value)}
        return cls(tuple(_imports(trees, package)), frozenset(texts))


class Sources:
    """The sources of our packages: those under `root`, a checkout, go before installed ones. Each is taken to stay as
    it was when it was first asked for; `digests` keeps what was found, for the many records that ask for the same."""

    def __init__(self, root: Path):
        self.root = root
        self.digests: dict[tuple[str, ...], dict[str, str]] = {}
        self._folders: dict[str, Path | None] = {}

    def folder(self, package: str) -> Path | None:
        """The folder in which a top-level package or module lies, None if it is nowhere to be found."""
        if package not in self._folders:
            places = (self.root, *self.root.glob("backends/*"))
            checkout = next((place for place in places if (place / package).is_dir()), None)
            self._folders[package] = checkout or _installed(package)
        return self._folders[package]

    def file(self, module: str) -> Path | None:
        """A module's source, None if there is none."""
        first, *_ = parts = module.split(".")
        if (folder := self.folder(first)) is None:
            return None
        path = folder.joinpath(*parts)
        return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)

    def modules(self, name: str) -> list[str]:
        """The module of that name and, if it is a package, all inside it. None of them has to exist."""
        file = self.file(name)
        if file is None or file.name != "__init__.py":
            return [name] if file else []
        names = (path.relative_to(file.parent).with_suffix("").parts for path in file.parent.rglob("*.py"))
        return [name, *(".".join([name, *parts]) for parts in names if parts[-1] != "__init__")]

    def package_of(self, module: str) -> str:
        """What a relative import in the module starts from."""
        file = self.file(module)
        return module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]


class Closure:
    """The sources that `add_module` and `add_definition` have come to. Names that start with one of `outside`, and
    libraries, are not followed. Of the modules in `by_definition` only single definitions count."""

    def __init__(self, sources: Sources, outside: Iterable[str], by_definition: Iterable[str]):
        self.sources, self.outside, self.by_definition = sources, tuple(outside), set(by_definition)
        self.packages = {CORE, *(module.partition(".")[0] for module in self.by_definition)}
        self.digests: dict[str, str] = {}
        self._modules: set[str] = set()
        self._definitions: set[str] = set()

    def add_module(self, module: str) -> None:
        """A whole module, and what it imports."""
        file = self.sources.file(module)
        if module in self._modules or file is None or self._is_outside(module):
            return
        self._modules.add(module)
        self.add_file(file, module)
        self._follow(_references(file.read_text("utf-8"), self.sources.package_of(module)), module, file)

    def add_definition(self, module: str, name: str) -> None:
        """A module's definition of that name, those that it refers to, and what they import."""
        if module in self._modules or (file := self.sources.file(module)) is None:
            return
        text, waiting = file.read_text("utf-8"), [name]
        lines, definitions = text.split("\n"), _definitions(_parsed(text))
        while waiting:
            place = f"{self._label(file, module)}:{(name := waiting.pop())}"
            if place in self._definitions or name not in definitions:
                continue
            self._definitions.add(place)
            statements = definitions[name]
            if code := [node for node in statements if not isinstance(node, ast.Import | ast.ImportFrom)]:
                self.digests[place] = sha256_json([lines[_first_line(node) - 1 : node.end_lineno] for node in code])
            self._follow(References.of(statements, self.sources.package_of(module)), module, file)
            waiting += {node.id for tree in statements for node in ast.walk(tree) if isinstance(node, ast.Name)}

    def add_file(self, file: Path, module: str) -> None:
        """A file of the package that the module belongs to."""
        self.digests[self._label(file, module)] = sha256_file(file)

    def _follow(self, references: References, module: str, source: Path) -> None:
        for found in references.imports:
            if not self._is_ours(found.module):
                continue
            inner = f"{found.module}.{found.name}"
            if found.name and self.sources.file(inner):
                self.add_module(inner)
            elif found.module in self.by_definition and found.name not in ("", "*"):
                self.add_definition(found.module, found.name)
            else:
                self.add_module(found.module)
        for file in {file for text in references.texts for file in _data(source.parent / text)}:
            self.add_file(file, module)

    def _is_ours(self, module: str) -> bool:
        package = module.partition(".")[0]
        return package in self.packages or package.startswith("cosmos3_")

    def _is_outside(self, module: str) -> bool:
        return module == CORE or any(module == name or module.startswith(f"{name}.") for name in self.outside)

    def _label(self, file: Path, module: str) -> str:
        folder = self.sources.folder(module.partition(".")[0])
        assert folder is not None, f"{file} is of a package that is nowhere to be found"
        return file.relative_to(folder).as_posix()


def _installed(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not (places := [*(spec.submodule_search_locations or ()), spec.origin]):
        return None
    return Path(places[0]).parent


@functools.cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


@functools.cache
def _references(text: str, package: str) -> References:
    """Of a whole module. Many records ask for the same ones."""
    return References.of([_parsed(text)], package)


def _imports(trees: Iterable[ast.AST], package: str) -> Iterator[Import]:
    """Every import below the nodes, relative ones resolved, those for type checkers left out."""
    waiting = list(trees)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.asname or alias.name.partition(".")[0], alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(alias.asname or alias.name, base, alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and _for_type_checkers(node):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _definitions(tree: ast.Module) -> dict[str, list[ast.stmt]]:
    """The statements at the top of a module by the names that they bind."""
    found: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        if _for_type_checkers(statement):
            continue
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names = {statement.name}
        else:
            stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            names = stored | {found.bound for found in _imports([statement], "")}
        for name in names:
            found.setdefault(name, []).append(statement)
    return found


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])


def _data(path: Path) -> list[Path]:
    """The data file, or those in the folder, that a module spells; a package is no folder of data. Nothing is computed
    with recipes and their records."""
    if path.is_dir() and not any(path.glob("*.py")):
        inside = ((file, file.relative_to(path.parent).parts) for file in path.rglob("*") if file.is_file())
        return [file for file, parts in inside if not {"__pycache__", RECIPES} & {*parts}]
    return [path] if path.suffix and path.is_file() else []
