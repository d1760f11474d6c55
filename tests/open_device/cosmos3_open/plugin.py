from __future__ import annotations

import os
from dataclasses import replace

from cosmos3_core.contract import API, Backend, Device, Kernel, hookimpl


def probe() -> Device:
    from . import device

    device.register()  # as importing a vendor's torch package does
    count = int(os.environ.get("OPEN_DEVICES", 1))
    return Device(arch="open1", name="Open One", count=count, memory=device.MEMORY, unified=False)


def build_memory(device: Device):
    from .memory import OpenMemory

    return OpenMemory()


def build_gate(device: Device):
    from .gate import by_halves

    return by_halves


def build_faulty_gate(device: Device):
    from .gate import on_the_first

    return on_the_first


@hookimpl
def cosmos3_backend() -> Backend:
    gate = Kernel(op="gate", name="by_halves", build=build_gate)
    rows = (Kernel(op="memory", name="counted", build=build_memory), gate)
    if "OPEN_DEVICES" in os.environ:
        rows += (replace(gate, name="on_the_first", build=build_faulty_gate),)
    return Backend(name="open", torch_device="opendev", collectives="gloo", probe=probe, kernels=rows, api=API)
