"""The backend under test: loading it, asking whether a row can serve here, and watching it in a fresh process."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ..contract import COMPOSITES, FORMATTED, Backend, Device, InputError, Kernel, Memory, Ops, Unavailable
from ..evidence.checks import code_digest
from ..evidence.closure import Sources
from ..evidence.fingerprint import ROOT
from ..plan import Want, discovery, formats, resolve
from ..plan.choice import rows
from ..plan.resolve import formats_of, why_not
from ..quant import Format
from .cases import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, Here
from .surroundings import difference, environment, settings

PEERS = 4
"""Processes that meet: between two, the one before and the next one are the same."""
MEETING_SECONDS = 180
"""How long they may take to load the backend and try its collectives."""
FORK_SECONDS = 10
"""How long a process may take that is forked after the probe and has nothing to do."""
PYTEST_S = ("warnings.filters", "logging.root")
"""What pytest changes around every test, and imports of Python's own change."""
TOLD = " was "
"""Between the name of what a process has tried and how it went."""


class Subject:
    """One backend while it is judged. Answers that cost a probe or a process are found once."""

    def __init__(self, name: str):
        self.name = name
        self.backend = _completed(discovery.load(name))
        self.found = discovery.installed()[name]
        self.module = self.found.value.partition(":")[0]
        self.environment = environment()
        """For the processes that are started: as it was before a row was built here."""
        self._reasons: dict[tuple[Any, ...], str | None] = {}
        self._peers: dict[str, list[dict[str, str]] | str] = {}
        self._ops: dict[tuple[Any, ...], Ops] = {}
        self.changed: dict[str, list[str]] = {}
        """What calls in this process have changed, by row: empty where one was looked at and has changed nothing."""

    @property
    def present(self) -> Device:
        """The device, for those who have seen that there is one."""
        assert isinstance(self.device, Device), self.device
        return self.device

    @cached_property
    def device(self) -> Device | str:
        """What the probe found, or why there is none."""
        try:
            return discovery.probe(self.backend)
        except (Unavailable, discovery.Rejected) as reason:
            return str(reason)

    @cached_property
    def known(self) -> dict[str, Format]:
        """What the names of formats mean."""
        return formats.known(self.backend)

    def formats(self, kernel: Kernel) -> tuple[str, ...]:
        """Those that a row declares. "*" is a composite's that leaves the products to the rows of pack_linear, and
        eager torch's, which has them all."""
        if "*" not in kernel.formats:
            return kernel.formats
        return "none", *(formats_of(self.backend, "pack_linear") if kernel.op in COMPOSITES else self.known)

    def why_not(
        self, kernel: Kernel, dtype: str, format: str | None = None, activation: str = "silu", **numbers: Any
    ) -> str | None:
        """Why this row cannot serve Cosmos3 on this device, or None; in its first format where none is given, and with
        these `numbers` of a `Want` in place of the kit's. The plan is asked: it alone selects."""
        if isinstance(self.device, str):
            return self.device
        format = format or self.formats(kernel)[0]
        key = (kernel.op, kernel.name, dtype, format, activation, *sorted(numbers.items()))
        if key not in self._reasons:
            want = self._want(dtype, "pack_linear" if kernel.op in COMPOSITES else kernel.op, format, activation)
            self._reasons[key] = why_not(kernel, replace(want, **numbers), self.device)
        return self._reasons[key]

    def ops(self, dtype: str, format: str = "none", activation: str = "silu") -> Ops:
        """The ops of the plan for layers whose products are in a format. Raises InputError where there is none."""
        key = dtype, format, activation
        if key not in self._ops:
            want = self._want(dtype, "pack_linear", format, activation)
            self._ops[key] = resolve(want, self.backend, self.present).build_ops()
        return self._ops[key]

    def ops_with(self, kernel: Kernel, dtype: str) -> Ops:
        """The ops of the plan where this row is named, in the first of its formats."""
        want = replace(self._want(dtype, kernel.op, kernel.formats[0], "silu"), kernels={kernel.op: kernel.name})
        return resolve(want, self.backend, self.present).build_ops()

    def here(self, kernel: Kernel, dtype: str | None = None) -> Here:
        """This device, and those of the row's formats that it serves here; in bfloat16 where the row takes it."""
        dtype = dtype or ("bfloat16" if "bfloat16" in kernel.dtypes else kernel.dtypes[0])
        served = [name for name in self.formats(kernel) if self.why_not(kernel, dtype, name) is None]
        return Here(dtype, self.backend.torch_device, tuple(served), partial(self.ops, dtype), self.known)

    def _want(self, dtype: str, op: str, format: str, activation: str) -> Want:
        meaning = self.known.get(format)
        return Want(
            dtype=dtype,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            hidden=HIDDEN,
            inner=INNER,
            activation=activation,
            formats={op: format},
            packed=meaning is not None and meaning.static,
        )

    @cached_property
    def memory(self) -> Memory:
        """The plan's way to the device's memory."""
        row = next(row for row in rows(self.backend, "memory") if self.why_not(row, row.dtypes[0]) is None)
        return row.build(self.present)

    @cached_property
    def watched(self) -> dict[str, Any]:
        """What `watch` saw in a fresh process."""
        command = [sys.executable, "-m", "cosmos3_core.testing.watch", self.name]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def looking(self, row: str, test: str) -> Iterator[None]:
        """What changes meanwhile is kept for the row, which this test calls."""
        before = settings()
        try:
            yield
        finally:
            found = [what for what in difference(before, settings()) if not what.startswith(PYTEST_S)]
            self.changed.setdefault(row, []).extend(f"{what} in {test}" for what in found)

    def peers(self, kernel: Kernel) -> list[dict[str, str]] | str:
        """What `peers` found in each of four processes, or of as many as there are devices, or why there cannot be
        two. What a process did not get to has what it said last."""
        devices = self.device.count if isinstance(self.device, Device) else 0
        count = PEERS if self.backend.torch_device == "cpu" else min(PEERS, devices)
        if count < 2:
            return f"two processes need two devices, and here is {devices}"
        if kernel.name not in self._peers:
            with tempfile.TemporaryDirectory(prefix="cosmos3-") as folder:
                self._peers[kernel.name] = self._meet(kernel, Path(folder), count)
        return self._peers[kernel.name]

    def _meet(self, kernel: Kernel, folder: Path, count: int) -> list[dict[str, str]]:
        command = [sys.executable, "-m", "cosmos3_core.testing.peers", self.name, kernel.name, str(folder), str(count)]
        options: dict[str, Any] = {"env": self.environment, "start_new_session": True}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        late = ""
        try:
            _, failed = process.communicate(timeout=MEETING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, failed = process.communicate()
            late = f"; it was not done after {MEETING_SECONDS} seconds"
        found: list[dict[str, str]] = []
        for rank in range(count):
            out, said = (_text(folder / f"{rank}.{suffix}") for suffix in ("out", "err"))
            told = dict(line.split(TOLD, 1) for line in out.splitlines() if TOLD in line)
            last = ((said.strip() or failed.strip()).splitlines() or [""])[-1] + late
            found.append(defaultdict(partial(str, f"the process ended before it: {last}"), told))
        return found

    @cached_property
    def import_effects(self) -> dict[str, Any]:
        """What importing the plugin module and asking for its rows loads, prints and changes, in a fresh process."""
        script = (
            "import json, os, sys, threading, time, pluggy\n"
            "import cosmos3_core.contract\n"
            f"environment, path = dict(os.environ), list(sys.path)\n"
            "started = time.perf_counter()\n"
            f"import {self.module}\n"
            "effects = {'seconds': time.perf_counter() - started, 'modules': sorted(sys.modules),\n"
            "           'threads': threading.active_count() - 1, 'environment': dict(os.environ) != environment,\n"
            "           'sys.path': sys.path != path}\n"
            "print('\\n' + json.dumps(effects))"
        )
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"importing {self.module} failed:\n{done.stderr}")
        said, _, effects = done.stdout.rstrip("\n").rpartition("\n")
        return json.loads(effects) | {"prints": (said + done.stderr).strip()}

    def sources(self) -> str:
        """SHA-256 over the files of the backend's package and of those that its rows come from."""
        return code_digest(self.backend, self.module, Sources(ROOT))


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def row_id(kernel: Kernel) -> str:
    return f"{kernel.op}-{kernel.name}"


