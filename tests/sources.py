"""The repository's own packages as source text: their modules, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields every module of a package: its dotted name, with `__init__` spelt out, and its file."""
    for path in sorted(folder.rglob("*.py")):
        yield ".".join(path.relative_to(folder.parent).with_suffix("").parts), path


def core_sources() -> Iterator[tuple[str, Path]]:
    """Yields every module of cosmos3_core."""
    yield from modules(ROOT / "cosmos3_core")


def backend_sources() -> Iterator[tuple[str, Path]]:
    """Yields every module of the packages in `backends/`."""
    for folder in sorted((ROOT / "backends").glob("*/cosmos3_*")):
        yield from modules(folder)


def imported(module: str, tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yields (line, the name it is bound to, the full dotted name of what is imported), wherever the import stands: in
    a function and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # `module` names a package by its __init__, so one level up from it is the package itself.
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, f"{base}.{alias.name}"
