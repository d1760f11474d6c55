"""How latents become media, by modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..scenarios.request import Request


@dataclass(frozen=True)
class Decoder:
    """`component` is the pool's name of what decodes. `groups` takes it, an item's latent and the request, and yields
    the media on the host, piece by piece in the order of time."""

    component: str
    groups: Callable[[Any, Tensor, Request], Iterator[Tensor]]


DECODERS = {"vision": Decoder("vae decoder", lambda vae, latent, request: vae.decode(latent, request.tile))}
"""Vision: uint8 [F, H, W, 3]."""
