"""Peak memory of this process, as manifests, records and benchmarks state it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..contract import Memory

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


def peak_device_memory(memory: Memory, device: torch.device | str) -> dict[str, int | None] | None:
    """Bytes that tensors took at most in this process (`allocated`) and that the allocator held for them (`reserved`),
    each None where it is not counted. None where neither is: the host's memory, which is no device's."""
    import torch

    found = memory.peak(torch.device(device))._asdict()
    return None if set(found.values()) == {None} else found


def counted(host: int, device: dict[str, int | None] | None) -> dict[str, int]:
    """What is counted of both peaks, in bytes: `host_bytes`, `allocated_bytes` and `reserved_bytes`."""
    return {"host_bytes": host} | {f"{name}_bytes": count for name, count in (device or {}).items() if count}
