"""Starting a process for each device, by torch's elastic launcher, and what is said of one that failed."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..contract import Cosmos3Error, InputError, RunError

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


def launch(count: int, command: Sequence[str]) -> None:
    """Run the command in so many processes of this host, as torchrun does. Once one fails the others are ended. Raises
    the error that it told by `tell`, and RunError where it has told none, with its number; KeyboardInterrupt where the
    user stopped them, or this process is asked to end."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="cosmos3",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGTERM",
    )
    program, *arguments = command
    with _quietly():
        try:
            elastic_launch(config, program)(*arguments)
        except ChildFailedError as error:
            raise _told(*error.get_first_failure(), count) from None
        except SignalException as stop:
            raise KeyboardInterrupt from stop


def tell(error: Cosmos3Error) -> None:
    """Tell the launcher of this process's error."""
    get_error_handler().record_exception(Failed.of(error))


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing is said but what the processes say and the one error; and Ctrl-C, which all processes of a terminal get,
    is the first one's matter."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGHUP)}
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


def meet() -> tuple[int, int]:
    """Meet the other processes, by the variables that a launcher has set; this one's number, and how many there are.
    What devices exchange goes over groups of its own: this one is for decisions, on the host."""
    dist.init_process_group("gloo", timeout=WAITING)
    return dist.get_rank(), dist.get_world_size()


def number() -> int:
    """This process's, 0 before it has met others."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_this_host() -> int:
    """This process's number among those of its host, and so the number of its device."""
    return dist.get_node_local_rank(fallback_rank=0)


def part() -> None:
    """Leave the other processes."""
    dist.destroy_process_group()
