"""Write docs/history.md: the records of the packages that are not of today's code, each with its date and commit.

python scripts/history.py
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cosmos3_core.evidence.checks import checks_of
from cosmos3_core.evidence.closure import Sources
from cosmos3_core.evidence.packages import in_tree, recipes_of
from cosmos3_core.evidence.recipe import Recipe
from cosmos3_core.evidence.record import path_of
from cosmos3_core.evidence.state import state_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "history.md"
HEAD = """# What earlier code measured

Written by `python scripts/history.py`; do not edit. These records say what was true of the code that they were made
with, and nothing of today's: what that does stands in [SUPPORT.md](SUPPORT.md). The commit is the one that brought the
record. A recipe leaves this page when somebody measures it again: `cosmos3 recipes validate NAME`. Benchmarks of an
H100 are of such code, too, and stand in [the tables](../benchmarks/README.md#results) with their device.
"""
RECIPES = (
    "| Recipe | Device | Date | Commit | Cold / warm | Reserved | First velocity's error | Record |\n"
    + 8 * "| --- "
    + "|\n"
)
KIT = "\n## The conformance kit\n\n| Package | Device | Date | Commit | Tests | Record |\n" + 6 * "| --- " + "|\n"
Commit = Callable[[str, str], str]
"""commit(file, words): the one that brought the file, by its path in the checkout, with words that it alone has."""
ROW = re.compile(r"\| ([0-9a-f]{7,}) \|.*\]\(\.\./(\S+)\) \|$", re.MULTILINE)


def render(commit: Commit) -> str:
    """The page."""
    packages, sources = in_tree(ROOT), Sources(ROOT)
    recipes = [
        _recipe(path_of(recipe), recipe, commit)
        for _, recipe in sorted(recipes_of(packages), key=lambda found: found[1].name)
        if isinstance(recipe, Recipe) and path_of(recipe).exists() and state_of(recipe, sources=sources).name == "stale"
    ]
    checks = [
        _check(check.path, package.name, commit)
        for package in packages
        if package.backend and package.backend.recipes
        for check in checks_of(package.backend.recipes, package.backend, package.module, sources)
        if check.stale
    ]
    parts = [HEAD, *(["\n## Recipes\n\n", RECIPES, *recipes] if recipes else []), *([KIT, *checks] if checks else [])]
    return "".join(parts)


def _recipe(path: Path, recipe: Recipe, commit: Commit) -> str:
    record, file = _read(path)
    raw = record["measurements"]["candidate"]["raw"]
    errors = (check["value"] for check in record["verdict"]["checks"] if check["quantity"] == "velocity_first")
    cells = (
        recipe.name,
        record["fingerprint"]["device"]["name"],
        record["date"],
        commit(file, record["sha256"]),
        f"{raw['cold']['seconds']:.1f} / {raw['warm']['seconds']:.1f} s",
        f"{raw['memory']['reserved_bytes'] / 2**30:.1f} GiB",
        f"{next(errors):.3f}",
        f"[raw](../{file})",
    )
    return f"| {' | '.join(cells)} |\n"


def _check(path: Path, package: str, commit: Commit) -> str:
    record, file = _read(path)
    counts = Counter(test["outcome"] for test in record["tests"].values())
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
    device, date = record["fingerprint"]["device"]["name"], record["finished"][:10]
    return f"| {' | '.join((package, device, date, commit(file, record['started']), told, f'[raw](../{file})'))} |\n"


def _read(path: Path) -> tuple[dict[str, Any], str]:
    return json.loads(path.read_text("utf-8")), path.relative_to(ROOT).as_posix()


def commits(page: str) -> Iterator[tuple[str, str]]:
    """(file, commit) of each record of a page."""
    return ((file, commit) for commit, file in ROW.findall(page))


def brought(file: str, words: str) -> str:
    """See `Commit`. Files move; the words of a record are of one commit only."""
    search = ["git", "log", "--format=%h", "--no-renames", f"-S{words}", "--", f"*{Path(file).name}"]
    found = subprocess.run(search, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return found[-1]


if __name__ == "__main__":
    PAGE.write_text(render(brought), encoding="utf-8")
