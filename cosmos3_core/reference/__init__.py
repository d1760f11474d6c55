"""The reference backend: every op in eager torch, on the host's processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..contract import API, COMPOSITES, OPS, Backend, Comm, Device, Kernel, Memory, Ops, Tuning


def probe() -> Device:
    """The host: its processor's name and its memory in bytes."""
    import os
    import platform

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(arch=platform.machine(), name="CPU", count=1, memory=memory, unified=True)


def _eager(op: str) -> Kernel:
    def build(device: Device) -> Any:
        from . import ops

        return getattr(ops, op)

    return Kernel(op=op, name="eager", build=build, notes="torch operations; correct on every device, fast on none")


def _composed(op: str) -> Kernel:
    def build(device: Device) -> Any:
        from . import layers

        return getattr(layers, op)

    return Kernel(op=op, name="composed", build=build, formats=("*",), notes="of the rows chosen for the ops in it")


def _memory(device: Device) -> Memory:
    from .memory import TorchMemory

    return TorchMemory()


def _comm(device: Device) -> Comm:
    from .comm import TorchComm

    return TorchComm()


SYSTEM = (
    Kernel(op="memory", name="torch", build=_memory, notes="torch's device-neutral interface to allocator and copies"),
    Kernel(op="comm", name="torch", build=_comm, notes="torch.distributed, on the backend's collectives"),
)
EAGER = tuple(op for op in OPS if op not in (*COMPOSITES, "memory", "comm"))


def with_defaults(ops: Ops) -> Ops:
    """The ops as a composite's row gets them: see contract.ops.PackProject."""
    from . import layers

    return replace(ops, project=layers.project, finish=layers.finish)


def build_ops() -> Ops:
    """Every op of the reference, built: what the other rows are judged against."""
    device = probe()
    return Ops(**{row.op: row.build(device) for row in BACKEND.kernels})


BACKEND = Backend(
    name="reference",
    torch_device="cpu",
    collectives="gloo",
    probe=probe,
    kernels=(*map(_eager, EAGER), *map(_composed, COMPOSITES), *SYSTEM),
    # On a processor without bfloat16 arithmetic of its own, a convolution in it takes 37 to 130 times as long.
    tuning={"*": Tuning(codec_dtype="float32")},
    api=API,
)
