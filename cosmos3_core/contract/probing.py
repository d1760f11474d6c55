"""What the probes of several backends have in common."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import Unavailable


def check_visible(available: bool, kind: str, vendor: str, tool: str) -> None:
    """Raises Unavailable where torch sees no device of a `kind`, such as GPU; the vendor's `tool` lists them."""
    if not available:
        raise Unavailable(f"no {kind} is visible to the {vendor} driver; {tool} says what the driver sees")


def alike(kinds: Sequence[Any]) -> int:
    """How many devices are of the first one's kind: a kind is whatever tells two apart, of each device in order."""
    return sum(kind == kinds[0] for kind in kinds)


def versions(*packages: str) -> dict[str, str]:
    """The versions of those of the packages, named as pip names them, that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
