"""contract.Memory by torch's device-neutral interfaces. Tensors of the host's processor lie in the host's memory: of
that, the operating system says what is free, and nobody counts what they take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, accelerator

from ..contract import Bytes, Unavailable

UNKNOWN = Bytes(None, None)


@dataclass(frozen=True)
class Copied:
    """A copy on its way to `target`; without an `event` it has arrived."""

    target: Tensor
    event: torch.Event | None

    def wait(self) -> Tensor:
        if self.event is not None:
            self.event.synchronize()
        return self.target


class TorchMemory:
    """See contract.Memory."""

    def free(self, device: torch.device) -> int:
        return _host_free() if _is_host(device) else accelerator.get_memory_info(device)[0]

    def total(self, device: torch.device) -> int:
        if _is_host(device):
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return accelerator.get_memory_info(device)[1]

    def used(self, device: torch.device) -> Bytes:
        if _is_host(device):
            return UNKNOWN
        self.synchronize(device)
        return Bytes(accelerator.memory_allocated(device), accelerator.memory_reserved(device))

    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes:
        if _is_host(device):
            return UNKNOWN
        found = accelerator.max_memory_allocated(device), accelerator.max_memory_reserved(device)
        if reset:
            accelerator.reset_peak_memory_stats(device)
        return Bytes(*(count or None for count in found))  # 0: this device's allocator does not count

    def empty(self, device: torch.device) -> None:
        if not _is_host(device):
            accelerator.empty_cache()

    def limit(self, device: torch.device, size: int) -> None:
        module = None if _is_host(device) else torch.get_device_module(device)
        limit = getattr(module, "set_per_process_memory_fraction", None)
        if limit is None:
            raise Unavailable(f"torch cannot limit the memory of a device of type {torch.device(device).type}")
        index = torch.device(device).index
        limit(min(1.0, size / self.total(device)), accelerator.current_device_index() if index is None else index)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=not _is_host(device))

    def copy(self, target: Tensor, source: Tensor) -> Copied:
        device = source.device if target.is_cpu else target.device
        if _is_host(device):
            return Copied(target.copy_(source), None)
        target.copy_(source, non_blocking=True)
        event = torch.Event(device, blocking=True)
        event.record()
        return Copied(target, event)

    def synchronize(self, device: torch.device) -> None:
        if not _is_host(device):
            accelerator.synchronize(device)


def _is_host(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"


def _host_free() -> int:
    """What the operating system could give without taking it from a program."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
