"""The weight store: the decoder layers of a tower that do not stay on the device, and their way there.

Both stores are layer sources (`model.transformer.LayerSource`): a tower asks for layer i, and i rises from 0 in every
pass. What a layer computes does not depend on where it lay: the device gets the bytes that were packed on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..contract import Memory, Pending, RunError
from ..model.transformer import DecoderLayer
from ..plan.cost.fit import BUFFERS
from ..plan.cost.fit import HOST_BLOCK as BLOCK

ALIGNED = 512
"""Bytes at a multiple of which each tensor of a layer begins."""
Load = Callable[[int], DecoderLayer]


@dataclass(frozen=True)
class Part:
    """A tensor of a layer, and where its bytes lie among the layer's."""

    tensor: Tensor
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    span: int

    def bind(self, buffer: Tensor) -> None:
        """Let the tensor lie in a buffer that holds the layer's bytes."""
        flat = buffer[self.offset : self.offset + self.span].view(self.dtype)
        self.tensor.data = flat.as_strided(self.shape, self.stride)

    def release(self) -> None:
        """Let the tensor lie nowhere: to compute with it is an error."""
        self.tensor.data = torch.empty(0, dtype=self.dtype, device=self.tensor.device)


@dataclass(frozen=True)
class Moved:
    """A layer whose bytes lie in these pieces of host memory, one after another."""

    layer: DecoderLayer
    parts: tuple[Part, ...]
    pieces: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return sum(len(piece) for piece in self.pieces)


class Host:
    """Host memory that the device copies from without a detour, handed out piece by piece. Where the host refuses to
    pin more, `refused` is so, and further pieces are of ordinary memory."""

    def __init__(self, memory: Memory, device: torch.device):
        self._memory, self._device = memory, device
        self._rest = torch.empty(0, dtype=torch.uint8)
        self.refused = False
        self.held = 0

    def pieces(self, size: int) -> Iterator[Tensor]:
        """So many bytes, in pieces."""
        while size:
            if not len(self._rest):
                self._rest = self._block()
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece

    def _block(self) -> Tensor:
        self.held += BLOCK
        if not self.refused:
            try:
                return self._memory.pinned((BLOCK,), torch.uint8, self._device)
            except RuntimeError:  # how torch says that the host does not pin so much
                self.refused = True
        try:
            return torch.empty(BLOCK, dtype=torch.uint8)
        except RuntimeError as error:
            asked, found = "keeping weights in host memory", f"it has no {self.held / 2**30:.1f} GiB for them"
            raise RunError(asked, found, "Place that part on `disk`, which keeps nothing there") from error


class Streamed:
    """Layers in host memory, which pass through buffers on the device: the next one is on its way while one is computed
    with, and where a pass `wraps` the first one follows on the last.

    Each is packed on the device, once, and moved by what it names (`DecoderLayer.tensors`). Raises RunError for one
    that cannot be moved.
    """

    def __init__(self, load: Load, count: int, memory: Memory, device: torch.device, *, wraps: bool):
        self._memory, self._device, self._wraps = memory, device, wraps
        # Not every device lets a tensor of torch's inference mode have the storage of another kind.
        self._inference = torch.is_inference_mode_enabled()
        self.host = Host(memory, device)
        self._layers = [self._moved(load(i)) for i in range(count)]
        self._buffers: list[Tensor] = []
        self._lies: list[int | None] = []
        self._coming: dict[int, list[Pending]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, i: int, /) -> DecoderLayer:
        with torch.inference_mode(self._inference):
            return self._arrived(i)

    def _arrived(self, i: int) -> DecoderLayer:
        if i not in self._lies:
            self._fetch(i)
        for pending in self._coming.pop(i, ()):
            pending.wait()
        self._turn = self._lies.index(i)
        after = (i + 1) % len(self._layers)
        if after not in self._lies and (after or self._wraps):
            # The buffer's last reader, the layer before this one, is among what the device was given by now.
            self._fetch(after)
        return self._layers[i].layer

    def _fetch(self, i: int) -> None:
        """Start to copy a layer into the buffer whose turn is next."""
        if not self._buffers:
            size = max(moved.size for moved in self._layers)
            count = min(BUFFERS, len(self._layers))
            self._buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(count)]
            self._lies = [None] * count
        at = self._turn = (self._turn + 1) % len(self._buffers)
        self._leave(at)
        moved, buffer = self._layers[i], self._buffers[at]
        ends = list(accumulate(len(piece) for piece in moved.pieces))
        begun = [
            self._memory.fetch(buffer[end - len(piece) : end], piece)
            for piece, end in zip(moved.pieces, ends, strict=True)
        ]
        for part in moved.parts:
            part.bind(buffer)
        self._lies[at], self._coming[i] = i, begun

    def _leave(self, at: int) -> None:
        if (i := self._lies[at]) is not None:
            self._lies[at] = None
            for pending in self._coming.pop(i, ()):
                pending.wait()
            for part in self._layers[i].parts:
                part.release()

    def rest(self) -> None:
        """Give the buffers back; the next one who asks for a layer gets new ones."""
        with torch.inference_mode(self._inference):
            for at in range(len(self._buffers)):
                self._leave(at)
        self._buffers, self._lies, self._turn = [], [], 0

    def _moved(self, layer: DecoderLayer) -> Moved:
        named = layer.tensors()
        if named is None:
            found = "a kernel of this plan keeps them where it packed them, and cannot tell where that is"
            raise RunError("moving weights to the host", found, "Place that part `staged` or on `disk`")
        held = [tensor for tensor in named.values() if tensor.device.type == self._device.type]
        spans = [_span(tensor) for tensor in held]
        ends = list(accumulate(-(-span // ALIGNED) * ALIGNED for span in spans))
        flat = torch.empty(ends[-1], dtype=torch.uint8, device=self._device)
        parts = []
        for tensor, begin, span in zip(held, [0, *ends], spans, strict=False):
            flat[begin : begin + span].copy_(_raw(tensor, span))
            parts.append(Part(tensor, tensor.dtype, tensor.shape, tensor.stride(), begin, span))
        begin, pieces = 0, tuple(self.host.pieces(len(flat)))
        for piece in pieces:
            self._memory.copy(piece, flat[begin : begin + len(piece)]).wait()
            begin += len(piece)
        for part in parts:
            part.release()
        return Moved(layer, tuple(parts), pieces)


class FromFiles:
    """Layers that are read and packed anew each time that one is asked for. The device is at work on one while the host
    reads the next."""

    def __init__(self, load: Load, count: int):
        self._load, self._count = load, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int, /) -> DecoderLayer:
        return self._load(i)


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _raw(tensor: Tensor, span: int) -> Tensor:
    """These bytes, as they lie."""
    return tensor.as_strided((span // tensor.element_size(),), (1,)).view(torch.uint8)
