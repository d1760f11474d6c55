"""The package of docs/writing-a-backend.md, as files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "writing-a-backend.md"
BLOCK = re.compile(r"^`([\w./-]+)`[^\n]*:.*?\n\n```(?:toml|python)\n(.*?)```", re.S | re.M)
PLUGIN = "cosmos3_acme/plugin.py"
RECIPE = "embedded-t2i-64x64-acmeonex1"
FILES = [
    "pyproject.toml",
    PLUGIN,
    "cosmos3_acme/attention.py",
    "cosmos3_acme/format.py",
    "cosmos3_acme/finish.py",
    PLUGIN,
    f"cosmos3_acme/recipes/{RECIPE}.toml",
]
"""In the page's order: three of the first chapter, two of the second, two of the third."""
BLOCKS = [(name, code) for name, code in BLOCK.findall(PAGE.read_text("utf-8"))]


def package(chapters: int = 3) -> dict[str, str]:
    """The files after so many chapters. What the third says of the plugin stands in the place of its last lines."""
    files = dict(BLOCKS[: {1: 3, 2: 5, 3: 5}[chapters]])
    if chapters == 3:
        (_, end), recipe = BLOCKS[5:]
        files |= {PLUGIN: files[PLUGIN].partition("@hookimpl")[0] + end, recipe[0]: recipe[1]}
    return files


def write(folder: Path, chapters: int = 3) -> None:
    for name, text in package(chapters).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def commands() -> list[str]:
    """The page's lines that are typed, in its order."""
    blocks = re.findall(r"^```sh\n(.*?)```", PAGE.read_text("utf-8"), re.S | re.M)
    return [line for block in blocks for line in block.splitlines()]
