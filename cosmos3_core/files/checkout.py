"""Which build of cosmos3 this is: its version, and in a checkout the commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from .. import __version__

CHECKOUT = Path(__file__).parents[2]
DIGITS = 9
"""Of a commit."""


def sources() -> Path | None:
    """The folder of the sources that this cosmos3 runs from: a clone, or what was unpacked of one. None where it was
    installed from a package."""
    return CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else None


@functools.cache
def build_version(checkout: Path = CHECKOUT) -> str:
    """The version, such as 0.1.0. In a git checkout with the commit, 0.1.0+g1a2b3c4d5, which ends in ".dirty" if its
    files differ from it. Without git or a commit the version alone."""
    if not (checkout / ".git").exists():
        return __version__
    try:
        commit = _git(checkout, "rev-parse", "HEAD")[:DIGITS]
        changed = _git(checkout, "status", "-s", "-uno")  # files that git does not know do not count
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{commit}{'.dirty' if changed else ''}"


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
