from __future__ import annotations

from cosmos3_core.contract import API, Backend, Device, Kernel, hookimpl


def probe() -> Device:
    return Device(arch="solo1", name="Solo One", count=1, memory=8 * 2**30, unified=True)


def build_finish(device: Device):
    from .half import gating_half

    return gating_half


@hookimpl
def cosmos3_backend() -> Backend:
    row = Kernel(op="finish", name="gating", build=build_finish, formats=("*",), fuses=("gate",))
    return Backend(name="solo", torch_device="cpu", collectives="gloo", probe=probe, kernels=(row,), api=API)
