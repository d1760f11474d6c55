"""Processes that meet over gloo, forked from the test's own: torch and the model are imported once for all of them."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cosmos3_core.parallel import ranks

SECONDS = 60
"""How long one waits for the others in one call."""


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` of its rank returns in each of so many processes, or the exception that it raised."""
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as name:
        folder = Path(name)
        children = [_start(folder, rank, count, work) for rank in range(count)]
        for child in children:
            os.waitpid(child, 0)
        return [pickle.loads((folder / f"{rank}.out").read_bytes()) for rank in range(count)]


def _start(folder: Path, rank: int, count: int, work: Callable[[int], Any]) -> int:
    if child := os.fork():
        return child
    try:
        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork, and it would wait for them
        ranks.WAITING = timedelta(seconds=SECONDS)  # in the groups that a run makes, too: a test ends
        store = dist.FileStore(str(folder / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS))
        try:
            found = work(rank)
        except Exception as error:
            error.add_note(traceback.format_exc())
            found = error
        (folder / f"{rank}.out").write_bytes(pickle.dumps(found))
        sys.stderr.flush()
    finally:
        os._exit(0)


def one_of(found: Sequence[Any]) -> Any:
    """What all processes have found, who have to agree. Raises what one of them raised."""
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found[0]
