"""A model's shapes with random values, made on the device where it can draw them: what warm-ups, benchmarks and
validations without the checkpoint run on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..model.sound import SoundCodec
from ..model.vae import VideoVAE
from ..model.weights import shapes
from .model import Model, Weights

DEVIATION = 0.02
"""Of every value; trained weights are of that size. Norms lie around 1."""
LARGE = 1 << 29
"""Bytes of a tensor that is handed over on the host, as one of a file is: a device would hold an embedding twice."""


class RandomWeights(Weights):
    """As `Weights`, without files. A tensor's values depend on its name alone, so that they are the same whenever they
    are read, in every process on one kind of device."""

    def __init__(self, model: Model, device: str):
        self.model = model
        tensors = shapes(model.config)
        self.transformer = _RandomTensors(tensors, device)
        self.raw_names = {name: name for name in tensors}
        self.vae_files = _RandomTensors(VideoVAE.names(model.vae, f"{model.name}/vae"), device)
        if model.config.sound:
            self.sound_files = _RandomTensors(SoundCodec.names(model.config.sound), device)
        self.identity = self.identity_with_sound = None


class _RandomTensors:
    def __init__(self, tensors: dict[str, tuple[int, ...]], device: str):
        self.tensors, self.device, self.stream = tensors, device, _stream(device)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            self.stream.manual_seed(zlib.crc32(name.encode()))
            values = torch.empty(self.tensors[name], device=self.stream.device, dtype=torch.bfloat16)
            values.normal_(1.0 if "norm" in name else 0.0, DEVIATION, generator=self.stream)
            values = values.to("cpu" if values.nbytes > LARGE else self.device)
            yield name, values


def _stream(device: str) -> torch.Generator:
    """Of random numbers on the device, or on the host for a device that has none."""
    try:
        return torch.Generator(device)
    except (NotImplementedError, RuntimeError):
        return torch.Generator()
