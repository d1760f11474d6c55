"""Tensors in files, of which memory holds the pages that are looked at."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about one tensor, whose bytes start at `begin`. `digest`: 16 hex digits, None if the
    file carries no digests."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    begin: int
    nbytes: int
    digest: str | None


def map_file(file: Path, size: int) -> Any:
    """The first `size` bytes of a file, a torch.UntypedStorage. safetensors' own `get_tensor` keeps some bytes of each
    tensor for good (0.8.0), and a layer that lies in a file is read in every pass. Raises OSError."""
    import torch

    if not stat.S_ISREG(file.stat().st_mode):  # of a pipe nobody would ever write the first byte
        raise OSError("it is no regular file")
    try:
        return torch.UntypedStorage.from_file(str(file), False, size)
    except RuntimeError as error:
        raise OSError(str(error)) from None


def bytes_of(mapped: Any, info: TensorInfo) -> torch.Tensor:
    """uint8 [nbytes], a view of the mapped file, on the host whatever torch's default device is."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(mapped[info.begin : info.begin + info.nbytes])


def view_of(mapped: Any, info: TensorInfo) -> torch.Tensor:
    """A tensor of a mapped file. It may begin between two multiples of its element's size."""
    return bytes_of(mapped, info).view(info.dtype).view(info.shape)
