"""What a caller hands over for a run to begin with: pictures and clips, and noise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cosmos3_core.checkpoint.tensors import tensor_digest
from cosmos3_core.contract import InputError
from cosmos3_core.runs import generation
from cosmos3_core.runs.generation import IN_MEMORY
from cosmos3_core.runs.saved import Source
from cosmos3_core.scenarios.families import MEDIA
from cosmos3_core.scenarios.faults import about
from cosmos3_core.scenarios.fields import FIELDS

from .questions import path_of

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos3_core.files.memory import Media
    from cosmos3_core.settle import Settled


def media_of(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Media]]:
    """Request fields for the inputs among these, and what of them was handed over in memory."""
    given: dict[str, Any] = {}
    media: list[Media] = []
    for name in MEDIA:
        value = values.get(name)
        if value is None:
            continue
        given[name] = _keyframes(name, value, media) if FIELDS[name].kind.many else _said(name, name, value, media)
    return given, media


def _keyframes(name: str, value: Any, media: list[Media]) -> Any:
    """Pictures by frame, with paths in the place of those in memory; what is neither an object nor a list as it is."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list | tuple) and all(isinstance(one, list | tuple) and len(one) == 2 for one in value):
        pairs = [(index, image) for index, image in value]
    else:
        return value
    return [(index, _said(name, f"{name}.{index}", image, media)) for index, image in pairs]


def _said(name: str, label: str, value: Any, media: list[Media]) -> str:
    """The path of an input, or what a request says in the place of one."""
    if isinstance(value, str | os.PathLike):
        return path_of(name, value)
    from cosmos3_core.files.memory import Media

    with about(name):
        media.append(Media.of(label, value))
    return media[-1].said


def noise_of(noise: Any, settled: Settled) -> tuple[list[Tensor], Source]:
    """Initial noise of each latent, of several a list, and what the manifest says of it."""
    if isinstance(noise, str | os.PathLike):
        return generation.read_noise(path_of("noise", noise), settled)
    request = settled.request
    several = (request.sound or request.domain is not None) and isinstance(noise, list | tuple)
    tensors = [_tensor(one) for one in (noise if several else [noise])]
    return tensors, Source(IN_MEMORY, tensor_digest(*tensors))


def _tensor(noise: Any) -> Tensor:
    import torch

    try:
        tensor = torch.as_tensor(noise).detach().cpu()
        if tensor.is_complex():
            raise TypeError("its numbers are complex")
        return (tensor[0] if tensor.ndim == 5 and len(tensor) == 1 else tensor).float().contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"it cannot be read as a tensor ({error})"
        raise InputError(f"noise of type {type(noise).__name__}", found, "Give a tensor or an array", "noise") from None
