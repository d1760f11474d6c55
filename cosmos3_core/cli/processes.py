"""`cosmos3 run` as several processes: who starts them, what they agree on, and who of them writes."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..contract import Cosmos3Error, InputError, RunError
from ..engine.stages import Cancelled
from ..plan import mesh
from ..reference.hosts import free_memory
from . import terminal
from .parallel_options import DEGREES
from .typed import Options

if TYPE_CHECKING:
    import numpy as np

    from ..plan import Plan
    from ..runs.generation import Generation
    from ..settle import Wish

GRACE = 10.0
"""Seconds that a process which lost another one waits to be ended, so that the other one's end is seen first."""


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, options: Options) -> Processes:
        """Those that a launcher has started, or this one alone."""
        if not options.launched or options.dry_run:
            return cls()
        from ..parallel.launch import meet

        processes = cls(*meet())
        if processes.rank:
            terminal.be_quiet(True)
            for number in (signal.SIGINT, signal.SIGHUP):  # the first one hears them, and says when all stop
                signal.signal(number, signal.SIG_IGN)
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

    def agreed(self, wish: Wish, picked: int | None) -> Wish:
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

    def check_count(self, options: Options, plan: Plan) -> None:
        """Raises InputError where a launcher started other processes than the plan is for."""
        if options.launched and not options.dry_run and self.count != plan.layout.size:
            found = f"the plan is for {plan.layout.size}, as {plan.layout}"
            next_step = f"Add `devices` {self.count}, or start {plan.layout.size}"
            raise InputError(f"{self.count} processes of a launcher", found, next_step, "devices")

    def take_device(self, plan: Plan) -> None:
        """This process's own device is from now on the one that is meant where none is numbered."""
        if self.count > 1 and plan.backend.torch_device != "cpu":
            import torch

            from ..parallel.launch import on_this_host

            torch.accelerator.set_device_index(on_this_host())

    def stopping(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Whether the first process was asked to stop; all have to ask at the same places."""
        return stop if self.count == 1 else lambda: bool(self.from_first(stop()))

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


def start(options: Options, seed: int, output: str, count: int) -> None:
    """Start the processes of a run by the same command line, and wait for them. Raises what one of them raised."""
    from ..parallel.launch import launch

    if "@-" in (options.prompt, options.negative_prompt):
        found = "standard input is this process's, and the others would not have it"
        raise InputError("@- on several devices", found, "Put the text in a file and type @FILE")
    named = [] if options.output else ["--output", output]
    launch(count, [sys.executable, "-m", "cosmos3", *sys.argv[1:], *named, "--picked", str(seed)])


def working(options: Options, execute: Callable[[Options], None]) -> None:
    """One of the processes that a launcher started. Of those that fail for one reason one says so, and those that
    another one stopped or left wait to be ended: the launcher is to see that one first."""
    from ..parallel.launch import number, tell
    from ..parallel.ranks import Lost
    from .unexpected import explained

    try:
        return execute(options)
    except (Cancelled, KeyboardInterrupt):
        if number():
            time.sleep(GRACE)
        raise
    except Lost as error:
        lost: Cosmos3Error = error
    except Cosmos3Error as error:
        tell(error)
        if isinstance(error, InputError) and number():  # the first process finds the same
            time.sleep(GRACE)
        elif options.picked is None:  # torchrun says nothing of it
            raise
        sys.exit(error.exit_code)
    except Exception as error:
        tell(RunError("running", explained(error), "Leave `parallel` out to run it on one device"))
        if options.picked is None:
            raise
        sys.exit(1)
    time.sleep(GRACE)
    tell(lost)
    sys.exit(1)


def layout_of(options: Options) -> str | None:
    """What --parallel says, or the options of single degrees do."""
    degrees = {axis: degree for name, axis in DEGREES.items() if (degree := getattr(options, name)) is not None}
    single = [name for name in DEGREES if getattr(options, name) is not None] + ["use_hsdp"] * options.use_hsdp
    if not single:
        return options.parallel
    if options.parallel is not None:
        asked = f"--{single[0].replace('_', '-')} with --parallel {options.parallel}"
        raise InputError(asked, "both split the run among devices", "Keep one of them")
    if options.use_hsdp and "hsdp" not in degrees:
        others = mesh.typed(_text(degrees)) if degrees else mesh.ALONE
        if (alike := others.size // others.apart) == 1:
            found, size = "it does not say among how many devices", (options.devices or 2) // others.apart
            if degrees:
                found = f"no two devices of {others} have the same weights, so that there are none to share"
            raise InputError("--use-hsdp", found, f"Add --hsdp-shard-size {max(2, size)}, or another degree")
        degrees["hsdp"] = alike
    return _text(degrees)


def _text(degrees: dict[str, int]) -> str:
    """As --parallel has them."""
    return ",".join(f"{axis}={degree}" for axis, degree in degrees.items())
