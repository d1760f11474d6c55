"""The one source of random numbers.

The stream: a torch CPU generator seeded with the request's seed; fp32 standard normals; the initial latents are drawn
first, vision, then sound, then action, each in its latent's row-major order; a stochastic sampler goes on drawing from
the same generator, one latent a step. The numbers are made on the host and then moved, so that a seed gives the same
initial latents on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DRAW_ORDER = ("vision", "sound", "action")


def generator(seed: int) -> torch.Generator:
    """The stream of a seed, at its start. A seed is a whole number from 0 to 2**63 - 1."""
    return torch.Generator().manual_seed(seed)


def initial_noise(items: Sequence, stream: torch.Generator) -> list[Tensor]:
    """fp32 standard normals of each item's latent shape, in the items' order, drawn in `DRAW_ORDER`."""
    noise: dict[int, Tensor] = {}
    for i in sorted(range(len(items)), key=lambda i: DRAW_ORDER.index(items[i].modality)):
        noise[i] = torch.randn(items[i].shape, generator=stream, dtype=torch.float32)
    return [noise[i] for i in range(len(items))]
