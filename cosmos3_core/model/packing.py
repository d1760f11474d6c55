"""Media items as one sequence of tokens. Vision, sound and action differ only in the table below.

An item is a grid of tokens, frames x height x width (sound and action: 1 x 1), some frames of which are clean:
conditioning that is attended to, gets no timestep and is not predicted. Items follow each other in the packed sequence;
their order does not matter to the result where all start at the same moment, since generation attention is unmasked and
positions are explicit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import TEMPORAL_COMPRESSION, TransformerConfig
from .rope import grid_positions


@dataclass(frozen=True)
class Item:
    """One latent of the sequence.

    `modality` is "vision" (latent [C, T, h, w]), "sound" ([C, T]) or "action" ([T, C]); `shape` the latent's shape;
    `clean` the indices of conditioned frames; `fps` the media's frames per second (unused for sound, whose rate is the
    model's); `domain` the embodiment of an action; `start` the first action's offset in frames: 1 when the actions lie
    between the frames, 0 when there is one per frame (docs/model.md, section 2.3); `used` how many of an action's
    channels the embodiment has, the others being zero (None: all, or no action).

    `control` is the hint that a control clip is of, such as "edge"; all its frames are clean. Where controls have a
    `weight`, attention goes to one control at a time (`Packing.weighted`); None where it goes to all of them at once.
    `follows` says that an item starts after the one before it, at its last position "ceil"ed or "floor"ed, plus 1; ""
    where it starts with the others.
    """

    modality: str
    shape: tuple[int, ...]
    clean: tuple[int, ...] = ()
    fps: float = 24.0
    domain: int = 0
    start: int = 1
    control: str = ""
    weight: float | None = None
    follows: str = ""
    used: int | None = None

    @property
    def name(self) -> str:
        """What tells it from the other items of a run: its modality, and a control's hint."""
        return f"{self.modality}.{self.control}" if self.control else self.modality

    @property
    def axis(self) -> int:
        """The latent's axis of frames."""
        return 0 if self.modality == "action" else 1

    @property
    def frames(self) -> int:
        return self.shape[self.axis]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def grid(self, patch: int) -> tuple[int, int, int]:
        """Tokens along frames, height and width; an odd latent row or column is padded to a whole patch."""
        if self.modality == "vision":
            return self.frames, -(-self.shape[2] // patch), -(-self.shape[3] // patch)
        return self.frames, 1, 1

    def positions(self, config: TransformerConfig, origin: float) -> Tensor:
        """[3, tokens] fp32; the table of docs/model.md, section 2.3."""
        base = config.base_fps
        rate: float | None
        rate, base_rate, start = {
            "vision": (self.fps / TEMPORAL_COMPRESSION, base / TEMPORAL_COMPRESSION, 0),
            "sound": (config.sound_latent_fps, base, 0),
            "action": (self.fps, base / TEMPORAL_COMPRESSION, self.start),
        }[self.modality]
        if not config.enable_fps_modulation or self.frames == 1:
            rate = None
        grid = self.grid(config.latent_patch_size)
        return grid_positions(*grid, origin=origin, rate=rate, base_rate=base_rate, start=start)

    def from_tokens(self, tokens: Tensor, patch: int) -> Tensor:
        """Token rows [tokens, features] to a latent. Vision's features are ordered as `contract.PatchEmbed`'s; what
        fills up a patch is cut off."""
        if self.modality == "action":
            return tokens
        if self.modality == "sound":
            return tokens.T
        frames, h, w = self.grid(patch)
        split = tokens.view(frames, h, w, patch, patch, self.shape[0]).permute(5, 0, 1, 3, 2, 4)
        return split.reshape(self.shape[0], frames, h * patch, w * patch)[:, :, : self.shape[2], : self.shape[3]]


ROUNDED: dict[str, Callable[[float], int]] = {"ceil": math.ceil, "floor": math.floor}
"""How the last position of an item becomes the moment before the next one's, by `Item.follows`."""


class Packing:
    """Where each item's tokens lie in the packed sequence, which of them are noisy (`noisy`: their indices, and
    `noisy_frames`: a mask of its frames; None where all are), and their positions.

    `weighted` has the rows of each of several controls with a weight, and its share: attention goes over one of them at
    a time and the rows `others`, whose results are summed by share (docs/model.md, section 4.9). Empty where attention
    goes over everything at once.
    """

    def __init__(self, items: Sequence[Item], config: TransformerConfig, device: torch.device | str):
        self.items, self.config = tuple(items), config
        self.rows: list[slice] = []
        self.noisy: list[Tensor | None] = []
        self.noisy_frames: list[Tensor | None] = []
        start = 0
        for item in self.items:
            frames, h, w = item.grid(config.latent_patch_size)
            mask = torch.ones(frames, dtype=torch.bool)
            mask[list(item.clean)] = False
            tokens = mask.repeat_interleave(h * w)
            self.rows.append(slice(start, start + len(tokens)))
            self.noisy.append(None if mask.all() else tokens.nonzero().flatten().to(device))
            self.noisy_frames.append(None if mask.all() else mask.to(device))
            start += len(tokens)
        self.length = start
        weights = [(rows, item.weight) for rows, item in zip(self.rows, self.items, strict=True) if item.weight]
        total = sum(weight for _, weight in weights)
        self.weighted = [(rows, weight / total) for rows, weight in weights] if len(weights) > 1 else []
        self.others = slice(self.weighted[-1][0].stop if self.weighted else 0, start)

    def without_controls(self, device: torch.device | str) -> Packing:
        """The packing of what is made alone."""
        return Packing([item for item in self.items if not item.control], self.config, device)

    def positions(self, text_length: int) -> Tensor:
        """[3, length] fp32. Items start at the same moment, a fixed margin after the text, unless one follows the one
        before it."""
        first = origin = float(text_length + self.config.unified_3d_mrope_temporal_modality_margin)
        parts: list[Tensor] = []
        for item in self.items:
            if item.follows and parts:
                origin = ROUNDED[item.follows](float(parts[-1].max())) + 1.0
            parts.append(item.positions(self.config, origin if item.follows else first))
        return torch.cat(parts, dim=1)
