"""contract.Memory by torch's device-neutral interfaces. Tensors of the host's processor lie in the host's memory: of
that, the operating system says what is free, and nobody counts what they take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, accelerator

from ..contract import Bytes, Memory, Pending, Unavailable
from .hosts import free_memory

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


@dataclass(frozen=True)
class Fetched:
    """A copy on its way to `target`, on a stream of its own."""

    target: Tensor
    event: torch.Event

    def wait(self) -> Tensor:
        self.event.wait(accelerator.current_stream(self.target.device))
        return self.target


class Fetching:
    """A row of contract.Memory that lacks `fetch`: what arrives is waited for by the host."""

    def __init__(self, row: Any):
        self._row = row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)

    def fetch(self, target: Tensor, source: Tensor) -> Pending:
        begun: Pending = self._row.copy(target, source)
        return begun


def whole(row: Any) -> Memory:
    """A row with all that contract.Memory has."""
    return row if hasattr(row, "fetch") else Fetching(row)


class TorchMemory:
    """See contract.Memory."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, torch.Stream] = {}

    def free(self, device: torch.device) -> int:
        return free_memory() if _is_host(device) else accelerator.get_memory_info(device)[0]

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

    def fetch(self, target: Tensor, source: Tensor) -> Copied | Fetched:
        device = target.device
        if _is_host(device):
            return Copied(target.copy_(source), None)
        lane = self._lanes.get(device) or self._lanes.setdefault(device, torch.Stream(device))
        lane.wait_stream(accelerator.current_stream(device))
        with lane:
            target.copy_(source, non_blocking=True)
            arrived = lane.record_event()
        target.record_stream(lane)  # whoever frees the target must not have it filled afterwards
        return Fetched(target, arrived)

    def synchronize(self, device: torch.device) -> None:
        if not _is_host(device):
            accelerator.synchronize(device)


def _is_host(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"
