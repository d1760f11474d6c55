"""`cosmos3 run` as several processes: who starts them, what they agree on, and who of them writes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import click

from ..contract import Cosmos3Error, InputError, RunError
from ..engine.stages import Cancelled
from ..parallel.launchers import Misled, Started, started
from ..plan import mesh
from ..runs.processes import Processes
from . import terminal
from .parallel_options import DEGREES, TYPED
from .typed import Options

GRACE, SHORT_GRACE = 10.0, 2.0
"""Seconds that a process which lost another one waits to be ended, so that the other one's end is seen first. The
second is where perhaps nobody ends it, and others miss it in their turn."""


def among(options: Options) -> Started | None:
    """What started this process among others, None of one that is alone, and of a dry run, which meets nobody. Of
    those that were misled one says so."""
    if options.dry_run:
        return None
    try:
        return started()
    except Misled as error:
        if error.rank:
            time.sleep(SHORT_GRACE)
            sys.exit(error.exit_code)
        raise


def met(one: Started | None, options: Options) -> Processes:
    """The processes of a run, when they have met. But the first one, which hears for all when to stop, they say nothing
    and are deaf: to SIGTERM as well where the launcher sends it to all of them, to stop them all."""
    processes = Processes.of(one)
    if options.first and processes.writes:
        from ..parallel.launch import first_is_here

        first_is_here(options.first)
    if processes.rank:
        terminal.be_quiet(True)
        for number in (signal.SIGINT, signal.SIGHUP, *(() if one is None or one.torch_ends_all else (signal.SIGTERM,))):
            signal.signal(number, signal.SIG_IGN)
    return processes


def stopping(options: Options, processes: Processes, stop: Callable[[], bool]) -> Callable[[], bool]:
    """Whether all are to stop: the first one was asked to, or the launcher that is this program itself is gone."""
    if options.picked is None:
        return processes.stopping(stop)
    launcher = os.getppid()
    return processes.stopping(lambda: stop() or os.getppid() != launcher)


def start(options: Options, seed: int, output: str, count: int) -> None:
    """Start the processes of a run by the same command line, and wait for them. Raises what one of them raised."""
    from ..parallel.launch import launch

    if "@-" in (options.prompt, options.negative_prompt):
        found = "standard input is this process's, and the others would not have it"
        raise InputError("@- on several devices", found, "Put the text in a file and type @FILE")
    named = [] if options.output else ["--output", output]
    typed = click.get_current_context().find_root().meta.get(TYPED, sys.argv[1:])
    command = [sys.executable, "-m", "cosmos3", *typed, *named, "--picked", str(seed)]
    launch(count, command, "--first")


def working(options: Options, one: Started, execute: Callable[[Options, Started], None]) -> None:
    """One of the processes that a launcher started. Of those that fail for one reason one says so, and those that
    another one stopped or left wait to be ended: the launcher is to see that one first."""
    from ..parallel.launch import STOPPED, tell
    from ..parallel.ranks import Lost
    from .unexpected import explained

    told = options.picked is not None  # by the launcher, which this program is then too
    grace, launcher = GRACE if one.torch_ends_all else SHORT_GRACE, os.getppid()
    try:
        return execute(options, one)
    except (Cancelled, KeyboardInterrupt):
        if one.rank:
            _be_ended(grace, launcher)
        if told:  # who says so, too
            sys.exit(STOPPED)
        raise
    except Lost as error:
        lost: Cosmos3Error = error
    except Cosmos3Error as error:
        tell(error)
        if isinstance(error, InputError) and one.rank:  # the first process finds the same
            _be_ended(grace, launcher)
        elif not told:
            raise _numbered(error, one) from error
        sys.exit(error.exit_code)
    except Exception as error:
        failed = RunError("running", explained(error), "Leave `parallel` out to run it on one device")
        tell(failed)
        if not told:
            raise _numbered(failed, one) from error
        sys.exit(1)
    _be_ended(grace, launcher)
    tell(lost)
    if not (told or one.rank or one.torch_ends_all):  # nobody has ended it meanwhile, as a launcher does that says why
        raise lost
    sys.exit(1)


def _be_ended(seconds: float, launcher: int) -> None:
    """Wait so long to be ended by whoever started this process, unless that one is gone itself."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() == launcher:
        time.sleep(0.1)


def _numbered(error: Cosmos3Error, one: Started) -> Cosmos3Error:
    """The error with whose it is, unless all processes have it."""
    if isinstance(error, InputError):
        return error
    return type(error)(f"process {one.rank} of {one.count}: {error.asked}", error.found, error.next_step, error.field)


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
