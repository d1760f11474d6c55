"""The sound codec: bytes of its weights and of a decode, and its arithmetic, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ...model.sound_config import CHANNELS, SoundConfig
from .units import WIDTH, Work, rate_of
from .vae import CONVOLUTION_EFFICIENCY

UNITS = 3
"""Residual units of a decoder's block."""


@dataclass
class Tally:
    """Walks the layers of `model.sound` over maps of `length` positions and counts. The weights' two parts are folded
    into one while they are loaded, so `parameters` are those that stay."""

    size: int
    length: int
    parameters: int = 0
    flops: int = 0
    moved: int = 0
    worst: int = 0

    def map(self, channels: int) -> int:
        """Bytes of a map of so many channels."""
        return channels * self.length * self.size

    def conv(self, inputs: int, outputs: int, taps: int, held: int = 0, *, stride: int = 1) -> None:
        """`held` bytes are kept beside it; with a `stride` each position becomes so many."""
        self.parameters += inputs * outputs * taps
        self.flops += 2 * inputs * outputs * taps * self.length
        before, self.length = self.map(inputs), self.length * stride
        self.moved += before + self.map(outputs)
        self.worst = max(self.worst, held + before + self.map(outputs))

    def snake(self, channels: int, held: int = 0) -> None:
        """In fp32: the wave, and where the map is narrower the sum beside the map."""
        fp32 = WIDTH["float32"] * channels * self.length
        self.moved += 2 * self.map(channels)
        self.worst = max(self.worst, held + self.map(channels) + fp32 + self.map(channels))


def decoder(config: SoundConfig, frames: int, size: int) -> Tally:
    """So many latent frames through the decoder."""
    widths, tally = config.decoder_widths, Tally(size, frames)
    tally.conv(config.vocoder_input_dim, widths[0], 7)
    for (before, after), stride in zip(pairwise(widths), reversed(config.dec_strides), strict=True):
        tally.snake(before)
        tally.conv(before, after, 2 * stride, stride=stride)
        for _ in range(UNITS):
            kept = tally.map(after)
            tally.snake(after)
            tally.conv(after, after, 7, kept)
            tally.snake(after, kept)
            tally.conv(after, after, 1, kept)
    tally.snake(widths[-1])
    tally.conv(widths[-1], CHANNELS, 7)
    return tally


def encoder(config: SoundConfig, frames: int, size: int) -> Tally:
    """The waveform of so many latent frames through the encoder."""
    widths = config.encoder_widths
    tally = Tally(size, frames * math.prod(config.enc_strides))
    tally.conv(CHANNELS * (config.enc_n_fft + 2), widths[0], 1)
    for (before, after), stride in zip(pairwise(widths), config.enc_strides, strict=True):
        for _ in range(config.enc_num_blocks):
            kept = tally.map(before)
            tally.conv(1, before, 7, kept)
            tally.conv(before, 4 * before, 1, kept)
            tally.snake(4 * before, kept)
            tally.conv(4 * before, before, 1, kept)
        tally.length //= stride
        tally.conv(before, after, 2 * stride)
    tally.conv(widths[-1], config.enc_latent_dim, 1)
    return tally


def weights(config: SoundConfig, dtype: str) -> dict[str, int]:
    """Bytes of each half in `dtype`."""
    size = WIDTH[dtype]
    halves = {"sound_encoder": encoder(config, 1, size), "sound_decoder": decoder(config, 1, size)}
    return {name: size * half.parameters for name, half in halves.items()}


def work(half: Tally, dtype: str) -> Work:
    """What it takes to run a half."""
    return Work(half.flops, half.moved, rate_of(dtype), CONVOLUTION_EFFICIENCY)
