"""NVIDIA's GPUs that can be planned for unseen, and what each can do at most.

Names are those that the driver gives, memory is nominal but for what a probe reported (H100, H200), and versions are
examples of one release of torch.
"""

from __future__ import annotations

from cosmos3_core.contract import Ceiling, Device

GIB = 1 << 30
TORCH = {"driver": "580.159.04", "torch": "2.11.0+cu130", "cuda": "13.0", "cudnn": "9.19.0"}
MEASURED = {"kernel launches": "NVIDIA H100 80GB HBM3, triton 3.6.0"}
DEFAULTS = {"kernel launches": "not measured"}


def _device(arch: str, name: str, memory: int, launches: dict[str, str], unified: bool = False) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=unified, versions=TORCH | launches)


KNOWN = (
    _device("sm_80", "NVIDIA A100-SXM4-80GB", 80 * GIB, DEFAULTS),
    _device("sm_90", "NVIDIA H100 80GB HBM3", 80 * GIB, MEASURED),
    _device("sm_90", "NVIDIA H200", 150_109_880_320, MEASURED),
    _device("sm_100", "NVIDIA B200", 180 * 10**9, DEFAULTS),
    _device("sm_103", "NVIDIA B300", 288 * 10**9, DEFAULTS),
    _device("sm_120", "NVIDIA GeForce RTX 5090", 32 * GIB, DEFAULTS),
    _device("sm_121", "NVIDIA GB10", 128 * 10**9, DEFAULTS, unified=True),
)

CEILINGS = {
    "A100-SXM4-80GB": Ceiling(
        tflops={"bfloat16": 312, "int8": 624},
        bandwidth=2.039e12,
        source="NVIDIA's data sheet of the A100 80GB SXM, without sparsity",
    ),
    "H100 80GB HBM3": Ceiling(
        tflops={"bfloat16": 799, "fp8": 1979, "int8": 1979},
        bandwidth=3.35e12,
        source="bfloat16: a GEMM measured on one H100 80GB SXM with torch 2.11; the rest: NVIDIA's data sheet of it, "
        "without sparsity",
        reached={"bfloat16": 0.84, "fp8": 0.52},  # in whole runs of 720p x 189 frames
    ),
    "NVIDIA H200": Ceiling(
        tflops={"bfloat16": 989, "fp8": 1979, "int8": 1979},
        bandwidth=4.8e12,
        source="NVIDIA's data sheet of the H200 SXM, without sparsity",
    ),
    "NVIDIA B200": Ceiling(
        tflops={"bfloat16": 2250, "fp8": 4500, "int8": 4500},
        bandwidth=8e12,
        source="NVIDIA's data sheet of the DGX B200, an eighth of it, without sparsity",
    ),
    "RTX 5090": Ceiling(
        tflops={"bfloat16": 209.5, "fp8": 419, "int8": 838},
        bandwidth=1.792e12,
        source="NVIDIA's RTX Blackwell white paper: GeForce RTX 5090, without sparsity, floats accumulating in fp32",
    ),
    "GB10": Ceiling(
        tflops={"bfloat16": 96.9},
        bandwidth=2.73e11,
        source="bfloat16: a GEMM measured on one GB10 by HPC Systems (hpc.co.jp, 17 March 2026); "
        "bandwidth: NVIDIA's data sheet of the DGX Spark",
    ),
}
