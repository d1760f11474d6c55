"""The reference backend: every op in eager torch, on the host's processor."""

from __future__ import annotations

from ..contract import OPS, Backend, Device, Kernel


def probe() -> Device:
    """The host: its processor's name and its memory in bytes."""
    import os
    import platform

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(arch=platform.machine(), name="CPU", count=1, memory=memory, unified=True)


def _row(op: str) -> Kernel:
    def build(device: Device):
        from . import ops

        return getattr(ops, op)

    return Kernel(op=op, name="eager", build=build, notes="torch operations; correct on every device, fast on none")


BACKEND = Backend(
    name="reference",
    torch_device="cpu",
    collectives="gloo",
    probe=probe,
    kernels=tuple(_row(op) for op in OPS),
)
