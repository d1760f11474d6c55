"""AMD's GPUs that can be planned for unseen, and what each can do at most.

Put together from AMD's documentation: memory is nominal, that of the Radeon 8060S what a machine of 128 GB may give it,
and versions are examples of one release of torch.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device

GIB = 1 << 30
TORCH = {"torch": "2.11.0+rocm7.2", "hip": "7.2.53150", "kernel launches": "not measured"}


def _device(arch: str, name: str, memory: int, unified: bool = False) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=unified, versions=TORCH)


KNOWN = (
    _device("gfx942", "AMD Instinct MI300X", 192 * GIB),
    _device("gfx950", "AMD Instinct MI350X", 288 * 10**9),
    _device("gfx1151", "Radeon 8060S Graphics", 96 * GIB, unified=True),
    _device("gfx1201", "AMD Radeon RX 9070", 16 * GIB),
    _device("gfx1201", "AMD Radeon RX 9070 XT", 16 * GIB),
)

RDNA4 = (
    "1024 operations a clock and CU, 2048 in 8 bits (AMD's GPUOpen on RDNA 4), {} CUs at {} GHz, without sparsity; "
    "bandwidth: AMD's data sheet, as the press quotes it"
)

CEILINGS = {
    "MI300X": Ceiling(
        tflops={"bfloat16": 1307.4, "fp8": 2614.9},
        bandwidth=5.3e12,
        source="AMD's data sheet of the Instinct MI300X, without sparsity",
    ),
    "MI350X": Ceiling(
        tflops={"bfloat16": 2306.9, "fp8": 4613.7},
        bandwidth=8e12,
        source="AMD's formula for CDNA 4's matrix cores (ROCm blogs, 30 September 2025) at the MI350X's 2.2 GHz, "
        "without sparsity; bandwidth: AMD's data sheet",
    ),
    "gfx1151": Ceiling(
        tflops={"bfloat16": 36.1},
        bandwidth=2.56e11,
        source="bfloat16: the best GEMM of kabayan/Cosmos3-Nano-gfx1151-benchmark on one Radeon 8060S; "
        "bandwidth: AMD's data sheet of the Ryzen AI Max+ 395, 256 bits of LPDDR5X-8000",
    ),
    # Before the RX 9070, whose name is part of theirs.
    "RX 9070 XT": Ceiling(tflops={"bfloat16": 194.6, "fp8": 389.3}, bandwidth=6.4e11, source=RDNA4.format(64, 2.97)),
    "RX 9070 GRE": Ceiling(tflops={"bfloat16": 137.1, "fp8": 274.3}, bandwidth=4.32e11, source=RDNA4.format(48, 2.79)),
    "RX 9070": Ceiling(tflops={"bfloat16": 144.5, "fp8": 289}, bandwidth=6.4e11, source=RDNA4.format(56, 2.52)),
}
