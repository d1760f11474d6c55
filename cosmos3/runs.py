"""A run in the caller's hands: a step at a time, looked at, kept, gone on with."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from cosmos3_core.contract import InputError, RunError
from cosmos3_core.engine.stages import Cancelled, Watch
from cosmos3_core.files.atomic import check_writable
from cosmos3_core.runs.generation import Generation
from cosmos3_core.runs.keeping import Keeper
from cosmos3_core.runs.outputs import Moved, Paths
from cosmos3_core.runs.processes import Processes
from cosmos3_core.spelling import shown

from .questions import as_json, path_of
from .results import Preview, Result, plain
from .words import Answering, bound

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


Progress = Callable[[str, int, int], object]
"""Told a stage's name, how many of its parts are done, and how many there are: docs/python.md lists the stages."""


class Event(Protocol):
    """What can ask a run to stop: a threading.Event, or anything with its `is_set`."""

    def is_set(self) -> bool: ...


class Run(Answering):
    """A generation between two of its steps. `pipe.start` and `pipe.resume` make one.

    Iterating takes the steps that are left and yields the number of those done after each. Between two steps it may be
    looked at, saved, left, or gone on with from another thread; other runs of its pipe may take steps meanwhile.
    """

    def __init__(self, generation: Generation, processes: Processes):
        self._generation, self._processes = generation, processes
        self._result: Result | None = None
        self._lock = Lock()
        self._saved: dict[str, tuple[int, ...]] = {}
        self._between_steps: Callable[[], object] = lambda: None

    @property
    def index(self) -> int:
        """How many steps are done."""
        return self._generation.index

    @property
    def steps(self) -> int:
        """How many steps there are in all."""
        return self._generation.steps

    @property
    def done(self) -> bool:
        """Whether every step is done; `finish` then decodes."""
        return self.index >= self.steps

    @property
    def request(self) -> dict[str, Any]:
        """Every field of the request, by name."""
        return as_json(self._generation.resolved["request"])

    @property
    def seed(self) -> int | None:
        """Of the noise; None where all of it was given."""
        seed: int | None = self._generation.resolved["request"]["seed"]
        return seed

    @property
    def manifest(self) -> dict[str, Any]:
        """What was settled, and done so far."""
        return as_json(self._generation.manifest())

    @property
    def latents(self) -> Tensor:
        """A copy of the latents as they are: fp32 [C, T, h, w] on the host."""
        return plain(self._generation.latents()["final.vision"])

    @bound
    def step(self) -> int:
        """Take one step and return how many are done. Raises InputError where there is none left."""
        return self._generation.step()

    def __iter__(self) -> Iterator[int]:
        while step := self._take():
            yield step

    def _take(self) -> int:
        """Take a step and return how many are done; 0 where there is none left."""
        try:
            return 0 if self.done else self._generation.step()
        except InputError:
            if self.done:  # another thread took the last one meanwhile
                return 0
            raise

    @bound
    def preview(self) -> Preview:
        """What the last step takes the finished picture for, or the first frame of a clip: decoded from the predicted
        clean latents, without another pass. Raises InputError before the first step."""
        return Preview(self._generation.preview(), self._processes)

    @bound
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Keep what was computed in a .safetensors file and return its path. `pipe.resume` goes on with it in any
        process, and `cosmos3 run --resume` too. Raises InputError before the first step and for a path that cannot be
        written or that holds a file: none is overwritten but what this run saved there itself."""
        return self._processes.by_first(lambda: self._keep(Path(path_of("path", path))))

    def _keep(self, file: Path) -> Path:
        if os.path.lexists(file) and self._saved.get(os.path.realpath(file)) != _identity(file):
            raise InputError(f"writing {file}", "there is a file of that name", "Choose another name", "path")
        check_writable(file)
        if not self._generation.keep(file):
            found = "nothing was computed yet" if self.index == 0 else "its latents are not finite"
            raise InputError(f"keeping a run after {self.index} steps", found, "Take a step first, or start it again")
        self._saved[os.path.realpath(file)] = _identity(file)
        return file

    @bound
    def actions(self) -> np.ndarray:
        """The actions that were predicted, as `Result.actions` has them, after the last step and without a decode of
        frames. Raises InputError before it, and for a task that predicts none."""
        rows, _ = self._generation.actions()
        return rows

    @bound
    def finish(
        self, *, progress: Callable[[str, int, int], object] | None = None, cancel: Event | None = None
    ) -> Result:
        """Decode after the last step; called again, the same result. Raises InputError before that, and RunError for
        latents that are not finite. `progress`, `cancel` and errors are as for `run`."""
        import torch

        check_hooks(None, progress, cancel)
        if not self.done:
            found = f"{self.steps - self.index} of its {self.steps} steps are to be taken"
            raise InputError("finishing a run", found, "Call run(), which takes them, or look at preview()")
        if self._result is None:
            with self._watched(progress, cancel):
                embedded, sound = self._generation.manifest(), self._generation.sound()
                frames = torch.stack([torch.from_numpy(frame) for frame in self._generation.frames()])
            result = Result(self._generation, frames, self._processes, embedded, sound)
            with self._lock:
                self._result = self._result or result  # another thread may have been at it, too
        return self._result

    @bound
    def run(
        self,
        *,
        on_step: Callable[[Run], object] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Result:
        """Take the steps that are left, decode, and return the result.

        `on_step` is called with this run after every step. `progress(stage, done, total)` hears of every stage: layers
        of the prompts' reading, steps, frames of the decode. `cancel` is asked between two pieces of work; once it is
        set, `Cancelled` is raised. What the functions raise comes through. Every error has this run as its `run`, which
        goes on from its last whole step. While a function is called other threads have their turn. Several threads may
        call this: they share the steps that are left and return the same result.
        """
        check_hooks(on_step, progress, cancel)
        with self._watched(progress, cancel):
            while self._take():
                self._between_steps()
                if on_step is not None:
                    on_step(self)
            return self.finish(progress=progress, cancel=cancel)

    @contextmanager
    def _watched(self, progress: Progress | None, cancel: Event | None) -> Iterator[None]:
        """What is done inside is told and may be stopped; an error has this run, which goes on."""
        asked: Any = cancel
        if asked is not None and self._processes.count > 1:
            asked = self._processes.stopping(getattr(asked, "is_set", asked))
        self._generation.watch(progress, asked)
        try:
            yield
        except BaseException as error:
            if isinstance(error, Cancelled):
                error.next_step = f"{self.index} of {self.steps} steps are done: error.run.run() goes on"
            with suppress(AttributeError):  # an exception of a class that takes no attributes
                error.run = self  # type: ignore[attr-defined]
            raise
        finally:
            self._generation.watch(None, None)

    def __reduce__(self) -> NoReturn:
        found = "it works on a loaded model, which cannot be copied"
        raise InputError("copying or pickling a run", found, "Use save(path), and pipe.resume(path) in another process")

    def __repr__(self) -> str:
        request = self._generation.request
        size = f"{request.task} {request.width}x{request.height}, {request.frames} frames"
        return f"<cosmos3 run: {size}, step {self.index} of {self.steps}>"


def written(run: Run, paths: Paths, make: Callable[[Run], Result]) -> Result:
    """The result that is made of a run, in its files; what was computed is kept beside them now and then, and where it
    does not get there. Of several processes the first one writes."""
    ready, processes = run._generation, run._processes
    if not processes.writes:
        result = make(run)
        processes.by_first(lambda: None)
        return result
    keeper = Keeper(ready, paths.state)
    run._between_steps = keeper.between_steps
    with paths.alone():
        try:
            result = make(run)
            processes.by_first(partial(result._write, paths))
            keeper.discard()
            return result
        except Moved:
            keeper.discard()
            raise
        except BaseException as error:
            try:
                if ready.state and (kept := keeper.keep()):
                    done = f"{run.index} of {run.steps} steps are"
                    error.add_note(f"{done} kept; go on with pipe.resume({str(kept)!r})")
            except RunError as second:  # the first error is the cause
                error.add_note(str(second))
            raise


def _identity(file: Path) -> tuple[int, ...]:
    """What tells a file from another one of its name; nothing for a name without a file."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def check_hooks(on_step: Any, progress: Any, cancel: Any) -> None:
    """Raises InputError for what cannot be called as a run calls it."""
    check_callable("on_step", on_step, 1)
    check_callable("progress", progress, 3)
    if callable(asks := getattr(cancel, "is_set", cancel)) and not isinstance(cancel, type):
        check_callable("cancel", asks, 0)
    Watch(None, cancel)


def check_callable(name: str, value: Any, arguments: int) -> None:
    """Raises InputError unless `value` is None or can be called with so many arguments."""
    if value is None:
        return
    asked, next_step = f"{name} = {shown(value)}", f"Give a function of {arguments} argument{'s' * (arguments != 1)}"
    if not callable(value):
        raise InputError(asked, "it cannot be called", next_step, name)
    later = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    if any(is_one(called) for is_one in later for called in (value, type(value).__call__)):
        raise InputError(asked, "a call of it would run nothing: it is async or a generator", next_step, name)
    try:
        inspect.signature(value).bind(*[None] * arguments)
    except TypeError as error:
        raise InputError(asked, f"it is called with {arguments}, and {error}", next_step, name) from None
    except ValueError:  # a builtin that does not say what it takes
        return
