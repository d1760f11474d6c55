"""What a generation is conditioned on: the latents of what a request gives, where no step changes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.packing import Item
from ..sampling.state import views
from .codecs import CODECS, Codec
from .kept import Kept
from .pool import Pool
from .stages import Stages

Encode = Callable[[Tensor], list[Tensor]]


class Conditions:
    """Encodes what is given. Captured encodes stay, of pictures of so many latent positions in all (`area`)."""

    def __init__(self, pool: Pool, stages: Stages, area: int):
        self._pool, self._stages, self._device = pool, stages, torch.device(pool.target.device)
        self._kept: Kept[torch.Size, Encode] = Kept(area)

    def of(
        self, items: Sequence[Item], given: Sequence[Tensor | None], captured: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """(flat values, flat mask) of what no step changes: the clean frames, and an action's channels that are not in
        use, which are zero. None where there is nothing of it. A picture's encode may be `captured`."""
        media = given or [None] * len(items)
        spare = [item.used is not None and item.used < item.shape[1] for item in items]
        if not any(spare) and all(one is None for one in media):
            return None, None
        length = sum(item.numel for item in items)
        clean = torch.zeros(length, device=self._device)
        pinned = torch.zeros(length, dtype=torch.bool, device=self._device)
        # All that the host sends is sent before: it would wait for what is encoded.
        frames_of = [torch.tensor(item.clean, dtype=torch.long, device=self._device) for item in items]
        parts = zip(items, views(clean, items), views(pinned, items), media, frames_of, strict=True)
        held: dict[str | None, Any] = {}  # an encoder serves all items of its modality
        for item, values, mask, one, frames in parts:
            if item.used is not None:
                mask[:, item.used :] = True
            if one is not None:
                latent = self._encoded(item, one, held, captured).to(values).index_select(item.axis, frames)
                values.index_copy_(item.axis, frames, latent)
                mask.index_fill_(item.axis, frames, True)
        if held:
            held.clear()
            self._pool.give_back()
        return clean, pinned

    def _encoded(self, item: Item, media: Tensor, held: dict[str | None, Any], captured: bool) -> Tensor:
        """The latent of what was given for an item. Only the frames given are encoded: the codecs are causal."""
        codec = CODECS[item.modality]
        if codec.encoder not in held:
            held.clear()  # before the next one is loaded
            held[codec.encoder] = codec.encoder and self._pool.lease(codec.encoder)
        chunks = codec.chunks(media)
        with self._stages.stage("encode input", chunks) as begin_chunk:
            if captured and chunks == 1 and codec.area is not None:
                begin_chunk()
                (latent,) = self._captured(codec, held[codec.encoder], media)(media.to(self._device))
            else:
                latent = codec.encode(held[codec.encoder], media, begin_chunk)
        # An action's canvas is larger than what its input covers, and the model sees the latter.
        kept = (slice(None if axis == item.axis else size) for axis, size in enumerate(item.shape))
        return latent[tuple(kept)]

    def _captured(self, codec: Codec, component: Any, media: Tensor) -> Encode:
        """The encode of media of this shape. What it returns may be overwritten by its next call."""
        assert codec.area is not None, "asked for where a codec says how large media are"
        encode, area = self._kept.get(media.shape), codec.area(media)
        if encode is None:
            self._kept.make_room(area)
            encode = self._pool.target.ops.capture(lambda pixels: [codec.encode(component, pixels, _nothing)])
            self._kept.keep(media.shape, encode, area)
        return encode

    def close(self) -> None:
        """Keep nothing from now on."""
        self._kept.close()


def _nothing() -> None:
    """A captured function tells nobody how far it is."""
