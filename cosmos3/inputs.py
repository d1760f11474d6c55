"""What a caller hands over for a run to begin with: pictures and clips, and noise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cosmos3_core.checkpoint.tensors import tensor_digest
from cosmos3_core.contract import InputError
from cosmos3_core.runs import generation
from cosmos3_core.runs.generation import IN_MEMORY
from cosmos3_core.runs.saved import Source
from cosmos3_core.scenarios.families import INPUTS

from .questions import path_of

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos3_core.files.memory import Media
    from cosmos3_core.settle import Settled


def media_of(image: Any, video: Any) -> tuple[dict[str, Any], Media | None]:
    """Request fields for the inputs, and what was handed over in memory."""
    given: dict[str, Any] = {}
    media: Media | None = None
    for name, value in zip(INPUTS, (image, video), strict=True):
        if value is None:
            continue
        if isinstance(value, str | os.PathLike):
            given[name] = path_of(name, value)
            continue
        from cosmos3_core.files.memory import Media

        media = Media.of(name, value)
        given[name] = media.said
    return given, media


def noise_of(noise: Any, settled: Settled) -> tuple[list[Tensor], Source]:
    """Initial noise of each latent, of several a list, and what the manifest says of it."""

    if isinstance(noise, str | os.PathLike):
        return generation.read_noise(path_of("noise", noise), settled)
    several = settled.request.sound and isinstance(noise, list | tuple)
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
