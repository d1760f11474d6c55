"""A process that takes no more of a device than it is allowed: as on a smaller card."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..contract import InputError, Memory, Unavailable
from ..plan.cost.stages import OVERHEAD_BYTES
from ..plan.cost.units import gib


@dataclass(frozen=True)
class Limit:
    """What bounds the process, until it is lifted; `size` None is nothing."""

    memory: Memory
    device: torch.device
    size: int | None

    def lift(self) -> None:
        if self.size is not None:
            self.memory.limit(self.device, self.memory.total(self.device))


def limited(memory: Memory, device: torch.device, size: int | None) -> Limit:
    """Let allocations fail that would take more of the device than `size` bytes, its context and libraries included:
    they take a part of a smaller card too. Raises InputError for a device that has no such limit."""
    if size is not None:
        held = memory.used(device).reserved or 0
        context = min(OVERHEAD_BYTES, max(0, memory.total(device) - memory.free(device) - held))
        try:
            memory.limit(device, max(1, size - context))
        except Unavailable as reason:
            raise InputError(
                f"`memory_limit` {gib(size)}", str(reason), "Drop it, or plan for so much `memory`"
            ) from None
    return Limit(memory, device, size)
