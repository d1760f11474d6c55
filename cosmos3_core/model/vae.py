"""Pixels to latents and back: Wan2.2's causal VAE (docs/model.md, section 5).

Causal in time, which is used twice: a conditioning prefix is encoded alone, not as the start of a clip of padding, and
decoding yields frames as they are ready, so that a clip never has to fit in memory as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from ..contract import Ops
from .config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAE_PATCH, VAE_PATCHED, Tiling, VaeConfig
from .host_copy import HostCopy
from .vae_blocks import Decoder, Encoder, Pointwise, Stream, Take, laid_out

HALVES = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
"""What the names of each one's tensors begin with."""


def prefixes(halves: Collection[str]) -> tuple[str, ...]:
    """What the names of these halves' tensors begin with."""
    return tuple(prefix for half in halves for prefix in HALVES[half])


class VideoVAE:
    """`encode` and `decode` between pixels in [-1, 1] and normalised fp32 latents (z = (mode - mean) / std), those of
    the `halves` that are there: "encoder", "decoder"."""

    def __init__(
        self,
        config: VaeConfig,
        take: Take,
        ops: Ops,
        device: torch.device | str,
        dtype: torch.dtype,
        halves: Collection[str] = HALVES,
    ):
        c, self.device, self.dtype, self.memory = config, device, dtype, ops.memory
        if "encoder" in halves:
            self.encoder = Encoder(take, ops, c.base_dim, VAE_PATCHED, 2 * c.z_dim, c.num_res_blocks)
            self.quant = Pointwise(take, "quant_conv", ops, 2 * c.z_dim, 2 * c.z_dim)
        if "decoder" in halves:
            self.post_quant = Pointwise(take, "post_quant_conv", ops, c.z_dim, c.z_dim)
            self.decoder = Decoder(take, ops, c.decoder_base_dim, c.z_dim, VAE_PATCHED, c.num_res_blocks)
        self.mean, self.std = (torch.tensor(values, device=self.device) for values in (c.latents_mean, c.latents_std))

    @classmethod
    def names(cls, config: dict[str, Any], source: str) -> dict[str, tuple[int, ...]]:
        """Every tensor of this VAE and its shape, from `vae/config.json` alone. Raises InputError."""
        listing = _Listing()
        cls(VaeConfig.from_json(config, source), listing, cast(Ops, listing), "meta", torch.float32)
        return listing.shapes

    @classmethod
    def load(
        cls,
        config: dict[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
        ops: Ops,
        *,
        source: str,
        device: torch.device | str,
        dtype: torch.dtype,
        channels_last: bool = True,
        halves: Collection[str] = HALVES,
    ) -> VideoVAE:
        """Build from named tensors. A half that is not asked for is never allocated: text to video encodes nothing.
        Convolutions are computed on maps that are `channels_last` in memory, or on copies with the channels first."""
        parsed, wanted = VaeConfig.from_json(config, source), prefixes(halves)
        held = {name: t.to(device, dtype, copy=True) for name, t in tensors if name.startswith(wanted)}

        def take(name: str, *shape: int) -> Tensor:
            tensor = held.pop(name)
            return laid_out(tensor, channels_last) if tensor.ndim > 3 else tensor

        return cls(parsed, take, ops, device, dtype, halves)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [3, F, H, W] in [-1, 1], F = 4k+1, to the posterior's mode, normalised: [C, k+1, H/16, W/16] fp32."""
        stream, moments = Stream(one=pixels.shape[1] == 1), []
        for chunk in _chunks(pixels.transpose(0, 1), TEMPORAL_COMPRESSION):
            moments.append(self.encoder(patchify(chunk.to(self.device, self.dtype)), stream))
        mode, _ = self.quant(torch.cat(moments)).float().chunk(2, dim=-1)
        return ((mode - self.mean) / self.std).permute(3, 0, 1, 2).contiguous()

    @torch.inference_mode()
    def decode(self, latents: Tensor, tiling: Tiling, *, rounded: bool = True) -> Iterator[Tensor]:
        """Latents [C, T, h, w] to pixels, yielded in time order as uint8 [frames, H, W, 3] on the host; or not
        `rounded`, in the VAE's dtype and [-1, 1].

        The first latent frame gives one pixel frame, every other one four; small pictures come several latent frames
        at a time. A device works on the next group while the caller has this one. Where `tiling`, that of latents of
        this size, has several tiles, memory is bounded by the tile; results then differ slightly, since the attention
        sees a tile at a time.
        """
        z = latents.permute(1, 2, 3, 0).to(self.device, torch.float32) * self.std + self.mean
        z = self.post_quant(z.to(self.dtype))
        queued: deque[list[list[HostCopy]]] = deque()
        for group in self._groups(z, tiling, _to_bytes if rounded else _to_pixels):
            queued.append(group)
            if len(queued) > (not z.is_cpu):
                yield _joined(queued.popleft())
        yield from map(_joined, queued)

    def _groups(
        self, z_THWC: Tensor, tiling: Tiling, shown: Callable[[Tensor], Tensor]
    ) -> Iterator[list[list[HostCopy]]]:
        """The picture's tiles, row by row, for one group of frames after another, as what `shown` makes of them.

        A tile goes through all frames before the next one starts, and waits on the host. Streaming all tiles side by
        side would keep every tile's cached frames on the device: together more than the whole picture's, which are
        half of what a decode without tiles takes.
        """
        size, step, tops, lefts = tiling.size, tiling.step, tiling.tops, tiling.lefts
        # One latent position is this many of the decoder's output.
        scale = SPATIAL_COMPRESSION // VAE_PATCH
        edge, kept = (size - step) * scale, step * scale
        groups: list[list[list[HostCopy]]] = []
        above: dict[tuple[int, int], HostCopy] = {}
        beside: dict[int, HostCopy] = {}
        for top in tops:
            for left in lefts:
                z_tile = z_THWC[:, top : top + size, left : left + size]
                for n, y in enumerate(self._decoded(z_tile, tiling.chunk)):
                    if top:
                        _blend(above[left, n], y, 1)
                    if left:
                        _blend(beside[n], y, 2)
                    if top != tops[-1]:
                        above[left, n] = HostCopy(self.memory, y[:, -edge:])
                    if left != lefts[-1]:
                        beside[n] = HostCopy(self.memory, y[:, :, -edge:])
                    if not (top or left):
                        groups.append([])
                    if not left:
                        groups[n].append([])
                    groups[n][-1].append(HostCopy(self.memory, shown(y[:, :kept, :kept])))
                    if top == tops[-1] and left == lefts[-1]:
                        group, groups[n] = groups[n], []
                        yield group

    def _decoded(self, z_THWC: Tensor, chunk: int) -> Iterator[Tensor]:
        """Patched pixels [T', 8 h, 8 w, 12] of the first latent frame, then of so many at a time."""
        stream = Stream(one=len(z_THWC) == 1)
        for frames in _chunks(z_THWC, chunk):
            yield self.decoder(frames.contiguous(), stream)


class _Listing:
    """Stands in for tensors and ops where only names and shapes are asked for. Its tensors have one row, so that there
    is little to compute: an addition of meta tensors makes torch import its compiler, which takes seconds."""

    memory: Any = None

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        self.shapes[name] = shape
        return torch.empty(1, *shape[1:])

    def pack_linear(self, weight_OI: Tensor, bias_O: Tensor) -> None: ...


def _joined(rows: list[list[HostCopy]]) -> Tensor:
    """A picture from its tiles."""
    tiles = [[copy.wait() for copy in row] for row in rows]
    strips = [row[0] if len(row) == 1 else torch.cat(row, 2) for row in tiles]
    return strips[0] if len(strips) == 1 else torch.cat(strips, 1)


def _blend(edge: HostCopy, y_THWC: Tensor, dim: int) -> None:
    """Fade, in place, from the `edge` of the tile before along `dim` to this tile."""
    tail = edge.host.to(y_THWC.device, non_blocking=True)
    extent = min(tail.shape[dim], y_THWC.shape[dim])
    tail, head = tail.narrow(dim, tail.shape[dim] - extent, extent), y_THWC.narrow(dim, 0, extent)
    share = torch.arange(extent, device=y_THWC.device, dtype=torch.float32) / extent
    share = share.view([-1 if axis == dim else 1 for axis in range(4)])
    head.copy_(torch.lerp(tail, head, share.to(head.dtype)))


def _chunks(x_T: Tensor, size: int) -> Iterator[Tensor]:
    """The first frame, then `size` frames at a time."""
    yield x_T[:1]
    for start in range(1, len(x_T), size):
        yield x_T[start : start + size]


def patchify(pixels_TCHW: Tensor) -> Tensor:
    """[T, 3, H, W] to [T, H/2, W/2, 12]: of a channel's four, the column's offset counts before the row's."""
    x = pixels_TCHW.unflatten(3, (-1, VAE_PATCH)).unflatten(2, (-1, VAE_PATCH))  # T C h row w column
    return x.permute(0, 2, 4, 1, 5, 3).flatten(3)


def _to_bytes(y_THWC: Tensor) -> Tensor:
    """[T, H/2, W/2, 12], patched, in about [-1, 1] to uint8 [T, H, W, 3]."""
    return _unpatched(y_THWC.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8))


def _to_pixels(y_THWC: Tensor) -> Tensor:
    """[T, H/2, W/2, 12], patched, to [T, H, W, 3] in [-1, 1]."""
    return _unpatched(y_THWC.clamp(-1, 1))


def _unpatched(y_THWC: Tensor) -> Tensor:
    """[T, H/2, W/2, 12] to [T, H, W, 3]."""
    pixels = y_THWC.unflatten(3, (-1, VAE_PATCH, VAE_PATCH)).permute(0, 1, 5, 2, 4, 3)  # T h row w column C
    return pixels.flatten(3, 4).flatten(1, 2)
