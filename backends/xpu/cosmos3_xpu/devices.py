"""Intel's GPUs that can be planned for unseen, and what each can do at most.

Put together from Intel's documentation: memory is nominal, and versions are examples of one release of torch.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device

GIB = 1 << 30
PCIE_4, PCIE_5 = 1.969e9, 3.938e9
"""Bytes a second that a lane takes one way: 16 and 32 GT/s, of whose 130 bits 128 are data (PCI-SIG)."""
TORCH = {"driver": "1.6.33578+38", "torch": "2.11.0+xpu", "oneapi": "20250303", "kernel launches": "not measured"}


def _device(name: str, memory: int, arch: str = "bmg-g21", unified: bool = False, count: int = 1) -> Device:
    return Device(arch=arch, name=name, count=count, memory=memory, unified=unified, versions=TORCH)


KNOWN = (
    _device("Intel(R) Arc(TM) B580 Graphics", 12 * GIB),
    _device("Intel(R) Arc(TM) Pro B50 Graphics", 16 * GIB),
    _device("Intel(R) Arc(TM) Pro B60 Graphics", 24 * GIB),
    # Two GPUs on one card, each with memory of its own: the plan is for one of them, --devices 2 for both.
    _device("Dual Intel(R) Arc(TM) Pro B60 Graphics", 24 * GIB, count=2),
    _device("Intel(R) Data Center GPU Max 1550", 64 * GIB, "pvc"),  # one of its two stacks, as torch counts them
    # Integrated GPUs share the host's memory; what they may have of it is about half: here of 32 GB.
    _device("Intel(R) Arc(TM) 140V GPU", 16 * GIB, "lnl-m", unified=True),  # Xe2
    _device("Intel(R) Arc(TM) B390 GPU", 16 * GIB, "ptl-h", unified=True),  # Xe3
)

# Links are those of the same data sheets.
CEILINGS = {
    "B580 Graphics": Ceiling(
        tflops={"bfloat16": 116.5, "int8": 233},
        bandwidth=4.56e11,
        source="Intel's data sheet of the Arc B580: 233 TOPS in int8, half of that in bfloat16",
        link=8 * PCIE_4,
    ),
    "B60 Graphics": Ceiling(
        tflops={"bfloat16": 98.5, "int8": 197},
        bandwidth=4.56e11,
        source="Intel's data sheet of the Arc Pro B60: 197 TOPS in int8, half of that in bfloat16",
        link=8 * PCIE_5,
    ),
    "B50 Graphics": Ceiling(
        tflops={"bfloat16": 85, "int8": 170},
        bandwidth=2.24e11,
        source="Intel's data sheet of the Arc Pro B50: 170 TOPS in int8, half of that in bfloat16",
    ),
    "Max 1550": Ceiling(
        tflops={"bfloat16": 419, "int8": 839},
        bandwidth=1.64e12,
        source="Intel's overview of the Max 1550: 839 TFLOPS in bfloat16, twice in int8, 3.28 TB/s; a stack has half",
    ),
    "140V GPU": Ceiling(
        tflops={"bfloat16": 33.5, "int8": 67},
        bandwidth=1.37e11,
        source="Intel's brief of the Core Ultra 200V: 67 TOPS in int8, half of that in bfloat16; LPDDR5X-8533",
    ),
    "B390 GPU": Ceiling(
        tflops={"bfloat16": 60, "int8": 120},
        bandwidth=1.53e11,
        source="Intel's brief of the Core Ultra 300: 120 TOPS in int8, half of that in bfloat16; LPDDR5X-9600",
    ),
}
