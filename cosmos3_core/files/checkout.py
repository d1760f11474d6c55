"""Which build of cosmos3 this is: its version, and in a checkout the commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from .. import __version__

CHECKOUT = Path(__file__).parents[2]


@functools.cache
def build_version(checkout: Path = CHECKOUT) -> str:
    """The version, such as 0.1.0. In a git checkout with the commit, 0.1.0+g1a2b3c4d5, which ends in ".dirty" if its
    files differ from it. Without git or a commit the version alone."""
    if not (checkout / ".git").exists():
        return __version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=9"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{commit}"
