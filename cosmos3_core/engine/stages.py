"""The stages of a run, by name: who is told of them, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """`tell` is called with a stage's name as it begins; `seconds` sums up how long each took."""

    def __init__(self, tell: Callable[[str], None]):
        self.tell = tell
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what runs inside to a stage, without telling: a stage may come in pieces."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A whole stage: told and timed."""
        self.tell(name)
        with self.timed(name):
            yield
