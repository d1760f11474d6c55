"""What a GPU's architecture has that kernels and their launches depend on. Loads neither torch nor triton.

AMD's from the ISA documents of CDNA 2 to 4 and RDNA 3 to 4; NVIDIA's from the CUDA programming guide's table of compute
capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

FNUZ = "float8_e4m3fnuz"
"""torch's name for numbers of e4m3 without an infinity or a negative zero, whose bits mean half of what OCP's do."""


@dataclass(frozen=True)
class Target:
    """`warp`: threads of one. `shared`: bytes of shared memory (AMD's LDS) that a program can have. `fp8`: torch's name
    for the numbers of e4m3 that its matrix units multiply, none without it. `threads`: of a program at most."""

    warp: int
    shared: int
    fp8: str = ""
    threads: int = 1024


KIB = 1024
OCP = "float8_e4m3fn"
TARGETS = {
    "gfx90a": Target(64, 64 * KIB),
    "gfx942": Target(64, 64 * KIB, FNUZ),
    "gfx950": Target(64, 160 * KIB, OCP),
    "gfx1100": Target(32, 64 * KIB),
    "gfx1151": Target(32, 64 * KIB),
    "gfx1200": Target(32, 64 * KIB, OCP),
    "gfx1201": Target(32, 64 * KIB, OCP),
    "sm_80": Target(32, 163 * KIB),
    "sm_86": Target(32, 99 * KIB),
    "sm_87": Target(32, 163 * KIB),
    "sm_89": Target(32, 99 * KIB, OCP),
    "sm_90": Target(32, 227 * KIB, OCP),
    "sm_100": Target(32, 227 * KIB, OCP),
    "sm_103": Target(32, 227 * KIB, OCP),
    "sm_110": Target(32, 227 * KIB, OCP),
    "sm_120": Target(32, 99 * KIB, OCP),
    "sm_121": Target(32, 99 * KIB, OCP),
}
"""Those that are known; of others nothing is checked, and their numbers of 8 bits are OCP's."""
