"""Files in memory, page by page as they are read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .tensors import TensorInfo


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
