"""The stages of a run, by name: who is told how far each is, who may stop it, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..contract import Cosmos3Error, InputError


class Cancelled(Cosmos3Error):
    """The caller asked to stop, and the run did, between two pieces of work. Exit code 130, as after Ctrl-C."""

    exit_code = 130


class Watch:
    """Who is told how far a generation is, and who may stop it.

    `progress(stage, done, total)` is called as a stage begins, with 0 done, and with each part of it that is done:
    layers of "read prompts", chunks of "encode input", steps of "steps", frames of "decode"; a component that is loaded
    is one part. What it raises ends the call that it was made in. `cancel` has `is_set()`, as a threading.Event, or is
    called and returns whether to stop. It is asked before each part; then `Cancelled` is raised, and a generation that
    had begun is as it was after its last whole step.
    """

    def __init__(self, progress: Callable[[str, int, int], object] | None = None, cancel: Any = None):
        asks = getattr(cancel, "is_set", cancel)
        for name, value in (("progress", progress), ("cancel", asks)):
            if value is not None and not callable(value):
                found = f"{value!r} cannot be called"
                raise InputError(f"`{name}` of a generation", found, "Give a function, or for `cancel` an Event")
        self._tell, self._asks = progress, asks

    def check(self, stage: str, done: int, total: int) -> None:
        """Raises Cancelled if it was asked for."""
        if self._asks is not None and self._asks():
            next_step = "Start it again, or go on with its state if it has begun"
            raise Cancelled(f"{stage}, {done} of {total} done", "the generation was cancelled", next_step)

    def tell(self, stage: str, done: int, total: int) -> None:
        """So many parts of a stage are done."""
        if self._tell is not None:
            self._tell(stage, done, total)


SILENT = Watch()


class Stages:
    """`watch` is that of the generation in hand; `seconds` sums up how long each stage took."""

    def __init__(self) -> None:
        self.watch = SILENT
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what runs inside to a stage, without telling: a stage may come in pieces."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @contextmanager
    def stage(self, name: str, parts: int = 0) -> Iterator[Callable[[], None]]:
        """A whole stage: told and timed. What it yields is to be called before each of its `parts`, if it has any."""
        done, total = 0, parts or 1

        def begin_part() -> None:
            nonlocal done
            self.watch.check(name, done, total)
            self.watch.tell(name, done, total)
            done += 1

        if not parts:
            begin_part()
        with self.timed(name):
            yield begin_part
        self.watch.tell(name, total, total)
