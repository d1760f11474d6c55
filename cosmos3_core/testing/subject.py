"""The backend under test: loading it, asking whether a row can serve here, and watching it in a fresh process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..contract import Device, Kernel, Unavailable
from ..files.digests import sha256_files, sha256_json
from ..plan import Want, discovery
from ..plan.resolve import why_not


class Subject:
    """One backend while it is judged. Answers that cost a probe or a process are found once."""

    def __init__(self, name: str):
        self.name = name
        self.backend = discovery.load(name)
        self.found = discovery.installed()[name]
        self.module = self.found.value.partition(":")[0]
        self._reasons: dict[tuple[str, ...], str | None] = {}

    @cached_property
    def device(self) -> Device | str:
        """What the probe found, or why there is none."""
        try:
            return discovery.probe(self.backend)
        except (Unavailable, discovery.Rejected) as reason:
            return str(reason)

    def why_not(self, kernel: Kernel, dtype: str, format: str | None = None) -> str | None:
        """Why this row cannot serve Cosmos3 on this device, or None; in its first format where none is given. The plan
        is asked: it alone selects."""
        if isinstance(self.device, str):
            return self.device
        format = format or kernel.formats[0]
        key = (kernel.op, kernel.name, dtype, format)
        if key not in self._reasons:
            want = Want(dtype, heads=32, kv_heads=8, head_dim=128, formats={kernel.op: format})
            self._reasons[key] = why_not(kernel, want, self.device)
        return self._reasons[key]

    def here(self, kernel: Kernel) -> Kernel:
        """The row with those of its formats that it serves on this device."""
        served = [name for name in kernel.formats if self.why_not(kernel, kernel.dtypes[0], name) is None]
        return replace(kernel, formats=tuple(served))

    @cached_property
    def watched(self) -> dict[str, Any]:
        """What `watch` saw in a fresh process."""
        command = [sys.executable, "-m", "cosmos3_core.testing.watch", self.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    @cached_property
    def import_effects(self) -> dict[str, Any]:
        """What importing the plugin module and asking for its rows loads, prints and changes, in a fresh process."""
        script = (
            "import json, os, sys, threading, pluggy\n"
            "import cosmos3_core.contract\n"
            f"environment, path = dict(os.environ), list(sys.path)\n"
            f"import {self.module}\n"
            "effects = {'modules': sorted(sys.modules), 'threads': threading.active_count() - 1,\n"
            "           'environment': dict(os.environ) != environment, 'sys.path': sys.path != path}\n"
            "print('\\n' + json.dumps(effects))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"importing {self.module} failed:\n{done.stderr}")
        said, _, effects = done.stdout.rstrip("\n").rpartition("\n")
        return json.loads(effects) | {"prints": (said + done.stderr).strip()}

    def sources(self) -> str:
        """SHA-256 over the files of the backend's package and of those that its rows come from, names included."""
        modules = {self.module, *(kernel.build.__module__ for kernel in self.backend.kernels)}
        found: dict[str, Any] = {}
        for package in sorted({module.partition(".")[0] for module in modules}):
            spec = importlib.util.find_spec(package)
            roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
            files = [path for root in roots for path in root.rglob("*") if path.is_file()] or [Path(spec.origin)]
            ours = [path for path in files if "__pycache__" not in path.parts]
            found[package] = sha256_files(ours, roots[0] if roots else Path(spec.origin).parent)
        return sha256_json(found)


def row_id(kernel: Kernel) -> str:
    return f"{kernel.op}-{kernel.name}"


def live_bytes(device_type: str) -> int:
    """Bytes of tensors alive: on an accelerator as its allocator counts, on the host summed over Python's objects."""
    import gc

    import torch

    gc.collect()
    if device_type != "cpu":
        torch.accelerator.synchronize()
        return torch.accelerator.memory_allocated()
    storages = {}
    for thing in gc.get_objects():
        # type(), because isinstance() asks an object for its __class__, and lazy modules answer by importing.
        if issubclass(type(thing), torch.Tensor) and thing.layout == torch.strided and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
