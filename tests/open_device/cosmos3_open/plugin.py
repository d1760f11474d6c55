from __future__ import annotations

from cosmos3_core.contract import API, Backend, Device, Kernel, hookimpl


def probe() -> Device:
    from . import device

    device.register()  # as importing a vendor's torch package does
    return Device(arch="open1", name="Open One", count=1, memory=device.MEMORY, unified=False)


def build_memory(device: Device):
    from .memory import OpenMemory

    return OpenMemory()


def build_gate(device: Device):
    from .gate import by_halves

    return by_halves


@hookimpl
def cosmos3_backend() -> Backend:
    rows = (
        Kernel(op="memory", name="counted", build=build_memory),
        Kernel(op="gate", name="by_halves", build=build_gate),
    )
    return Backend(name="open", torch_device="opendev", collectives="gloo", probe=probe, kernels=rows, api=API)
