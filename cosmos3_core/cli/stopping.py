"""Stopping a run between two pieces of work, and saying so on a terminal that may be gone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""From the keyboard, from whoever started the process (Slurm, Docker, systemd), and from a terminal that closes."""


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Whether the user asked to stop. The first Ctrl-C, or whatever else asks a process to end, does, and lets the
    piece of work in hand end; the second stops at once."""
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        tell("stopping after what is under way (Ctrl-C again: at once)")

    # What nohup and the like have it ignore stays ignored.
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(line: str) -> None:
    """A line on stderr, which may be a terminal that was closed."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
