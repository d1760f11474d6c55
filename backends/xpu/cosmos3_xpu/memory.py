"""contract.Memory by torch.xpu.

Events are torch.Event: a wait for a torch.xpu.Event on another stream has been seen to do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, xpu

from cosmos3_core.contract import Bytes


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


class XpuMemory:
    """See contract.Memory."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, torch.Stream] = {}

    def free(self, device: torch.device) -> int:
        try:
            return xpu.mem_get_info(device)[0]
        except RuntimeError:  # some drivers of integrated GPUs do not tell
            return self.total(device) - xpu.memory_reserved(device)

    def total(self, device: torch.device) -> int:
        return xpu.get_device_properties(device).total_memory

    def used(self, device: torch.device) -> Bytes:
        self.synchronize(device)
        return Bytes(xpu.memory_allocated(device), xpu.memory_reserved(device))

    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes:
        found = Bytes(xpu.max_memory_allocated(device), xpu.max_memory_reserved(device))
        if reset:
            xpu.reset_peak_memory_stats(device)
        return found

    def empty(self, device: torch.device) -> None:
        xpu.empty_cache()

    def limit(self, device: torch.device, size: int) -> None:
        xpu.set_per_process_memory_fraction(min(1.0, size / self.total(device)), device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, target: Tensor, source: Tensor) -> Copied:
        target.copy_(source, non_blocking=True)
        event = torch.Event(source.device if target.is_cpu else target.device)
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
        xpu.synchronize(device)
