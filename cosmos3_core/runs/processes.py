"""The processes of a run on several devices: what they agree on, when they stop, and who of them writes."""

from __future__ import annotations

import atexit
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..contract import Cosmos3Error, InputError
from ..parallel.launchers import Started, started
from ..plan import mesh
from ..reference.hosts import free_memory

if TYPE_CHECKING:
    import numpy as np

    from ..plan import Plan
    from ..settle import Wish
    from .generation import Generation

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`, and number `local` of those on its host."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of(cls, started: Started | None) -> Processes:
        """Those that a launcher has started, when they have met, or this one alone."""
        if started is None:
            return cls()
        from ..parallel.launch import meet

        return cls(*meet(started), started.local)

    @classmethod
    def of_program(cls, parallel: str) -> Processes:
        """Those of a Python program, each of which does the same, when they have met. Raises InputError unless a
        launcher has started as many as the layout takes."""
        layout, one = mesh.typed(parallel), started()
        if layout.size == 1:
            return cls()
        if one is None:
            found = f"it takes {layout.size} processes, and this is one that no launcher has started"
            next_step = f"Start it by srun or mpirun, or type torchrun --nproc-per-node {layout.size} PROGRAM"
            raise InputError(f"`parallel` {parallel}", found, next_step, "parallel")
        if one.count != layout.size:
            asked, found = f"{one.count} processes of {one.by}", f"`parallel` {parallel} takes {layout.size}"
            raise InputError(asked, found, f"Start {layout.size}, or name a layout of {one.count}", "parallel")
        processes = cls.of(one)
        atexit.register(cls._part)
        return processes

    @property
    def writes(self) -> bool:
        """Whether what is made is this one's to write."""
        return self.rank == 0

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.count == 1:
            return value
        from ..parallel.ranks import from_first

        return from_first(value)

    def by_first(self, call: Callable[[], T]) -> T:
        """What the first process's call returns or raises, in all of them, after it; the others do not call."""
        if self.count == 1:
            return call()
        told: tuple[T | None, Cosmos3Error | None] = None, None
        if self.writes:
            try:
                told = call(), None
            except Cosmos3Error as error:
                told = None, error
        value, failed = self.from_first(told)
        if failed is not None:
            raise told[1] or failed
        result: T = value
        return result

    def agreed(self, wish: Wish, picked: int | None = None) -> Wish:
        """The wish with what the first process finds of the host, and its seed if none is given: any, or `picked`."""

        def pick() -> int:
            seed: int = self.from_first(secrets.randbelow(2**31))
            return seed if picked is None else picked

        host = wish.host_memory or (free_memory() if self.count > 1 else None)
        return replace(wish, pick_seed=pick, host_memory=self.from_first(host))

    def check(self, run: Generation) -> None:
        """Raises RunError unless all processes are about to do the same."""
        if self.count > 1:
            from ..parallel.ranks import check_agreed

            ids = {"prompt": run.inputs.prompt, "negative": run.inputs.negative}
            check_agreed({key: value for key, value in run.resolved.items() if key != "started"} | {"ids": ids})

    def take_device(self, plan: Plan) -> None:
        """This process's own device is from now on the one that is meant where none is numbered. A launcher may have
        shown it that one alone. Raises InputError where there is none for it."""
        device = plan.device
        if self.count > 1 and plan.backend.torch_device != "cpu":
            if 1 < device.count <= self.local:
                asked, found = f"process {self.local} of this host", f"here are {device.count} of {device.name}"
                raise InputError(asked, found, f"Start up to {device.count} on each host", "devices")
            import torch

            torch.accelerator.set_device_index(self.local if device.count > 1 else 0)

    def stopping(self, stop: Callable[[], Any]) -> Callable[[], Any]:
        """What the first process answers when asked whether to stop; all have to ask at the same places."""
        return stop if self.count == 1 else lambda: self.from_first(stop())

    def follow(self, run: Generation) -> None:
        """Take part in the steps, and write nothing."""
        run.watch(None, self.stopping(lambda: False))
        run.open_weights()
        run.begin()
        while not run.done:
            run.step()
        run.watch(None, lambda: False)  # the first one alone may stop now
        while self.from_first(False):
            if self.rank < run.settled.plan.layout.vae:
                for _ in run.frames():
                    pass
        self._part()

    def frames(self, run: Generation) -> Iterator[np.ndarray]:
        """The frames, as the first process decodes them, if need be with others."""
        if run.settled.plan.layout.vae > 1:
            self.from_first(True)
        return run.frames()

    def part(self) -> None:
        """The first one is done, too."""
        if self.count > 1:
            self.from_first(False)
            self._part()

    @staticmethod
    def _part() -> None:
        from ..parallel.launch import part

        part()


ALONE = Processes()
