"""A run's steps in a file: while it goes on, so that a process that is killed loses little, and where it ends early."""

from __future__ import annotations

import glob
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ..contract import RunError
from ..files.atomic import Unwritable, elsewhere
from . import saved

if TYPE_CHECKING:
    from torch import Tensor

    from .generation import Generation

EVERY = 60.0
"""Seconds between two savings of a run that goes on. A shorter run is not saved."""
SHARE = 0.01
"""The part of a run's time that saving may take."""


class Keeper:
    """Keeps a run at `path`, or at a name like it if another stopped run is there; the file `resumed` is its own.

    `between_steps` saves in another thread once `interval` seconds have passed since it last did. The tensors are
    copied to the host before the next step begins; they are written while it runs.
    """

    def __init__(self, run: Generation, path: Path, resumed: str | None = None):
        self.run, self.path, self.resumed = run, path, resumed
        self.kept: Path | None = None
        self.cost = 0.0
        self.failure: Exception | None = None
        self._begun = self._last = time.monotonic()
        self._thread: Thread | None = None

    @property
    def interval(self) -> float:
        """Seconds from one saving to the next: EVERY, or more where a saving as slow as the last would take more than
        its share of them."""
        return max(EVERY, self.cost / SHARE)

    def between_steps(self) -> None:
        """Save the run if it is time to, and before a decode, after which no step could be lost any more."""
        now, done = time.monotonic(), self.run.done
        if now - (self._begun if done else self._last) < self.interval or (self._thread and self._thread.is_alive()):
            return
        self._last = now
        path, (kept, numbers) = self._path(), self.run.computed()
        self._thread = Thread(target=self._save, args=(path, kept, numbers, now), name="keeping")
        self._thread.start()

    def _path(self) -> Path:
        return self.kept or saved.unused(self.path, self.resumed)

    def _save(self, path: Path, kept: dict[str, Tensor], numbers: dict[str, Any], began: float) -> None:
        try:
            if saved.save(path, kept, numbers, self.run.resumable):
                self.kept = path
        except Exception as error:  # a full disk: it may be the run's end that finds room again
            self.failure = error
        self.cost = time.monotonic() - began

    def keep(self) -> Path | None:
        """Save what was computed, somewhere: the file, or None where there is nothing to go on with. Raises RunError
        where no place takes it, which says what still holds earlier steps."""
        self._wait()
        path = self._path()
        try:
            if self.run.keep(path):
                return path
            self.discard()
            return None
        except Unwritable as error:
            for other in elsewhere(path):
                try:
                    if self.run.keep(other):
                        return other
                except Unwritable:
                    continue
            raise self._lost(error) from error
        except Exception as error:  # a device that no longer answers
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> RunError:
        index = self.run.index
        earlier = str(self.kept) if self.kept else self.resumed
        found = f"{index} of {self.run.steps} steps are lost"
        return RunError(
            found, str(error), f"{earlier} still holds those before it" if earlier else "Start the run again"
        )

    def discard(self) -> None:
        """The run is whole: its own file is of no more use."""
        self._wait()
        if self.kept:
            self.kept.unlink(missing_ok=True)
            self.kept = None

    def _wait(self) -> None:
        if self._thread and self._thread.ident is not None:
            self._thread.join()


def stopped_runs(state: Path) -> list[Path]:
    """The files in which earlier runs of an output were kept at `state`, the newest last."""
    name, _, suffix = state.name.rpartition(".")
    found = state.parent.glob(f"{glob.escape(name)}*.{suffix}")
    numbered = [path for path in found if path.name.removeprefix(name).removesuffix(f".{suffix}").lstrip("-").isdigit()]
    return sorted([*numbered, *([state] if state.is_file() else [])], key=lambda path: path.stat().st_mtime)
