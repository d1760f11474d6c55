"""What a caller may have set of torch for a thread, and the engine does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..contract import RunError


@contextmanager
def plain_torch(device: torch.device | str = "cpu") -> Iterator[None]:
    """torch without the caller's autocast, on the host and on this device, and without a default device. A default
    dtype is the whole process's and cannot be put aside for one thread. Raises RunError for another than float32."""
    if (dtype := torch.get_default_dtype()) != torch.float32:
        found = "it holds in the whole process, and the model's own numbers would be made in it"
        raise RunError(f"running with torch's default dtype {dtype}", found, "torch.set_default_dtype(torch.float32)")
    with ExitStack() as stack:
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        for kind in {"cpu", torch.device(device).type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
