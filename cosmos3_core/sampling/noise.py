"""The one source of random numbers.

The stream: a torch CPU generator seeded with the request's seed; fp32 standard normals; the initial latents are drawn
first, vision, then sound, then action, each in its latent's row-major order; a stochastic sampler goes on drawing from
the same generator, one latent a step. The numbers are made on the host and then moved, so that a seed gives the same
initial latents on every device.

Torch's generator is a Mersenne twister and takes the lower 32 bits of a seed; a seed below 2**32 is torch's own stream.
A larger one begins the twister as its authors do with several words: `init_by_array` of the lower and the upper 32 bits
(Matsumoto and Nishimura, mt19937ar.c), so that no two seeds share a stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..contract import RunError

DRAW_ORDER = ("vision", "sound", "action")
WORDS, FIRST_WORD = 624, 24
"""Of the twister: how many it has, and the byte at which they begin in the state of torch's generator."""


def generator(seed: int) -> torch.Generator:
    """The stream of a seed, at its start. A seed is a whole number from 0 to 2**64 - 1. Raises RunError for a larger
    seed than 2**32 - 1 where this torch keeps its generator in another way than all that are known."""
    low, high = seed % 2**32, seed >> 32
    stream = torch.Generator().manual_seed(low)
    if not high:
        return stream
    state = stream.get_state()
    words = state.numpy()[FIRST_WORD : FIRST_WORD + 8 * WORDS].view(np.uint64)
    if not np.array_equal(words, _twister(low)):
        found = "torch keeps its generator in another way than is known here"
        raise RunError(f"seed {seed}", found, "Use a seed below 2**32, or torch 2.11 to 2.13")
    words[:] = _twister([low, high])
    return stream.set_state(state)


def _twister(seed: int | list[int]) -> np.ndarray:
    """The first state of a Mersenne twister, uint64 [WORDS] of 32 bits each: by one number, or by an array of them."""
    # numpy promises this stream for ever; the call returns a dict only with another argument.
    return np.asarray(np.random.RandomState(seed).get_state()[1], dtype=np.uint64)  # type: ignore[index]


def initial_noise(items: Sequence, stream: torch.Generator) -> list[Tensor]:
    """fp32 standard normals of each item's latent shape, in the items' order, drawn in `DRAW_ORDER`."""
    noise: dict[int, Tensor] = {}
    for i in sorted(range(len(items)), key=lambda i: DRAW_ORDER.index(items[i].modality)):
        noise[i] = torch.randn(items[i].shape, generator=stream, dtype=torch.float32)
    return [noise[i] for i in range(len(items))]
