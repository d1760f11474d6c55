"""contract.Memory of the device: what its own allocator counts, and copies that are done when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos3_core.contract import Bytes

from .device import ALLOCATOR


@dataclass(frozen=True)
class Copied:
    target: Tensor

    def wait(self) -> Tensor:
        return self.target


class OpenMemory:
    def free(self, device: torch.device) -> int:
        return ALLOCATOR.limit - ALLOCATOR.now

    def total(self, device: torch.device) -> int:
        return ALLOCATOR.limit

    def used(self, device: torch.device) -> Bytes:
        return Bytes(ALLOCATOR.now, ALLOCATOR.now)

    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes:
        found = ALLOCATOR.peak
        if reset:
            ALLOCATOR.peak = ALLOCATOR.now
        return Bytes(found, found)

    def empty(self, device: torch.device) -> None:
        pass  # nothing is held that no tensor uses

    def limit(self, device: torch.device, size: int) -> None:
        ALLOCATOR.limit = size

    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> Copied:
        return Copied(target.copy_(source))

    def synchronize(self, device: torch.device) -> None:
        pass