def row_of(item: Any) -> str | None:
    """The id of the row that a test is about."""
    kernel = item.callspec.params.get("kernel") if hasattr(item, "callspec") else None
    return None if kernel is None else row_id(kernel)


def _tensor_types(kind: type = torch.Tensor) -> Iterator[type]:
    """A type and all that are derived of it."""
    yield kind
    derived: list[type] = type.__subclasses__(kind)
    for one in derived:
        yield from _tensor_types(one)


def live_bytes(memory: Memory, torch_device: str) -> int:
    """Bytes of tensors alive: as the device's memory counts, or where it does not, summed over Python's objects."""
    gc.collect()
    counted = memory.used(torch.device(torch_device)).allocated
    if counted is not None:
        return counted
    kinds, storages = {torch.UntypedStorage, *_tensor_types()}, {}
    # By type(), because isinstance() asks an object for its __class__, and lazy modules answer by importing.
    for thing in [one for one in gc.get_objects() if type(one) in kinds]:
        if type(thing) is not torch.UntypedStorage:
            if thing.layout != torch.strided or thing.is_meta:
                continue
            thing = thing.untyped_storage()
        if thing.device.type != "meta":
            storages[thing.data_ptr()] = thing.nbytes()
    return sum(storages.values())


def _completed(backend: Backend) -> Backend:
    """With the formats of packages that its rows name; those that nobody brings are left for the tests to tell."""
    for row in backend.kernels:
        for name in row.formats if row.op in FORMATTED and "*" not in row.formats else ():
            with suppress(InputError):
                backend = formats.completed(backend, {row.op: name})
    return backend
