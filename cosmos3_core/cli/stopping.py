"""Stopping a run between two pieces of work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .terminal import tell

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""From the keyboard, from whoever started the process (Slurm, Docker, systemd), and from a terminal that closes."""


class Stop:
    """How often the user asked to stop. Called, it says whether they did.

    Signals interrupt nothing but a block of `at`, and of those no more than one: what comes after it, such as saving
    what was computed, goes on to its end, however many arrive.
    """

    at_once = True
    """It waits for nobody."""

    def __init__(self) -> None:
        self.count = 0
        self._limit: int | None = None

    def __call__(self) -> bool:
        return self.count > 0

    @contextmanager
    def at(self, count: int) -> Iterator[None]:
        """A block that the signal of this number ends at once, by a KeyboardInterrupt."""
        try:
            self._limit = count
            self._check()
            yield
        finally:
            self._limit = None

    def heard(self, number: int, frame: Any) -> None:
        """The handler of STOPS."""
        self.count += 1
        self._check()
        if self.count == 1:
            with suppress(RuntimeError):  # in the middle of another line that is printed
                tell("stopping after what is under way (Ctrl-C again: at once)")

    def _check(self) -> None:
        if self._limit is not None and self.count >= self._limit:
            self._limit = None
            raise KeyboardInterrupt


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """Ctrl-C, and whatever else asks a process to end, is counted for the time of the block."""
    stop = Stop()
    # What nohup and the like have it ignore stays ignored.
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.heard) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
