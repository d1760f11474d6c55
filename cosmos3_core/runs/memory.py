"""Peak memory of this process, as manifests, records and benchmarks state it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_host_memory() -> int:
    """The process's largest resident size so far, in bytes."""
    # Linux counts in getrusage what the parent had at the fork, too.
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # macOS counts in bytes, others in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_memory(torch_device: str) -> dict[str, int | None] | None:
    """Bytes that tensors took at most in this process (`allocated`) and that torch held for them (`reserved`), each
    None where torch does not count it. None where `torch_device` is no accelerator: its memory is the host's."""
    import torch

    accelerator = torch.accelerator
    if not accelerator.is_available() or accelerator.current_accelerator().type != torch_device:
        return None
    found = {"allocated": accelerator.max_memory_allocated(), "reserved": accelerator.max_memory_reserved()}
    return {name: count or None for name, count in found.items()}


def peak_memory(torch_device: str) -> dict[str, int]:
    """What is counted of both, in bytes: `host_bytes`, and on an accelerator `allocated_bytes` and `reserved_bytes`."""
    device = peak_device_memory(torch_device) or {}
    return {"host_bytes": peak_host_memory()} | {f"{name}_bytes": count for name, count in device.items() if count}
