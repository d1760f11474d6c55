"""NVIDIA's GPUs that can be planned for unseen, and what each can do at most.

Names are those that the driver gives, memory is nominal but for what a probe reported (H100, H200), and versions are
examples of one release of torch.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device, Tuning

GIB = 1 << 30
PCIE_4, PCIE_5 = 1.969e9, 3.938e9
"""Bytes a second that a lane takes one way: 16 and 32 GT/s, of whose 130 bits 128 are data (PCI-SIG)."""
TORCH = {"driver": "580.159.04", "torch": "2.11.0+cu130", "cuda": "13.0", "cudnn": "9.19.0"}
MEASURED = {"kernel launches": "NVIDIA H100 80GB HBM3, triton 3.6.0"}
DEFAULTS = {"kernel launches": "not measured"}


def _device(arch: str, name: str, memory: int, launches: dict[str, str], unified: bool = False) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=unified, versions=TORCH | launches)


KNOWN = (
    _device("sm_80", "NVIDIA A100-SXM4-80GB", 80 * GIB, DEFAULTS),
    _device("sm_86", "NVIDIA GeForce RTX 3060", 12 * GIB, DEFAULTS),
    _device("sm_89", "NVIDIA GeForce RTX 4060", 8 * GIB, DEFAULTS),
    _device("sm_89", "NVIDIA GeForce RTX 4060 Ti", 16 * GIB, DEFAULTS),
    _device("sm_89", "NVIDIA GeForce RTX 4090", 24 * GIB, DEFAULTS),
    _device("sm_90", "NVIDIA H100 80GB HBM3", 80 * GIB, MEASURED),
    _device("sm_90", "NVIDIA H200", 150_109_880_320, MEASURED),
    _device("sm_100", "NVIDIA B200", 180 * 10**9, DEFAULTS),
    _device("sm_103", "NVIDIA B300", 288 * 10**9, DEFAULTS),
    _device("sm_120", "NVIDIA GeForce RTX 5090", 32 * GIB, DEFAULTS),
    _device("sm_121", "NVIDIA GB10", 128 * 10**9, DEFAULTS, unified=True),
)

CARDS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
TUNING = dict.fromkeys(CARDS, Tuning(expandable_segments=True))
"""A GPU that has the host's memory is not among them: where that is short, a segment that cannot grow raises what torch
does not know as a lack of memory."""

ADA = (
    "NVIDIA's Ada GPU architecture white paper: the rates of the GeForce RTX 4090, without sparsity, accumulating "
    "in fp32{}; bandwidth: NVIDIA's page of the card"
)
GA10X = (
    "NVIDIA's Ampere GA102 GPU architecture white paper: the rates of the GeForce RTX 3090, without sparsity, floats "
    "accumulating in fp32, by its multiprocessors and clock; bandwidth: NVIDIA's page of the card"
)

ADA_FORMATS = {"fp8": 2, "int8": 4}
SCALED = ", by the card's multiprocessors and clock"


def _geforce(units: int, ghz: float, formats: dict[str, int], bandwidth: float, source: str, lanes: int) -> Ceiling:
    """Of Ampere and Ada: 512 operations a clock and multiprocessor in bfloat16, and so many times that in `formats`."""
    rates = {name: round(units * 512 * ghz * times / 1000, 1) for name, times in {"bfloat16": 1, **formats}.items()}
    return Ceiling(tflops=rates, bandwidth=bandwidth, source=source, link=lanes * PCIE_4)


# Links are those of NVIDIA's pages of the cards and data sheets of the modules, `peers` half of NVLink's bandwidth
# there; a B200 of a GB200, whose link is NVLink-C2C, has another name. A GB10 has the host's memory.
CEILINGS = {
    "RTX 3060": _geforce(28, 1.777, {"int8": 4}, 3.6e11, GA10X, 16),
    "RTX 4060": _geforce(24, 2.46, ADA_FORMATS, 2.72e11, ADA.format(SCALED), 8),
    "RTX 4060 Ti": _geforce(34, 2.535, ADA_FORMATS, 2.88e11, ADA.format(SCALED), 8),
    "RTX 4090": _geforce(128, 2.52, ADA_FORMATS, 1.008e12, ADA.format(""), 16),
    "A100-SXM4-80GB": Ceiling(
        tflops={"bfloat16": 312, "int8": 624},
        bandwidth=2.039e12,
        source="NVIDIA's data sheet of the A100 80GB SXM, without sparsity",
        link=16 * PCIE_4,
        peers=300e9,
    ),
    "H100 80GB HBM3": Ceiling(
        tflops={"bfloat16": 799, "fp8": 1979, "int8": 1979},
        bandwidth=3.35e12,
        source="bfloat16: a GEMM measured on one H100 80GB SXM with torch 2.11; the rest: NVIDIA's data sheet of it, "
        "without sparsity",
        reached={"bfloat16": 0.84, "fp8": 0.52},  # in whole runs of 720p x 189 frames
        link=16 * PCIE_5,
        peers=450e9,
    ),
    "NVIDIA H200": Ceiling(
        tflops={"bfloat16": 989, "fp8": 1979, "int8": 1979},
        bandwidth=4.8e12,
        source="NVIDIA's data sheet of the H200 SXM, without sparsity",
        reached={"bfloat16": 0.7, "fp8": 0.64, "attention fp8": 0.48, "attention int8": 0.38},  # of 1 to 189 frames
        link=16 * PCIE_5,
        peers=450e9,
    ),
    "NVIDIA B200": Ceiling(
        tflops={"bfloat16": 2250, "fp8": 4500, "int8": 4500},
        bandwidth=8e12,
        source="NVIDIA's data sheet of the DGX B200, an eighth of it, without sparsity",
        link=16 * PCIE_5,
        peers=900e9,
    ),
    "RTX 5090": Ceiling(
        tflops={"bfloat16": 209.5, "fp8": 419, "int8": 838},
        bandwidth=1.792e12,
        source="NVIDIA's RTX Blackwell white paper: GeForce RTX 5090, without sparsity, floats accumulating in fp32",
        link=16 * PCIE_5,
    ),
    "GB10": Ceiling(
        tflops={"bfloat16": 96.9},
        bandwidth=2.73e11,
        source="bfloat16: a GEMM measured on one GB10 by HPC Systems (hpc.co.jp, 17 March 2026); "
        "bandwidth: NVIDIA's data sheet of the DGX Spark",
    ),
}
