"""The VAE: bytes of its weights and of a decode or encode, and their arithmetic, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...model.config import (
    SPATIAL_COMPRESSION,
    TEMPORAL_COMPRESSION,
    VAE_DOWN_IN_TIME,
    VAE_PATCHED,
    VAE_WIDTHS,
    Tiling,
)
from .units import WIDTH, Work, rate_of

NORM_COPIES = 1
"""fp32 tensors of its input's size that the eager `norm_silu` holds."""
CONVOLUTION_EFFICIENCY = 0.6
"""Share of the dense peak rate that convolutions reach: 0.70 to 0.71 of a GEMM's in decodes of 720p x 189 (5.2 s),
480p x 25 and 256p x 93 on one H100 with the fused norm. A single picture reaches 0.5, the encoder a third."""


@dataclass
class Tally:
    """Walks the blocks of `model.vae_blocks` over one chunk and counts; `frames` and `area` are those of the map in
    hand. `cache` is what the causal convolutions keep for the next chunk, `entry` the map at a level's start, which is
    added at its end. The `first` frame of a clip is a chunk of its own. Without `channels_last` a convolution gets a
    copy of its map and gives one that is copied back. Moments that are never the worst are left out.
    """

    size: int
    frames: int
    area: int
    first: bool = False
    channels_last: bool = True
    parameters: int = 0
    flops: int = 0
    moved: int = 0
    cache: int = 0
    entry: int = 0
    worst: int = 0

    @property
    def peak(self) -> int:
        """Bytes alive at the worst moment: of a later chunk, or of the only frame, for which nothing is kept."""
        return self.worst if self.first else self.cache + self.worst

    def map(self, channels: int) -> int:
        """Bytes of a feature map of so many channels."""
        return channels * self.frames * self.area * self.size

    def padded(self, channels: int) -> int:
        """Bytes of a map behind the two frames before it."""
        return self.map(channels) + (0 if self.first else self.past(channels))

    def past(self, channels: int) -> int:
        """Bytes of the two frames before a map."""
        return 2 * channels * self.area * self.size

    def alive(self, *tensors: int) -> None:
        """These exist at the same time, and the level's entry."""
        self.worst = max(self.worst, self.entry + sum(tensors))

    def conv(self, inputs: int, outputs: int, taps: int, used: int | None = None) -> None:
        """A kernel of so many `taps`, of which each position of the map in hand multiplies those `used`."""
        used = taps if used is None else used
        self.parameters += inputs * outputs * taps + outputs
        self.flops += 2 * inputs * outputs * used * self.frames * self.area
        self.moved += self.map(inputs) + self.map(outputs) if used else 0

    def causal(self, inputs: int, outputs: int, *held: int) -> None:
        """A 3 x 3 x 3 convolution. Before a clip's first frame there is nothing to multiply."""
        self.conv(inputs, outputs, 27, 9 if self.first else 27)
        copied = 0 if self.channels_last else max(self.padded(inputs), self.map(outputs))
        self.alive(*held, self.padded(inputs), self.map(outputs), copied)
        self.cache += self.past(inputs)

    def norm(self, channels: int, *held: int) -> None:
        """Norm and SiLU into the convolution's padded input."""
        self.parameters += channels
        temporaries = NORM_COPIES * WIDTH["float32"] * channels * self.frames * self.area
        self.alive(*held, self.map(channels), self.padded(channels), temporaries)

    def resblock(self, inputs: int, outputs: int, residual: int = 0) -> None:
        """`residual`: bytes of what the block before left to this one to add."""
        x = self.map(inputs)
        self.norm(inputs, residual)
        self.causal(inputs, outputs, x)
        self.norm(outputs, x)
        self.causal(outputs, outputs, x)
        if inputs != outputs:
            self.conv(inputs, outputs, 1)

    def level(self, inputs: int, outputs: int, depth: int, *, keeps_entry: bool) -> None:
        """So many residual blocks, the first of which changes the width; the entry is added at the end if kept."""
        self.entry = 0  # the first block's input is the entry
        self.resblock(inputs, outputs)
        self.entry = self.map(inputs) if keeps_entry else 0
        residual = 0 if inputs == outputs else self.map(outputs)  # of equal widths, the entry again
        for _ in range(depth - 1):
            self.resblock(outputs, outputs, residual)
            residual = self.map(outputs)

    def middle(self, channels: int) -> None:
        """A block, attention within each frame, a block."""
        self.entry = 0
        self.resblock(channels, channels)
        self.parameters += channels
        self.conv(channels, 3 * channels, 1)
        self.conv(channels, channels, 1)
        scores = self.frames * self.area**2
        self.flops += 4 * channels * scores
        self.alive(self.map(8 * channels), 2 * WIDTH["float32"] * scores)  # they and their softmax
        self.resblock(channels, channels)

    def upsample(self, channels: int, in_time: bool) -> None:
        """Twice the rows and columns, by 4 taps for each new position, and twice the frames if `in_time`."""
        sources = self.map(channels)
        if in_time:
            self.conv(channels, 2 * channels, 3, 0 if self.first else 3)
        if in_time and not self.first:
            self.cache += self.past(channels)
            self.frames *= 2
            sources += self.map(channels)
        self.area *= 4
        self.conv(channels, channels, 9, 4)
        self.alive(sources, self.entry, 2 * self.map(channels))  # the entry again, plus the bias

    def downsample(self, channels: int, in_time: bool) -> None:
        """Half the rows and columns, and half the frames if `in_time`; a frame that has no partner gets zeros."""
        averaged = self.entry * (2 if in_time and self.first else 1)
        self.alive(self.map(channels), self.map(channels) // 4, averaged, averaged // 4)
        self.area //= 4
        self.conv(channels, channels, 9)
        if in_time:
            self.frames //= 1 if self.first else 2
            self.conv(channels, channels, 3, 0 if self.first else 3)
            self.cache += self.past(channels) // 2


def decoder(
    config: Mapping[str, Any], frames: int, area: int, size: int, first: bool = False, channels_last: bool = True
) -> Tally:
    """So many latent frames of `area` positions through the decoder."""
    base = config.get("decoder_base_dim") or config["base_dim"]
    widths = [base * n for n in (VAE_WIDTHS[-1], *reversed(VAE_WIDTHS))]
    tally, depth = Tally(size, frames, area, first, channels_last), config.get("num_res_blocks", 2) + 1
    tally.conv(config["z_dim"], config["z_dim"], 1)
    tally.causal(config["z_dim"], widths[0])
    tally.middle(widths[0])
    for inputs, outputs, in_time in zip(widths, widths[1:], (*reversed(VAE_DOWN_IN_TIME), None), strict=False):
        tally.level(inputs, outputs, depth, keeps_entry=in_time is not None)
        if in_time is not None:
            tally.upsample(outputs, in_time)
    tally.norm(widths[-1], tally.map(widths[-1]))
    tally.causal(widths[-1], VAE_PATCHED)
    return tally


def encoder(
    config: Mapping[str, Any], frames: int, area: int, size: int, first: bool = False, channels_last: bool = True
) -> Tally:
    """So many pixel frames through the encoder, whose latent frames have `area` positions."""
    widths = [config["base_dim"] * n for n in (1, *VAE_WIDTHS)]
    tally = Tally(size, frames, area * 4 ** len(VAE_DOWN_IN_TIME), first, channels_last)
    tally.causal(VAE_PATCHED, widths[0])
    for inputs, outputs, in_time in zip(widths, widths[1:], (*VAE_DOWN_IN_TIME, None), strict=False):
        tally.level(inputs, outputs, config.get("num_res_blocks", 2), keeps_entry=True)
        if in_time is not None:
            tally.downsample(outputs, in_time)
    tally.middle(widths[-1])
    tally.norm(widths[-1], tally.map(widths[-1]))
    tally.causal(widths[-1], 2 * config["z_dim"])
    tally.conv(2 * config["z_dim"], 2 * config["z_dim"], 1)
    return tally


def weights(config: Mapping[str, Any], dtype: str) -> dict[str, int]:
    """Bytes of each half in `dtype`."""
    size = WIDTH[dtype]
    halves = {"vae_encoder": encoder(config, 1, 1, size), "vae_decoder": decoder(config, 1, 1, size)}
    return {name: size * half.parameters for name, half in halves.items()}


def share(rows: int, among: int) -> int:
    """Of so many rows those of the device that has most; all, where there are fewer than devices."""
    return rows if rows < among else -(-rows // among)


def decode_bytes(
    config: Mapping[str, Any],
    tiling: Tiling,
    frames: int,
    dtype: str,
    channels_last: bool = True,
    among: int = 1,
    unified: bool = True,
) -> int:
    """Peak of the tensors of decoding so many latent `frames`, on a device that has its share of the rows `among` so
    many. Whole frames leave as they are ready. Of tiles, each goes through all frames before the next, and the clip
    waits on the host as bytes, with the edges that the tiles below and beside blend with. That counts where it is the
    device's own memory, `unified`."""
    size, area = WIDTH[dtype], share(tiling.heights[0], among) * tiling.widths[0]
    at_a_time = max(1, min(tiling.chunk, frames - 1))
    peak = decoder(config, at_a_time, area, size, frames == 1, channels_last).peak
    if among > 1:  # all rows come together, first as they were sent
        peak += 2 * 3 * SPATIAL_COMPRESSION**2 * at_a_time * TEMPORAL_COMPRESSION * among * area * size
    latents: int = config["z_dim"] * frames * tiling.height * tiling.width * size
    peak += latents
    if tiling.whole or not unified:
        return peak
    pixels = SPATIAL_COMPRESSION**2
    edges = pixels * (tiling.size - tiling.step) * tiling.size * (len(tiling.lefts) + 1) * size
    clip = pixels * tiling.height * tiling.width
    return peak + 3 * ((frames - 1) * TEMPORAL_COMPRESSION + 1) * (clip + edges)


def encode_bytes(
    config: Mapping[str, Any],
    latent: tuple[int, int],
    frames: int,
    dtype: str,
    channels_last: bool = True,
    among: int = 1,
    waiting: int = 0,
) -> int:
    """Peak of encoding so many pixel `frames`, whose latents have this height and width. So many frames are `waiting`
    in fp32 in the device's own memory, those of other clips among them."""
    area, first = share(latent[0], among) * latent[1], frames == 1
    pixels = WIDTH["float32"] * 3 * waiting * latent[0] * latent[1] * SPATIAL_COMPRESSION**2
    return pixels + encoder(config, 1 if first else TEMPORAL_COMPRESSION, area, WIDTH[dtype], first, channels_last).peak


def decode_work(config: Mapping[str, Any], tiling: Tiling, frames: int, dtype: str, among: int = 1) -> Work:
    """So many latent frames through the decoder, tile by tile."""
    size, later = WIDTH[dtype], frames - 1
    chunks = 1 + -(-later // tiling.chunk)
    flops = moved = 0
    for area in (share(height, among) * width for height in tiling.heights for width in tiling.widths):
        parts = decoder(config, 1, area, size, first=True), decoder(config, later, area, size)
        flops += sum(part.flops for part in parts)
        moved += sum(part.moved for part in parts) + chunks * size * parts[0].parameters
    return Work(flops, moved, rate_of(dtype), CONVOLUTION_EFFICIENCY)


def encode_work(config: Mapping[str, Any], latent: tuple[int, int], frames: int, dtype: str, among: int = 1) -> Work:
    """So many pixel frames through the encoder, whose latents have this height and width."""
    size, area, later = WIDTH[dtype], share(latent[0], among) * latent[1], frames - 1
    parts = encoder(config, 1, area, size, first=True), encoder(config, later, area, size)
    chunks = 1 + later // TEMPORAL_COMPRESSION
    moved = sum(part.moved for part in parts) + chunks * size * parts[0].parameters
    return Work(sum(part.flops for part in parts), moved, rate_of(dtype), CONVOLUTION_EFFICIENCY)
