"""Starting a process for each device, by torch's elastic launcher, and what is said of one that failed."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..contract import Cosmos3Error, InputError, RunError
from .launchers import Started

MEETING = timedelta(minutes=5)
"""How long processes that srun or mpirun has started wait for each other to appear."""
WAITING = timedelta(days=1)
"""How long a process waits for a decision of the first one, which may be decoding meanwhile. One that ends is noticed
at once."""
RESUMED = "Type the same command again, or go on with what was kept"
STOPPED = 130
"""The exit code of a process that its user stopped."""
KINDS = {"InputError": InputError, "RunError": RunError}


class Failed(Exception):
    """What a process tells the launcher of its error, as JSON: the launcher hands on a text."""

    @classmethod
    def of(cls, error: Cosmos3Error) -> Failed:
        kind = next((kind for kind in KINDS if isinstance(error, KINDS[kind])), "RunError")
        return cls(json.dumps({"kind": kind, "said": [error.asked, error.found, error.next_step, error.field]}))


STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def launch(count: int, command: Sequence[str], first: str | None = None) -> None:
    """Run the command in so many processes of this host, as torchrun does; behind `first`, an option, it has the file
    to which process 0 writes its id by `first_is_here`, if it hears of signals. Once one fails the others are ended.
    Raises the error that it told by `tell`, and RunError where it has told none, with its number; KeyboardInterrupt
    where they were stopped."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="cosmos3",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # which ends all at once; of the others see `Relay`
    )
    program, *arguments = command
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as folder, _quietly(file := Path(folder) / "first"):
        try:
            elastic_launch(config, program)(*arguments, *((first, str(file)) if first else ()))
        except ChildFailedError as error:
            raise _told(*error.get_first_failure(), count) from None
        except SignalException as stop:
            raise KeyboardInterrupt from stop


def tell(error: Cosmos3Error) -> None:
    """Tell the launcher of this process's error."""
    get_error_handler().record_exception(Failed.of(error))


class Relay:
    """What asks the launcher to end, Ctrl-C or whoever started it, is handed on to process 0, which ends all after the
    same step: torch starts each in a session of its own, which hears nothing of a terminal. A signal that comes before
    process 0 is there, and the third one, end all at once."""

    def __init__(self, file: Path):
        self.file, self.count = file, 0

    def __call__(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 2 or not self.file.exists():
            raise SignalException("stopped", signal.SIGTERM)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(int(self.file.read_text()), signal.SIGINT)


def first_is_here(file: str) -> None:
    """Process 0 hears of signals from now on."""
    unfinished = Path(f"{file}.new")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(file)


@contextmanager
def _quietly(file: Path) -> Iterator[None]:
    """Nothing is said but what the processes say and the one error, and signals are handed on."""
    relay = Relay(file)
    # What nohup and the like have it ignore stays ignored.
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, relay) for number in heard}
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(rank: int, failure: ProcessFailure, count: int) -> Cosmos3Error | KeyboardInterrupt:
    """The error of a process, or that it was stopped."""
    if failure.exitcode == STOPPED:
        return KeyboardInterrupt()
    message: Any = failure.message
    text = message["message"] if isinstance(message, dict) else message
    name, _, said = text.partition(": ")
    if name == Failed.__name__:
        told = json.loads(said)
        asked, *others = told["said"]
        return KINDS[told["kind"]](f"process {rank} of {count}: {asked}", *others)
    if failure.exitcode < 0:
        found = f"it was ended by {failure.signal_name()}"
        if failure.exitcode == -signal.SIGKILL:
            found += ", which a system sends that runs out of memory"
        return RunError(f"process {rank} of {count}", found, RESUMED)
    return RunError(f"process {rank} of {count}", f"it ended with exit code {failure.exitcode}", RESUMED)


def meet(started: Started) -> tuple[int, int]:
    """Meet the other processes of a launcher; this one's number, and how many there are. What devices exchange goes
    over groups of its own: this one is for decisions, on the host. Raises RunError where they do not meet."""
    if dist.is_initialized():  # by the program before, or by itself
        if "gloo" not in dist.get_backend_config():
            found = f"the program has begun one of {dist.get_backend_config()}, over which hosts decide nothing"
            next_step = "Begin it after cosmos3.load, or with the backend cpu:gloo beside the device's"
            raise InputError("torch.distributed's process group", found, next_step)
        return dist.get_rank(), dist.get_world_size()
    if started.address is None or started.port is None:
        dist.init_process_group("gloo", timeout=WAITING)
        return dist.get_rank(), dist.get_world_size()
    try:
        store = dist.TCPStore(started.address, started.port, started.count, started.rank == 0, MEETING)
        store.set_timeout(WAITING)
        dist.init_process_group("gloo", store=store, rank=started.rank, world_size=started.count, timeout=WAITING)
    except RuntimeError as error:
        asked = f"meeting the {started.count} processes of {started.by} at {started.address}:{started.port}"
        next_step = "Set MASTER_ADDR to the host of process 0, and MASTER_PORT to a port that is free there"
        raise RunError(asked, " ".join(str(error).split()), next_step) from error
    return started.rank, started.count


def part() -> None:
    """Leave the other processes, if they have met."""
    if dist.is_initialized():
        dist.destroy_process_group()
