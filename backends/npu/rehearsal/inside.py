"""In a process whose NPUs are rehearsed. REHEARSED_LAUNCHES names a file that gets what was launched in it, as JSON."""

from __future__ import annotations

import atexit
import functools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .device import Launches, Rehearsal
from .graphs import repeating

GLOO = "cpu:gloo,npu:gloo"
LAUNCHES = Launches()
"""Of every thread of this process."""


def rehearse() -> None:
    """NPUs compute from now on, in this thread and in every one that starts later, groups of processes that ask for
    HCCL exchange what lies on them by gloo, and graphs are repeated. torch_npu is there already."""
    import torch.distributed as dist
    import torch_npu

    soc, run = torch_npu._C._npu_get_soc_version(), threading.Thread.run

    def rehearsed(thread: threading.Thread) -> Any:
        with Rehearsal(LAUNCHES, soc):
            return run(thread)

    threading.Thread.run = rehearsed  # type: ignore[method-assign]
    for name in ("init_process_group", "new_group"):
        setattr(dist, name, by_gloo(getattr(dist, name)))
    dist.batch_isend_irecv = one_by_one  # torch_npu's own is HCCL's
    torch_npu.npu.NPUGraph = repeating(torch_npu.npu.NPUGraph, LAUNCHES)
    Rehearsal(LAUNCHES, soc).__enter__()
    if target := os.environ.get("REHEARSED_LAUNCHES"):
        atexit.register(write_launches, Path(target))


def by_gloo(make: Callable[..., Any]) -> Callable[..., Any]:
    """torch.distributed's function that makes a group, for which HCCL is gloo. The stand-in has no HCCL."""

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Any:
        if "hccl" in (*arguments, options.get("backend")):
            arguments = tuple(GLOO if argument == "hccl" else argument for argument in arguments)
            options = {name: GLOO if name == "backend" else value for name, value in options.items()}
            options.pop("device_id", None)  # a group of one kind of device starts to connect at once, this one later
        return make(*arguments, **options)

    return made


def one_by_one(posted: list[Any]) -> list[Any]:
    """torch.distributed.batch_isend_irecv for gloo."""
    return [one.op(one.tensor, one.peer, one.group, one.tag) for one in posted]


def write_launches(path: Path) -> None:
    found = {"launches": dict(LAUNCHES.counts), "waits": dict(LAUNCHES.waits), "unchecked": sorted(LAUNCHES.unchecked)}
    path.write_text(json.dumps(found, indent=2) + "\n")
