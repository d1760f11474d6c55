"""The host's memory, as the operating system tells it."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that the host could give without taking them from a program; in a container no more than it may have."""
    lines = MEMINFO.read_text().splitlines() if MEMINFO.exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    free = available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    most, used = _number("memory.max"), _number("memory.current")
    return free if most is None or used is None else min(free, max(0, most - used + (_cached() or 0)))


def _number(name: str) -> int | None:
    """Of the control group; None where there is none, or no bound."""
    try:
        return int((GROUP / name).read_text())
    except (OSError, ValueError):
        return None


def _cached() -> int | None:
    """Bytes of files that the group would let go."""
    try:
        lines = (GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), None)
