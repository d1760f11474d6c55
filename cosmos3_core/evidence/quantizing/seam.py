"""The matrices of a running model: what they are multiplied by can be looked at, and others can take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...checkpoint.model import Weights
from ...contract import Linear
from ...model.config import TransformerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ...model.transformer import GenerationTower, UnderstandingTower
    from ...model.weights import Target

KERNELS = {"project": "composed", "finish": "composed", "capture": "eager"}
"""Rows with which a layer's products are called one by one, in every step."""
HALVES = {"qkv": "project", "out": "finish", "up": "finish", "down": "finish"}
"""The half of a layer that holds each of its matrices, by the slot's key."""


@dataclass(frozen=True)
class Place:
    """A matrix of a decoder layer: the slot `key` of a tower's layer, made of the weights of `modules`."""

    layer: int
    media: bool
    key: str
    modules: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its first module: all of them read the same inputs."""
        return self.modules[0]


def places(config: TransformerConfig) -> Iterator[Place]:
    """Every matrix, layer by layer, the text tower's before the media tower's."""
    from ...model.weights import layer_slots

    for i in range(config.num_hidden_layers):
        for media in (False, True):
            for slot in layer_slots(config, i, media=media):
                if slot.matrix:
                    yield Place(i, media, slot.key, tuple(slot.modules))


class Seam(Weights):
    """A model's weights, for an Engine whose plan has `KERNELS`. `watch` is called with a place's name and what its
    matrix is multiplied by, [M, I], before each product; a linear of `instead`, by a place's name, is called in the
    place of the model's own."""

    watch: Callable[[str, Tensor], None] | None = None
    origin: Seam | None = None
    """Whose `watch` counts, of one that was copied for a load."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.instead: dict[str, Linear] = {}

    def telling(self, tell: Callable[[int], object]) -> Seam:
        told = cast(Seam, super().telling(tell))
        told.origin = self
        return told

    def matrices(self, modules: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The weights of modules, as the files have them, in the files' order. One is to be used before the next is
        asked for, or copied."""
        for name, tensor in self._read(f"{module}.weight" for module in modules):
            yield name.removesuffix(".weight"), tensor

    def understanding(self, target: Target) -> UnderstandingTower:
        return self._opened(super().understanding(target), media=False)

    def generation(self, target: Target) -> GenerationTower:
        return self._opened(super().generation(target), media=True)

    def _opened(self, tower: Any, *, media: bool) -> Any:
        for place in places(self.model.config):
            if place.media is media:
                half = getattr(tower.layers[place.layer], HALVES[place.key])
                setattr(half, place.key, Opened(self.origin or self, place.name, getattr(half, place.key)))
        return tower


class Opened:
    """contract.Linear, the one that stands here or another."""

    def __init__(self, seam: Seam, name: str, own: Linear):
        self.seam, self.name, self.own = seam, name, own

    def __call__(self, x_MI: Tensor) -> Tensor:
        if self.seam.watch is not None:
            self.seam.watch(self.name, x_MI)
        return self.seam.instead.get(self.name, self.own)(x_MI)

    def tensors(self) -> dict[str, Tensor] | None:
        return self.own.tensors()
