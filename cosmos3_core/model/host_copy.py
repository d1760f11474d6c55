"""Copies of tensors on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contract import Memory


class HostCopy:
    """A copy of a tensor in pinned memory, or in ordinary memory where the host pins no more; perhaps still under way.
    `wait` returns it whole. What the device does next may read `host` at once: its queue keeps order."""

    def __init__(self, memory: Memory, x: Tensor):
        try:
            self.host = memory.pinned(x.shape, x.dtype, x.device)
        except RuntimeError:
            self.host = torch.empty(x.shape, dtype=x.dtype)
        self.wait = memory.copy(self.host, x).wait
