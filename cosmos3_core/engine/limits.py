"""How a process takes memory of a device: in segments that grow, and no more of it than on a smaller card."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..contract import InputError, Memory, Unavailable
from ..plan.cost.stages import OVERHEAD_BYTES
from ..plan.cost.units import gib


def expandable() -> None:
    """Have torch's allocator take memory in segments that grow, unless the user has told it something: blocks of every
    size leave gaps that nothing fits into. Torch has no public function for it, and 2.11 none that says what it was
    told but PYTORCH_ALLOC_CONF, which devices have under names of their own."""
    told = (name.startswith("PYTORCH_") and name.endswith("ALLOC_CONF") for name in os.environ)  # noqa: TID251
    if not any(told):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


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
