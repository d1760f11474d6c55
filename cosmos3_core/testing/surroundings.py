"""What a kernel shares with the program around it."""

from __future__ import annotations

import builtins
import decimal
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
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
FUNCTIONS = [
    (where, name)
    for where, found in PATCHABLE.items()
    for name in (dir(found) if isinstance(found, type) else vars(found))
    if callable(getattr(found, name, None)) or not name.startswith("__")
]
"""Those of a class that it inherits among them, which it does not hold itself: one put there hides them."""
COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")
"""Packages of torch's compiler."""
COMPILER_S = (
    *("environment variable _TORCHINDUCTOR", "environment variable TORCHINDUCTOR", "torch._dynamo", "torch._inductor"),
    *("sys.getrecursionlimit()", "sys.path", "threads", "child processes", "torch.manual_seed", "warnings.filters"),
    "logging",
)
"""How the names of what loading their parts changes begin."""
LOADED = "torch's compiler"
NUMBERS = torch.linspace(-3, 3, 16)
"""What eager torch is asked about: the bits that it gives are nobody's to change."""


def surroundings() -> dict[str, Any]:
    """Everything a kernel shares with the program around it, by the name a vendor knows it by."""
    shared = {name: value for name, value in environment().items() if name not in TORCH_S_OWN}
    shared = {f"environment variable {name}": value for name, value in shared.items()}
    streams = {"sys.stdout": id(sys.stdout), "sys.stderr": id(sys.stderr), "files in the folder": sorted(os.listdir())}
    streams["child processes"] = _children()
    streams["gc.get_freeze_count()"] = gc.get_freeze_count() > 0  # too slow where thousands of modules are frozen
    functions = {f"{where}.{name}": id(vars(PATCHABLE[where]).get(name)) for where, name in FUNCTIONS}
    return shared | streams | functions | settings()


def settings() -> dict[str, Any]:
    """What of it a process can be asked often."""
    loaded = sum(name.startswith(COMPILER) for name in list(sys.modules))
    return _torch_s() | _python_s() | _switches() | _compilers() | {LOADED: loaded}


def _torch_s() -> dict[str, Any]:
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
        "torch.is_autocast_enabled()": _autocasts(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "torch.utils.deterministic.fill_uninitialized_memory": torch._C._get_deterministic_fill_uninitialized_memory(),
        "torch.multiprocessing.get_sharing_strategy()": torch.multiprocessing.get_sharing_strategy(),
        "modes of torch functions": torch._C._len_torch_function_stack(),
        "modes of torch's dispatcher": torch._C._len_torch_dispatch_stack(),
        "the current device and stream": _current(),
        "what eager torch gives on the host": _eager(),
        "torch.set_printoptions()": repr(torch.tensor(1 / 3)),
        "torch.set_flush_denormal()": bool((torch.tensor([1e-38]) / 1000) == 0),
    }


def _python_s() -> dict[str, Any]:
    """Python's own, the process's and numpy's."""
    return {
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
        "sys.unraisablehook": repr(sys.unraisablehook),
        "sys.getdlopenflags()": sys.getdlopenflags(),
        "threading.excepthook": repr(threading.excepthook),
        "threading.stack_size()": threading.stack_size(),
        "multiprocessing.get_start_method()": _start_method(),
        "socket.getdefaulttimeout()": socket.getdefaulttimeout(),
        "time.tzname": time.tzname,
        "gc.isenabled()": gc.isenabled(),
        "gc.get_threshold()": gc.get_threshold(),
        "warnings.filters": repr(warnings.filters),
        "logging.root": (logging.root.level, repr(logging.root.handlers), logging.root.manager.disable),
        "logging.getLogger('torch')": logging.getLogger("torch").level,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        **{
            f"signal.getsignal({one.name})": repr(signal.getsignal(one))
            for one in signal.valid_signals()
            if hasattr(one, "name")
        },
    }


def _start_method() -> str:
    """As asked for; who merely uses it makes the default one so."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _autocasts() -> list[bool]:
    """Of the host and the accelerator."""
    found = [torch.is_autocast_enabled("cpu")]
    with suppress(Exception):  # of a device that torch does not know
        found.append(torch.is_autocast_enabled(str(torch.accelerator.current_accelerator())))
    return found


def _current() -> tuple[int, str]:
    """Of the accelerator, once it is in use: before, it is as torch begins with it."""
    with suppress(Exception):  # of a device that torch does not know
        module = getattr(torch, str(torch.accelerator.current_accelerator()))
        if module.is_initialized():
            stream, index = torch.accelerator.current_stream(), torch.accelerator.current_device_index()
            first = stream.stream_id == module.default_stream().stream_id
            return index, "the default stream" if first else f"stream {stream.stream_id}"
    return 0, "the default stream"


def _eager() -> list[float] | str:
    """Rounding, kernels and overloads of a few operations, seen by what they give."""
    x = NUMBERS.clone()
    try:
        found = x / 7 + x.exp() * torch.nn.functional.silu(x) - x.square().mean().rsqrt() + x.softmax(-1)
        return torch.nn.functional.linear(x.round(), x.round().unsqueeze(0)).tolist() + found.tolist()
    except Exception as error:  # of a function that somebody has replaced
        return f"{type(error).__name__}: {error}"


def _compilers() -> dict[str, str]:
    """Settings of torch's compiler that are not what it comes with, where it is loaded."""
    modules = {name: sys.modules.get(name) for name in ("torch._dynamo.config", "torch._inductor.config")}
    return {name: module.codegen_config() if module else "" for name, module in modules.items()}


def _children() -> list[str]:
    """Processes that this one has started, as far as the system lists them."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += task.read_text().split()
    return sorted(found)


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
    """The names of what changed, came or went, with both values, but for what loading torch's compiler changed."""
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    if LOADED in names:
        names = [name for name in names if name != LOADED and not name.startswith(COMPILER_S)]
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]
