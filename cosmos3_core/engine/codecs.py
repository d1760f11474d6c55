"""Between media and latents, by modality: the engine knows no other difference between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..model.config import TEMPORAL_COMPRESSION, latent_size
from ..model.packing import Item
from ..plan.execution import Execution


@dataclass(frozen=True)
class Codec:
    """One modality's two ways.

    `encoder` and `decoder` are the pool's names of what computes them; None where nothing is loaded. `encode` takes
    that, what a request gives for an item and a function to call before each of the `chunks` that this is encoded in,
    and returns a latent with frames 0 to the last one given; what is encoded in one chunk may be captured where `area`
    counts its latent positions. `decode` takes the component, the item's latent and how the request runs, and yields
    the media on the host, piece by piece in the order of time. An item's media are `length` long, of which a piece has
    `count`: both are what progress is told in.
    """

    encoder: str | None
    encode: Callable[[Any, Tensor, Callable[[], None]], Tensor]
    chunks: Callable[[Tensor], int]
    decoder: str | None
    decode: Callable[[Any, Tensor, Execution], Iterator[Tensor]]
    length: Callable[[Item], int]
    count: Callable[[Tensor], int]
    area: Callable[[Tensor], int] | None = None


def _encode_vision(vae: Any, pixels: Tensor, begin_chunk: Callable[[], None]) -> Tensor:
    """fp32 [3, F, H, W] in [-1, 1] to the latent [C, T, h, w]."""
    asked = copy.copy(vae)
    asked.encoder = partial(_after, begin_chunk, vae.encoder)
    latents: Tensor = asked.encode(pixels)
    return latents


def _decode_sound(codec: Any, latent: Tensor, execution: Execution) -> Iterator[Tensor]:
    """[C, S] to fp32 [2, N] in one piece, less what fills up the last latent frame."""
    assert execution.sound is not None, "there is a latent of it"
    yield codec.decode(latent)[:, : execution.sound.samples]


def _after(first: Callable[[], None], then: Callable[..., Any], *arguments: Any) -> Any:
    first()
    return then(*arguments)


def _encode_actions(component: None, rows: Tensor, begin_chunk: Callable[[], None]) -> Tensor:
    """fp32 [T, C], normalised: the latent itself."""
    begin_chunk()
    return rows


CODECS = {
    "vision": Codec(
        encoder="vae encoder",
        encode=_encode_vision,
        chunks=lambda pixels: latent_size(1, 1, pixels.shape[1])[0],
        decoder="vae decoder",
        decode=lambda vae, latent, execution: vae.decode(latent, execution.tiling),
        length=lambda item: (item.frames - 1) * TEMPORAL_COMPRESSION + 1,
        count=len,
        area=lambda pixels: math.prod(latent_size(pixels.shape[3], pixels.shape[2], 1)),
    ),
    "sound": Codec(
        encoder="sound encoder",
        encode=lambda codec, waveform, begin_chunk: _after(begin_chunk, codec.encode, waveform),
        chunks=lambda waveform: 1,
        decoder="sound decoder",
        decode=_decode_sound,
        length=lambda item: 1,
        count=lambda waveform: 1,
    ),
    "action": Codec(
        encoder=None,
        encode=_encode_actions,
        chunks=lambda rows: 1,
        decoder=None,
        decode=lambda component, latent, execution: iter([latent.cpu()]),
        length=lambda item: item.frames,
        count=len,
    ),
}
"""Vision decodes to uint8 [F, H, W, 3], sound to one waveform, fp32 [2, N] in [-1, 1], actions to fp32 [T, D],
normalised, of the channels in use."""
UNROUNDED = replace(
    CODECS["vision"], decode=lambda vae, latent, execution: vae.decode(latent, execution.tiling, rounded=False)
)
"""Vision as another run begins with it: [F, H, W, 3] in [-1, 1], in the VAE's dtype."""
