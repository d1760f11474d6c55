"""What a kernel shares with the program around it."""

from __future__ import annotations

import builtins
import decimal
import faulthandler
import gc
import json
import locale
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy
import torch

from ..checkpoint.tensors import tensor_digest

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
        "numpy.random.get_state()": hash(_stream()),
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


def _stream() -> tuple[Any, ...]:
    """Of numpy's, as something that can be hashed."""
    state: Any = numpy.random.get_state()
    return state[0], state[1].tobytes(), *state[2:]


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


def environment() -> dict[str, str]:
    """That of this process. Asked of a child, which inherits what a change would do to every later program."""
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what changed, came or went, with both values."""
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]
