"""What floats of 8 bits and their scales are on an AMD GPU: which e4m3 it multiplies, and in which order hipBLASLt
reads the scales of blocks. Loads no torch."""

from __future__ import annotations

from cosmos3_triton import targets
from cosmos3_triton.targets import TARGETS

from cosmos3_core.contract import Device

FNUZ = tuple(arch for arch, target in TARGETS.items() if target.fp8 == targets.FNUZ)
"""Architectures whose e4m3 has no negative zero and one exponent less: torch's float8_e4m3fnuz."""
OCP = tuple(arch for arch, target in TARGETS.items() if target.fp8 == targets.OCP and arch.startswith("gfx"))
"""Those with the Open Compute Project's, torch's float8_e4m3fn."""
MX_SINCE, SWIZZLED_SINCE = (7, 0), (7, 13)
"""The ROCm from which on hipBLASLt multiplies blocks with scales, and the one from which on it reads them swizzled."""


def fnuz(arch: str) -> bool:
    return arch in FNUZ


def rocm(device: Device) -> tuple[int, int]:
    """The ROCm that torch was built for, major and minor."""
    major, minor, *_ = device.versions.get("hip", "0.0").split(".")
    return int(major), int(minor)


def swizzles(device: Device) -> bool:
    return rocm(device) >= SWIZZLED_SINCE
