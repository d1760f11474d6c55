"""The stages of a run, by name: who is told how far each is, who may stop it, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

from ..contract import Cosmos3Error, InputError
from ..spelling import shown


class Cancelled(Cosmos3Error):
    """The caller asked to stop, and the run did, between two pieces of work. Exit code 130, as after Ctrl-C."""

    exit_code = 130


class Watch:
    """Who is told how far a generation is, and who may stop it.

    `progress(stage, done, total)` is called as a stage begins, with 0 done, and with each part of it that is done:
    layers of "read prompts", chunks of "encode input", steps of "steps", frames of "decode"; a component that is loaded
    is one part. What it raises ends the call that it was made in. `cancel` has `is_set()`, as a threading.Event, or is
    called and returns whether to stop. It is asked before each part; then `Cancelled` is raised, and a generation that
    had begun is as it was after its last whole step. One that answers `at_once`, as an event does, is asked before each
    tensor of a component, too: nobody else has the engine meanwhile, and a function might wait for who has not.
    """

    def __init__(self, progress: Callable[[str, int, int], object] | None = None, cancel: Any = None):
        asks = getattr(cancel, "is_set", cancel)
        for name, value in (("progress", progress), ("cancel", asks)):
            if value is not None and (not callable(value) or isinstance(cancel, type)):
                a_class = isinstance(cancel, type)
                found = f"{shown(cancel)} is a class" if a_class else f"{shown(value)} cannot be called"
                raise InputError(f"`{name}` of a generation", found, "Give a function, or for `cancel` an Event", name)
        self._tell, self._asks = progress, asks
        self.at_once: bool = getattr(cancel, "at_once", asks is not cancel)
        self.asked()

    def asked(self) -> bool:
        """Whether to stop. Raises InputError for an answer that is neither yes nor no."""
        if self._asks is None or (answer := self._asks()) is False:
            return False
        if answer is not True:
            found = f"asked whether to stop, it returned a {type(answer).__name__}"
            raise InputError("`cancel` of a generation", found, "Return True or False", "cancel")
        return True

    def check(self, stage: str, done: int, total: int) -> None:
        """Raises Cancelled if it was asked for."""
        if self.asked():
            next_step = "Start it again, or go on with its state if it has begun"
            raise Cancelled(f"{stage}, {done} of {total} done", "the generation was cancelled", next_step)

    def tell(self, stage: str, done: int, total: int) -> None:
        """So many parts of a stage are done."""
        if self._tell is not None:
            self._tell(stage, done, total)


SILENT = Watch()


@dataclass
class Loading:
    """A component that is being loaded: bytes that were read, of how many, and since when."""

    done: int
    total: int
    begun: float


class Turn:
    """A lock that its holder may hand on for a while, however many times over it is held."""

    def __init__(self) -> None:
        self._lock, self._depth = RLock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """What runs inside holds nothing."""
        depth, self._depth = self._depth, 0
        for _ in range(depth):
            self._lock.release()
        try:
            yield
        finally:
            interrupt = None
            for _ in range(depth):
                while True:
                    try:
                        self._lock.acquire()
                        break
                    except BaseException as error:  # Ctrl-C: its holder is to have what it then gives back
                        interrupt = error
            self._depth = depth
            if interrupt is not None:
                raise interrupt


class Stages:
    """`watch` is that of the generation in hand; `seconds` sums up how long each stage took, `own` how long of it for
    this generation, and `begun` is the name of the one that began last. The caller's functions are called with the
    `turn` handed on: they may wait for a thread that uses the same engine, and none waits for them."""

    def __init__(self) -> None:
        self.turn, self.watch = Turn(), SILENT
        self.seconds: dict[str, float] = {}
        self.own: dict[str, float] = {}
        self.begun = ""
        self.loading: Loading | None = None
        self._away = 0.0

    @contextmanager
    def _outside(self) -> Iterator[Watch]:
        """The watch, to be told or asked. Its time is no stage's, and what others do meanwhile changes nothing here."""
        import torch  # this module is a part of the command line's start

        watch, own, away, begin = self.watch, self.own, self._away, time.perf_counter()
        try:
            with self.turn.handed_on(), torch.inference_mode(False):
                yield watch
        finally:
            self.watch, self.own, self._away = watch, own, away + time.perf_counter() - begin

    def check(self, stage: str, done: int, total: int) -> None:
        """As Watch.check."""
        if self.watch is not SILENT:
            with self._outside() as watch:
                watch.check(stage, done, total)

    def tell(self, stage: str, done: int, total: int) -> None:
        """As Watch.tell."""
        if self.watch is not SILENT:
            with self._outside() as watch:
                watch.tell(stage, done, total)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what runs inside to a stage, without telling: a stage may come in pieces."""
        begin, away, self.begun = time.perf_counter(), self._away, name
        yield
        spent = time.perf_counter() - begin - (self._away - away)
        for seconds in (self.seconds, self.own):
            seconds[name] = seconds.get(name, 0.0) + spent

    @contextmanager
    def stage(self, name: str, parts: int = 0) -> Iterator[Callable[[], None]]:
        """A whole stage: told and timed. What it yields is to be called before each of its `parts`, if it has any."""
        done, total = 0, parts or 1

        def begin_part() -> None:
            nonlocal done
            self.check(name, done, total)
            self.tell(name, done, total)
            done += 1

        if not parts:
            begin_part()
        with self.timed(name):
            yield begin_part
        self.tell(name, total, total)

    @contextmanager
    def load(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A whole stage in which files of so many bytes are read. What it yields is to be called with those of each
        tensor that came; after the stage it does nothing."""
        with self.stage(name):
            self.loading = here = Loading(0, total, time.perf_counter())

            def came(size: int) -> None:
                here.done += size
                if self.loading is here and self.watch.at_once:
                    self.watch.check(name, 0, 1)

            try:
                yield came
            finally:
                self.loading = None
