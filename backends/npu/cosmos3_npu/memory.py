"""contract.Memory by torch.npu.

Events are torch.Event, which every kind of stream can wait for. HCCL's collectives run on streams of its own. Their
`wait()` orders the device's next work behind them, and vendors still wait for the stream before they record an event
behind a collective (vLLM-Omni's `record_device_event` for NPUs): so does a copy here, once processes share a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos3_core.contract import Bytes, Device


@dataclass(frozen=True)
class Copied:
    """A copy on its way from `source`, which is kept until it has arrived, to `target`."""

    target: Tensor
    source: Tensor
    event: torch.Event

    def wait(self) -> Tensor:
        self.event.synchronize()
        return self.target


@dataclass(frozen=True)
class Fetched(Copied):
    """A copy on its way on a stream of its own. Who waits for it holds up the device's further work, not the host."""

    def wait(self) -> Tensor:
        self.event.wait(torch.accelerator.current_stream(self.target.device))
        return self.target


class NpuMemory:
    """See contract.Memory."""

    def __init__(self) -> None:
        self._npu: Any = torch.get_device_module("npu")
        self._lanes: dict[torch.device, torch.Stream] = {}

    def free(self, device: torch.device) -> int:
        found: int = self._npu.mem_get_info(device)[0]
        return found

    def total(self, device: torch.device) -> int:
        found: int = self._npu.mem_get_info(device)[1]
        return found

    def used(self, device: torch.device) -> Bytes:
        self.synchronize(device)
        return Bytes(self._npu.memory_allocated(device), self._npu.memory_reserved(device))

    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes:
        found = Bytes(self._npu.max_memory_allocated(device), self._npu.max_memory_reserved(device))
        if reset:
            self._npu.reset_peak_memory_stats(device)
        return found

    def empty(self, device: torch.device) -> None:
        self._npu.empty_cache()

    def limit(self, device: torch.device, size: int) -> None:
        index = self._npu.current_device() if device.index is None else device.index
        self._npu.set_per_process_memory_fraction(min(1.0, size / self.total(device)), index)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> Copied:
        device = source.device if target.is_cpu else target.device
        if dist.is_initialized():
            self._npu.current_stream(device).synchronize()
        target.copy_(source, non_blocking=True)
        event = torch.Event(device)
        event.record()
        return Copied(target, source, event)

    def fetch(self, target: Tensor, source: Tensor) -> Fetched:
        device = target.device
        lane = self._lanes.get(device) or self._lanes.setdefault(device, torch.Stream(device))
        lane.wait_stream(torch.accelerator.current_stream(device))
        event = torch.Event(device)
        with lane:
            target.copy_(source, non_blocking=True)
            event.record(lane)
        target.record_stream(lane)  # whoever frees the target must not have it filled afterwards
        return Fetched(target, source, event)

    def synchronize(self, device: torch.device) -> None:
        self._npu.synchronize(device)


def memory(device: Device) -> NpuMemory:
    return NpuMemory()
