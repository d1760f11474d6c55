"""What an emulated operator may be asked, and the wheel's numbers of types."""

from __future__ import annotations

import torch

DTYPES = {1: torch.int8, 5: torch.float16, 6: torch.float32, 15: torch.bfloat16, 27: torch.bfloat16}
FP8, FP4, E8M0 = (24, 292), 296, 293
"""The wheel's numbers of float8_e4m3fn (torch's and its own), float4_e2m1fn_x2 and float8_e8m0fnu."""
WIDEST = 65535


class Limit(RuntimeError):
    """A call that the vendor's documentation rules out."""


def within(holds: bool, said: str) -> None:
    if not holds:
        raise Limit(said)
