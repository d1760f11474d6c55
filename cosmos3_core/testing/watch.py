"""Run in a process of its own by the kit: what a backend changes around itself, and the bits its rows give here.

    python -m cosmos3_core.testing.watch NAME

prints as JSON {"probe": [what changed], "probe_seconds": ..., "fork": whether a forked process ends,
"rows": {"op-name": {"changed": [...], "digest": "...", "error": "..."}}}.
"""

from __future__ import annotations

import builtins
import decimal
import faulthandler
import gc
import json
import locale
import logging
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy
import torch

from ..checkpoint.tensors import tensor_digest
from ..contract import OPS
from .subject import FORK_SECONDS, Subject, environment, row_id
from .suite import CASES

LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]
TORCH_S_OWN = ("TORCHINDUCTOR_CACHE_DIR",)
"""Environment variables that torch sets to its own default when a library first asks it to compile."""


PATCHABLE = {
    "torch": torch,
    "torch.nn.functional": torch.nn.functional,
    "torch.Tensor": torch.Tensor,
    "builtins": builtins,
}
"""What may be replaced by functions of somebody's own, for the whole process."""
FUNCTIONS = [(where, name) for where, found in PATCHABLE.items() for name in vars(found) if not name.startswith("__")]


def surroundings() -> dict[str, Any]:
    """Everything a kernel shares with the program around it, by the name a vendor knows it by."""
    shared = {name: value for name, value in environment().items() if name not in TORCH_S_OWN}
    shared = {f"environment variable {name}": value for name, value in shared.items()}
    streams = {"sys.stdout": id(sys.stdout), "sys.stderr": id(sys.stderr), "files in the folder": sorted(os.listdir())}
    functions = {f"{where}.{name}": id(vars(PATCHABLE[where]).get(name)) for where, name in FUNCTIONS}
    return shared | streams | functions | settings()


def settings() -> dict[str, Any]:
    """What of it a process can be asked often."""
    return {
        "torch.get_default_dtype()": str(torch.get_default_dtype()),
        "torch.get_default_device()": str(torch.get_default_device()),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_num_interop_threads()": torch.get_num_interop_threads(),
        "torch.get_rng_state()": tensor_digest(torch.get_rng_state()),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_deterministic_algorithms_warn_only_enabled()": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled(),
        "torch.set_printoptions()": repr(torch.tensor(1 / 3)),
        "torch.set_flush_denormal()": bool((torch.tensor([1e-38]) / 1000) == 0),
        "random.getstate()": hash(random.getstate()),
        "numpy.random.get_state()": hash(pickle.dumps(numpy.random.get_state())),
        "os.getcwd()": os.getcwd(),
        "os.umask()": _umask(),
        "os.sched_getaffinity()": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "os.nice()": os.nice(0),
        "locale.setlocale()": locale.setlocale(locale.LC_ALL),
        "numpy.geterr()": numpy.geterr(),
        "decimal.getcontext()": repr(decimal.getcontext()),
        "sys.getswitchinterval()": sys.getswitchinterval(),
        "sys.gettrace()": repr(sys.gettrace()),
        "sys.getprofile()": repr(sys.getprofile()),
        "faulthandler.is_enabled()": faulthandler.is_enabled(),
        **{f"resource.getrlimit({one})": resource.getrlimit(getattr(resource, one)) for one in LIMITS},
        "sys.path": list(sys.path),
        "sys.getrecursionlimit()": sys.getrecursionlimit(),
        "sys.excepthook": repr(sys.excepthook),
        "gc.isenabled()": gc.isenabled(),
        "warnings.filters": repr(warnings.filters),
        "logging.root": (logging.root.level, repr(logging.root.handlers), logging.root.manager.disable),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        **{
            f"signal.getsignal({one.name})": repr(signal.getsignal(one))
            for one in signal.valid_signals()
            if hasattr(one, "name")
        },
        **_switches(),
    }


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def _switches() -> dict[str, Any]:
    """What torch.backends has to switch, by name: values, and what functions named `..._enabled` answer."""
    found: dict[str, Any] = {}
    for name, module in vars(torch.backends).items():
        if not isinstance(module, ModuleType):
            continue
        for switch in {*vars(module), *vars(type(module))}:
            if switch.startswith("_"):
                continue
            with suppress(Exception):  # of a device that is not here
                value = getattr(module, switch)
                if callable(value) and switch.endswith("_enabled") and not switch.startswith("set_"):
                    value = value()
                if isinstance(value, bool | int | str):
                    found[f"torch.backends.{name}.{switch}"] = value
    return found


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


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what changed, came or went, with both values."""
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def watch(name: str, ops: Collection[str] = OPS) -> dict[str, Any]:
    """Probe, then build and use every row of these ops that can serve here, and say what each changed and wrote."""
    subject = Subject(name)
    before = surroundings()
    with _overheard() as said:
        device = subject.present
        started = time.perf_counter()
        subject.backend.probe()
        seconds = time.perf_counter() - started
    probed = difference(before, surroundings()) + _written(said)
    seen: dict[str, Any] = {"probe": probed, "probe_seconds": seconds, "fork": _fork_ends(), "rows": {}}
    for kernel in subject.backend.kernels:
        if kernel.op not in ops or subject.why_not(kernel, kernel.dtypes[0]) is not None:
            continue
        before, row = surroundings(), {}
        with _overheard() as said:
            try:
                case, op = CASES[kernel.op], kernel.build(device)
                if case.use or case.make:  # others take more than one process
                    row["digest"] = tensor_digest(*case.job(op, subject.here(kernel)))
            except Exception as error:  # a row that fails is reported for that row; the others are still watched
                row["error"] = f"{type(error).__name__}: {error}"
        changed = difference(before, surroundings()) + _written(said)
        seen["rows"][row_id(kernel)] = row | {"changed": changed}
    return seen


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
