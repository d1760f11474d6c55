"""Run in a process of its own by the kit: what a backend changes around itself, and the bits its rows give here.

    python -m cosmos3_core.testing.watch NAME

prints as JSON {"probe": [what changed], "probe_seconds": ..., "fork": whether a forked process ends,
"rows": {"op-name": {"changed": [...], "digest": "...", "error": "..."}}}.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..checkpoint.tensors import tensor_digest
from ..contract import OPS, Kernel
from .subject import FORK_SECONDS, Subject, row_id
from .suite import CASES
from .surroundings import difference, surroundings


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What is written to the process' stdout and stderr meanwhile, by whatever language. Python's warnings are not."""
    said: list[str] = []
    kept, shown = [os.dup(fd) for fd in (1, 2)], warnings.showwarning
    with tempfile.TemporaryFile() as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for fd in (1, 2):
            os.dup2(file.fileno(), fd)
        warnings.showwarning = lambda *arguments, **options: None
        try:
            yield said
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for fd, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
            warnings.showwarning = shown
            file.seek(0)
            said += file.read().decode(errors="replace").split("\n")[:3]


def watch(name: str, ops: Collection[str] = OPS) -> dict[str, Any]:
    """Probe, then build and use every row of these ops that can serve here, and say what each changed and wrote."""
    subject = Subject(name)
    before = surroundings()
    with _overheard() as said:
        subject.present  # noqa: B018 (it probes, and what that changes is looked at)
        started = time.perf_counter()
        subject.backend.probe()
        seconds = time.perf_counter() - started
    probed = difference(before, surroundings()) + _written(said)
    seen: dict[str, Any] = {"probe": probed, "probe_seconds": seconds, "fork": _fork_ends(), "rows": {}}
    with _overheard():  # what an allocator says of its driver, once in a process, is no row's
        torch.empty(1, device=subject.backend.torch_device)
    for kernel in subject.backend.kernels:
        if kernel.op not in ops or subject.why_not(kernel, kernel.dtypes[0]) is not None:
            continue
        seen["rows"][row_id(kernel)] = _row(subject, kernel)
    return seen


def _row(subject: Subject, kernel: Kernel) -> dict[str, Any]:
    """What building and using it changes and gives."""
    before, row = surroundings(), {}
    with _overheard() as said:
        try:
            case, op = CASES[kernel.op], kernel.build(subject.present)
            if case.use or case.make:  # others take more than one process
                row["digest"] = tensor_digest(*case.job(op, subject.here(kernel)))
        except Exception as error:  # a row that fails is reported for that row; the others are still watched
            row["error"] = f"{type(error).__name__}: {error}"
    return row | {"changed": difference(before, surroundings()) + _written(said)}


def _fork_ends() -> bool:
    """Whether a process that is forked now, adds numbers on the host and collects garbage, has ended in time."""
    child = os.fork()
    if not child:
        try:
            torch.ones(3).sum()
            gc.collect()
            logging.getLogger().isEnabledFor(logging.DEBUG)
        finally:
            os._exit(0)
    last = time.monotonic() + FORK_SECONDS
    while time.monotonic() < last:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _written(said: list[str]) -> list[str]:
    return [f"what stands on the terminal: {' '.join(said).strip()!r}"] if any(said) else []


def _as_after_a_login() -> None:
    """What a process inherits is what it is at first for everybody: who started this one may have probed already."""
    for one in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(one) is signal.SIG_IGN:
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    os.umask(0o022)
    sys.path[:] = [os.path.abspath(part) for part in sys.path]


def main(name: str) -> None:
    _as_after_a_login()
    start = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as folder, torch.inference_mode():
        os.chdir(folder)
        seen = watch(name)
        os.chdir(start)
    print("\n" + json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
