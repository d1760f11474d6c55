"""The weight store: the decoder layers of a tower that do not stay on the device, and their way there.

Both stores are layer sources (`model.transformer.LayerSource`): a tower asks for layer i, and i rises from 0 in every
pass. What a layer computes does not depend on where it lay: the device gets the bytes that were packed on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from ..contract import Memory, RunError
from ..model.transformer import DecoderLayer
from ..parallel.ranks import Circle
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


class Shelf(Protocol):
    """Where the bytes of a tower's layers lie, one after another, and their way to the device."""

    def keep(self, flat_B: Tensor) -> None:
        """The next layer's, which lie on the device."""

    def begin(self, i: int, then: int | None) -> Callable[[], Tensor]:
        """Begin to bring layer i's to the device, after which those of layer `then` will be wanted. What is returned
        waits for them; they stay until two more were begun."""

    def rest(self) -> None:
        """Give back what was taken of the device to bring them there."""


class Host:
    """Bytes in host memory that the device copies from without a detour, in pieces, each layer's through one of two
    buffers on the device. Where the host refuses to pin more, `refused` is so, and further pieces are of ordinary
    memory."""

    def __init__(self, memory: Memory, device: torch.device):
        self._memory, self._device = memory, device
        self._rest = torch.empty(0, dtype=torch.uint8)
        self.refused = False
        self.held = 0
        self.layers: list[tuple[Tensor, ...]] = []
        self._buffers: list[Tensor] = []
        self._turn = 0

    def keep(self, flat_B: Tensor) -> None:
        begin, pieces = 0, tuple(self._pieces(len(flat_B)))
        for piece in pieces:
            self._memory.copy(piece, flat_B[begin : begin + len(piece)]).wait()
            begin += len(piece)
        self.layers.append(pieces)

    def begin(self, i: int, then: int | None) -> Callable[[], Tensor]:
        if not self._buffers:
            size = max(sum(map(len, pieces)) for pieces in self.layers)
            count = min(BUFFERS, len(self.layers))
            self._buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(count)]
        # The buffer's last reader is among what the device was given by now.
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer, pieces = self._buffers[self._turn], self.layers[i]
        ends = list(accumulate(map(len, pieces)))
        begun = [
            self._memory.fetch(buffer[end - len(piece) : end], piece) for piece, end in zip(pieces, ends, strict=True)
        ]

        def arrived() -> Tensor:
            for pending in begun:
                pending.wait()
            return buffer[: ends[-1]]

        return arrived

    def rest(self) -> None:
        self._buffers, self._turn = [], 0

    def _pieces(self, size: int) -> Iterator[Tensor]:
        """So many bytes of the host."""
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


class Gathered:
    """Bytes of which each of a `circle` of processes keeps a share, on its device or on a `host`, and which these
    gather: all ask for the same layers in the same order."""

    def __init__(self, circle: Circle, host: Host | None = None):
        self._circle, self._host = circle, host
        self._shares: list[Tensor] = []
        self._staged: dict[int, Callable[[], Tensor]] = {}

    def keep(self, flat_B: Tensor) -> None:
        count, number = self._circle.count, self._circle.number
        size = -(-len(flat_B) // (count * ALIGNED)) * ALIGNED
        share = flat_B.new_zeros(size)
        own = flat_B[number * size : (number + 1) * size]
        share[: len(own)].copy_(own)
        if self._host is None:
            self._shares.append(share)
        else:
            self._host.keep(share)

    def begin(self, i: int, then: int | None) -> Callable[[], Tensor]:
        gathered = self._circle.gathering(self._share(i, then))
        return lambda: gathered().flatten()

    def _share(self, i: int, then: int | None) -> Tensor:
        """Of the one after it the share is then on its way, so that it is here when it is to be gathered."""
        if self._host is None:
            return self._shares[i]
        arriving = self._staged.pop(i, None) or self._host.begin(i, None)
        self._drop()
        share = arriving()
        if then is not None:
            self._staged[then] = self._host.begin(then, None)
        return share

    def _drop(self) -> None:
        for arriving in self._staged.values():
            arriving()
        self._staged.clear()

    def rest(self) -> None:
        self._drop()
        if self._host is not None:
            self._host.rest()


@dataclass(frozen=True)
class Moved:
    """A layer, and where its tensors lie among its bytes."""

    layer: DecoderLayer
    parts: tuple[Part, ...]


class Streamed:
    """Layers whose bytes lie on a `shelf`: the next one is on its way to the device while one is computed with, and
    where a pass `wraps` the first one follows on the last.

    Each is packed on the device, once, and moved by what it names (`DecoderLayer.tensors`). Raises RunError for one
    that cannot be moved.
    """

    def __init__(self, load: Load, count: int, shelf: Shelf, device: torch.device, *, wraps: bool):
        self._shelf, self._device, self._wraps = shelf, device, wraps
        # Not every device lets a tensor of torch's inference mode have the storage of another kind.
        self._inference = torch.is_inference_mode_enabled()
        self._layers = [self._moved(load(i)) for i in range(count)]
        self._here: list[int] = []
        self._coming: dict[int, Callable[[], Tensor]] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, i: int, /) -> DecoderLayer:
        with torch.inference_mode(self._inference):
            if i not in self._here:
                self._arrive(i)
            if (after := self._after(i)) is not None and after not in self._coming:
                self._coming[after] = self._shelf.begin(after, self._after(after))
            return self._layers[i].layer

    def _after(self, i: int) -> int | None:
        after = (i + 1) % len(self._layers)
        return after if after != i and (after or self._wraps) else None

    def _arrive(self, i: int) -> None:
        arriving = self._coming.pop(i, None)
        self._leave()
        buffer = (arriving or self._shelf.begin(i, self._after(i)))()
        for part in self._layers[i].parts:
            part.bind(buffer)
        self._here = [i]

    def _leave(self) -> None:
        """Nothing lies on the device, nor is on its way there."""
        for arriving in self._coming.values():
            arriving()
        for i in self._here:
            for part in self._layers[i].parts:
                part.release()
        self._coming, self._here = {}, []

    def rest(self) -> None:
        """Give the device's memory back; the next one who asks for a layer gets some anew."""
        with torch.inference_mode(self._inference):
            self._leave()
            self._shelf.rest()

    def _moved(self, layer: DecoderLayer) -> Moved:
        named = layer.tensors()
        if named is None:
            found = "a kernel of this plan keeps them where it packed them, and cannot tell where that is"
            next_step = "Place that part `staged` or on `disk`, and do not share its weights out"
            raise RunError("moving a layer's weights", found, next_step)
        held = [tensor for tensor in named.values() if tensor.device.type == self._device.type]
        spans = [_span(tensor) for tensor in held]
        ends = list(accumulate(-(-span // ALIGNED) * ALIGNED for span in spans))
        flat = torch.empty(ends[-1], dtype=torch.uint8, device=self._device)
        parts = []
        for tensor, begin, span in zip(held, [0, *ends], spans, strict=False):
            flat[begin : begin + span].copy_(_raw(tensor, span))
            parts.append(Part(tensor, tensor.dtype, tensor.shape, tensor.stride(), begin, span))
        self._shelf.keep(flat)
        for part in parts:
            part.release()
        return Moved(layer, tuple(parts))


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
