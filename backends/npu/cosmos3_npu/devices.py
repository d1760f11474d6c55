"""Ascend NPUs that can be planned for unseen, and what each can do at most. Put together from Huawei's documentation:
memory is nominal, and versions are examples of one release of CANN."""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device

GIB = 1 << 30
CANN = {"driver": "25.5.0", "torch": "2.13.0+cpu", "torch-npu": "2.13.0", "cann": "9.1.0"}


def _device(arch: str, name: str, memory: int) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=False, versions=CANN)


KNOWN = (
    _device("Ascend910B", "Ascend910B3", 64 * GIB),
    _device("Ascend910C", "Ascend910_9391", 64 * GIB),
    _device("Ascend950", "Ascend950PR_9589", 128 * 10**9),
)

CEILINGS = {
    "910B3": Ceiling(
        tflops={"bfloat16": 313, "int8": 626},
        bandwidth=1.6e12,
        source="what others give for one of an Atlas 800T A2's eight, as Huawei's page was not at hand: 313 TFLOP/s in "
        "16 bits, 1.6 TB/s; int8 is taken for twice that",
    ),
    "Ascend910C": Ceiling(
        tflops={"bfloat16": 376, "int8": 752},
        bandwidth=1.6e12,
        source="Huawei on CloudMatrix384 (arXiv 2506.12708), halved: one of the two dies, as torch counts them",
    ),
    "Ascend950": Ceiling(
        tflops={"bfloat16": 500, "int8": 1000, "mxfp8": 1000, "mxfp4a8": 1000, "mxfp4": 2000, "mxfp4_dual": 2000},
        bandwidth=1.6e12,
        source="Huawei Connect 2025 on the 950PR: 1 PFLOP/s in MXFP8, 2 in MXFP4, 1.6 TB/s; bfloat16 was not named and "
        "is taken for half of MXFP8, int8 for the same",
    ),
}
