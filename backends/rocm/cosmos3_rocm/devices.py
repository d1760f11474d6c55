"""AMD's GPUs that can be planned for unseen, and what each can do at most.

Put together from AMD's documentation: memory is nominal (ROCm's page "AMD GPU specifications"), that of the Radeon
8060S what a machine of 128 GB may give it, and versions are examples of one release of torch.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device, Tuning

GIB = 1 << 30
PCIE_4, PCIE_5 = 1.969e9, 3.938e9
"""Bytes a second that a lane takes one way: 16 and 32 GT/s, of whose 130 bits 128 are data (PCI-SIG)."""
TORCH = {"torch": "2.11.0+rocm7.2", "hip": "7.2.53150", "kernel launches": "not measured"}


def _device(arch: str, name: str, memory: int, unified: bool = False) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=unified, versions=TORCH)


KNOWN = (
    _device("gfx90a", "AMD Instinct MI250X", 64 * GIB),  # one of its two dies, as torch counts them
    _device("gfx942", "AMD Instinct MI300X", 192 * GIB),
    _device("gfx942", "AMD Instinct MI325X", 256 * GIB),
    _device("gfx950", "AMD Instinct MI350X", 288 * 10**9),
    _device("gfx950", "AMD Instinct MI355X", 288 * 10**9),
    _device("gfx1100", "AMD Radeon RX 7900 XTX", 24 * GIB),
    _device("gfx1151", "Radeon 8060S Graphics", 96 * GIB, unified=True),
    _device("gfx1200", "AMD Radeon RX 9060 XT", 16 * GIB),
    _device("gfx1201", "AMD Radeon RX 9070", 16 * GIB),
    _device("gfx1201", "AMD Radeon RX 9070 XT", 16 * GIB),
    _device("gfx1201", "AMD Radeon AI PRO R9700", 32 * GIB),
)

CDNA_4 = (
    "AMD's formula for CDNA 4's matrix cores (ROCm blogs, 30 September 2025) at the {} GHz of the {}, without "
    "sparsity; bandwidth: AMD's data sheet"
)
RDNA_3 = (
    "512 operations a clock and CU, in 8 bits too (the table of RDNA 3 in AMD's GPUOpen on RDNA 4), 96 CUs at 2.5 GHz; "
    "bandwidth: AMD's data sheet, as the press quotes it"
)
RDNA_4 = (
    "1024 operations a clock and CU, 2048 in 8 bits (AMD's GPUOpen on RDNA 4), {} CUs at {} GHz, without sparsity; "
    "bandwidth: AMD's data sheet, as the press quotes it"
)


def _rates(units: int, operations: int, ghz: float, **more: int) -> dict[str, float]:
    """TFLOP/s of so many CUs with so many operations a clock in bfloat16, and so many times that in other formats."""
    return {name: round(units * operations * ghz * times / 1000, 1) for name, times in {"bfloat16": 1, **more}.items()}


def _cdna_4(ghz: float, name: str) -> Ceiling:
    rates = _rates(256, 4096, ghz, fp8=2, int8=2, mxfp8=2, mxfp4=4)
    return Ceiling(tflops=rates, bandwidth=8e12, source=CDNA_4.format(ghz, name), link=16 * PCIE_5)


def _rdna_4(units: int, ghz: float, bandwidth: float) -> Ceiling:
    rates = _rates(units, 1024, ghz, fp8=2, int8=2)
    return Ceiling(tflops=rates, bandwidth=bandwidth, source=RDNA_4.format(units, ghz), link=16 * PCIE_5)


# Links are those of AMD's data sheets. A Radeon 8060S has the host's memory.
CEILINGS = {
    "MI250X": Ceiling(
        tflops={"bfloat16": 191.5, "int8": 191.5},
        bandwidth=1.6e12,
        source="AMD's data sheet of the Instinct MI250X, halved: one of its two dies",
        link=8 * PCIE_4,  # half of the module's
    ),
    "MI300X": Ceiling(
        tflops={"bfloat16": 1307.4, "fp8": 2614.9, "int8": 2614.9},
        bandwidth=5.3e12,
        source="AMD's data sheet of the Instinct MI300X, without sparsity",
        link=16 * PCIE_5,
    ),
    "MI325X": Ceiling(
        tflops={"bfloat16": 1307.4, "fp8": 2614.9, "int8": 2614.9},
        bandwidth=6e12,
        source="AMD's data sheet of the Instinct MI325X, without sparsity",
        link=16 * PCIE_5,
    ),
    "MI350X": _cdna_4(2.2, "MI350X"),
    "MI355X": _cdna_4(2.4, "MI355X"),
    "RX 7900 XTX": Ceiling(
        tflops={"bfloat16": 122.9, "int8": 122.9}, bandwidth=9.6e11, source=RDNA_3, link=16 * PCIE_4
    ),
    "gfx1151": Ceiling(
        tflops={"bfloat16": 36.1},
        bandwidth=2.56e11,
        source="bfloat16: the best GEMM of kabayan/Cosmos3-Nano-gfx1151-benchmark on one Radeon 8060S; "
        "bandwidth: AMD's data sheet of the Ryzen AI Max+ 395, 256 bits of LPDDR5X-8000",
    ),
    # Before the RX 9070, whose name is part of theirs.
    "RX 9070 XT": _rdna_4(64, 2.97, 6.4e11),
    "RX 9070 GRE": _rdna_4(48, 2.79, 4.32e11),
    "RX 9070": _rdna_4(56, 2.52, 6.4e11),
    "RX 9060 XT": _rdna_4(32, 3.13, 3.2e11),
    "R9700": _rdna_4(64, 2.92, 6.4e11),
}

CHANNELS_FIRST = (
    *("gfx1100", "gfx1101", "gfx1102", "gfx1103"),
    *("gfx1150", "gfx1151", "gfx1152", "gfx1153"),
    *("gfx1200", "gfx1201"),
)
"""Radeon GPUs, on which MIOpen's convolutions of maps with the channels last are many times slower
(pytorch/pytorch#170947, on gfx1100 and gfx1103; the others are taken to be like them). On Instinct GPUs they are the
fast ones."""

TUNING = dict.fromkeys(CHANNELS_FIRST, Tuning(channels_last=False))
