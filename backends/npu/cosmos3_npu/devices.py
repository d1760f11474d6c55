"""Ascend NPUs that can be planned for unseen. Put together from Huawei's documentation: memory is nominal, and versions
are examples of one release of CANN."""

from __future__ import annotations

from cosmos3_core.contract import Device

GIB = 1 << 30
CANN = {"driver": "25.5.0", "torch": "2.13.0+cpu", "torch-npu": "2.13.0", "cann": "8.5.0"}


def _device(arch: str, name: str, memory: int) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=False, versions=CANN)


KNOWN = (
    _device("Ascend910B", "Ascend910B3", 64 * GIB),
    _device("Ascend910C", "Ascend910_9391", 64 * GIB),
    _device("Ascend950", "Ascend950PR_9589", 128 * 10**9),
)
