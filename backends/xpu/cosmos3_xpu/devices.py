"""Intel's GPUs that can be planned for unseen, and what each can do at most.

Put together from Intel's documentation and the press: memory is nominal, versions are those of one release of torch.
docs/xpu.md says which figures nobody confirmed.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device

GIB = 1 << 30
PCIE_4, PCIE_5 = 1.969e9, 3.938e9
"""Bytes a second that a lane takes one way: 16 and 32 GT/s, of whose 130 bits 128 are data (PCI-SIG)."""
TORCH = {"driver": "1.6.33578+38", "torch": "2.13.0+xpu", "oneapi": "20260000", "kernel launches": "not measured"}


def _device(name: str, memory: int, arch: str = "bmg-g21", unified: bool = False, count: int = 1) -> Device:
    return Device(arch=arch, name=name, count=count, memory=memory, unified=unified, versions=TORCH)


KNOWN = (
    # The first of an architecture is what --arch plans for.
    _device("Intel(R) Arc(TM) B580 Graphics", 12 * GIB),
    _device("Intel(R) Arc(TM) B570 Graphics", 10 * GIB),
    _device("Intel(R) Arc(TM) Pro B50 Graphics", 16 * GIB),
    _device("Intel(R) Arc(TM) Pro B60 Graphics", 24 * GIB),
    # Two GPUs on one card, each with memory of its own: the plan is for one of them, --devices 2 for both.
    _device("Dual Intel(R) Arc(TM) Pro B60 Graphics", 24 * GIB, count=2),
    _device("Intel(R) Arc(TM) Pro B70 Graphics", 32 * GIB, "bmg-g31"),
    _device("Intel(R) Arc(TM) A770 Graphics", 16 * GIB, "acm-g10"),
    _device("Intel(R) Arc(TM) A750 Graphics", 8 * GIB, "acm-g10"),
    _device("Intel(R) Data Center GPU Max 1550", 64 * GIB, "pvc"),  # one of its two stacks, as torch counts them
    # Integrated GPUs share the host's memory; what they may have of it is about half: here of 32 GB.
    _device("Intel(R) Arc(TM) 140T GPU", 16 * GIB, "arl-h", unified=True),  # Xe with matrix units
    _device("Intel(R) Arc(TM) 140V GPU", 16 * GIB, "lnl-m", unified=True),  # Xe2
    _device("Intel(R) Arc(TM) B390 GPU", 16 * GIB, "ptl-h", unified=True),  # Xe3
)


def _arc(name: str, tops: int, bandwidth: float, link: float = 0.0, memory: str = "") -> Ceiling:
    """Of a GPU with so many TOPS in int8: 4096 operations a clock and Xe core, and half of that in bfloat16."""
    source = f"Intel's specifications of the {name}: {tops} TOPS in int8{memory}, half of that in bfloat16"
    return Ceiling(tflops={"bfloat16": tops / 2, "int8": tops}, bandwidth=bandwidth, source=source, link=link)


# Links are those of the same specifications; integrated GPUs have the host's memory.
CEILINGS = {
    "A750 Graphics": _arc("Arc A750", 229, 5.12e11, 16 * PCIE_4),
    "A770 Graphics": _arc("Arc A770", 262, 5.6e11, 16 * PCIE_4),
    "B570 Graphics": _arc("Arc B570", 203, 3.8e11, 8 * PCIE_4),
    "B580 Graphics": _arc("Arc B580", 233, 4.56e11, 8 * PCIE_4),
    "B50 Graphics": _arc("Arc Pro B50", 170, 2.24e11, 8 * PCIE_5),
    "B60 Graphics": _arc("Arc Pro B60", 197, 4.56e11, 8 * PCIE_5),
    "B70 Graphics": _arc("Arc Pro B70", 367, 6.08e11, 16 * PCIE_5),
    "Max 1550": Ceiling(
        tflops={"bfloat16": 419, "int8": 839},
        bandwidth=1.64e12,
        source="Intel's overview of the Max 1550: 839 TFLOPS in bfloat16, twice in int8, 3.28 TB/s; a stack has half",
        link=16 * PCIE_5,
    ),
    "140T GPU": _arc("Core Ultra 200H", 77, 1.34e11, memory=" and LPDDR5X-8400"),
    "140V GPU": _arc("Core Ultra 200V", 67, 1.37e11, memory=" and LPDDR5X-8533"),
    "B390 GPU": _arc("Core Ultra 300", 120, 1.53e11, memory=" and LPDDR5X-9600"),
}
