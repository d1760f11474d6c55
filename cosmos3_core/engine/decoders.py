"""How latents become media, by modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..plan.execution import Execution


@dataclass(frozen=True)
class Decoder:
    """`component` is the pool's name of what decodes. `groups` takes it, an item's latent and how the request runs, and
    yields the media on the host, piece by piece in the order of time."""

    component: str
    groups: Callable[[Any, Tensor, Execution], Iterator[Tensor]]


DECODERS = {"vision": Decoder("vae decoder", lambda vae, latent, execution: vae.decode(latent, execution.tiling))}
"""Vision: uint8 [F, H, W, 3]."""
