"""A model's shapes with random values, made on the device: what a warm-up and the benchmarks run on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..model.vae import VideoVAE
from ..model.weights import generation_slots, understanding_slots
from .model import Model, Weights

DEVIATION = 0.02
"""Of every value; trained weights are of that size. Norms lie around 1."""


class RandomWeights(Weights):
    """As `Weights`, without files. The values depend on `seed` and the order of reading; nothing looks at them."""

    def __init__(self, model: Model, device: str, seed: int = 0):
        self.model = model
        slots = understanding_slots(model.config) + generation_slots(model.config)
        shapes = {name: shape for slot in slots for name, shape in slot.tensors().items()}
        self.transformer = _RandomTensors(shapes, device, seed)
        self.raw_names = {name: name for name in shapes}
        self.vae_files = _RandomTensors(VideoVAE.names(model.vae, f"{model.name}/vae"), device, seed)


class _RandomTensors:
    def __init__(self, tensors: dict[str, tuple[int, ...]], device: str, seed: int):
        self.tensors, self.device = tensors, device
        self.stream = torch.Generator(device).manual_seed(seed)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            values = torch.empty(self.tensors[name], device=self.device, dtype=torch.bfloat16)
            yield name, values.normal_(1.0 if "norm" in name else 0.0, DEVIATION, generator=self.stream)
