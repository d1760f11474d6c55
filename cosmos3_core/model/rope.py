"""Three-axis rotary positions (temporal, height, width) and their cos/sin tables; docs/model.md, section 2.3.

Everything is fp32 on the host: near m = 15000 fp32 positions are 1e-3 apart and bf16 ones 64, so a position that
passed through bf16 would fold neighbouring frames onto each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def text_positions(length: int) -> Tensor:
    """[3, length] fp32: token n sits at (n, n, n)."""
    return torch.arange(length, dtype=torch.float32).expand(3, -1)


def grid_positions(
    frames: int, height: int, width: int, *, origin: float, rate: float | None, base_rate: float, start: int = 0
) -> Tensor:
    """[3, frames·height·width] fp32, frame-major then row-major.

    Frame k sits at `origin + (k + start) / rate · base_rate` on the temporal axis (`rate` and `base_rate` in frames per
    second), or at `origin + k + start` when `rate` is None. Rows and columns restart at 0. The order of the fp32
    operations is part of the definition.
    """
    t = torch.arange(frames, dtype=torch.float32) + start
    t = (t if rate is None else t / rate * base_rate) + origin
    h, w = torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32)
    return torch.stack([axis.flatten() for axis in torch.meshgrid(t, h, w, indexing="ij")])


def rotary_table(
    positions: Tensor, head_dim: int, theta: float, sections: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [N, head_dim] for positions [3, N]: computed in fp32, then cast to `dtype`.

    Frequencies theta^(-2i/head_dim), i < head_dim/2, are dealt to the axes in turn: i % 3 = 1 to height for the first
    `sections[1]` of them, i % 3 = 2 to width likewise, all others to time.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inverse = 1.0 / theta**exponents
    angles = positions[0].unsqueeze(1) * inverse
    for axis in (1, 2):
        slots = slice(axis, 3 * sections[axis], 3)
        angles[:, slots] = positions[axis].unsqueeze(1) * inverse[slots]
    cos, sin = (torch.cat((half, half), dim=1) for half in (angles.cos().to(dtype), angles.sin().to(dtype)))
    return cos, sin
