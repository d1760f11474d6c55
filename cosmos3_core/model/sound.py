"""Waveforms to latents and back: Cosmos3's sound codec, AVAE (docs/model.md, section 5.5).

A waveform is decoded in one piece: its layers look at each other's edges, and the whole of it is a few hundredths of a
step's arithmetic. Maps are [1, channels, positions]. Weights are stored as a direction and a length and are multiplied
once, while they are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .sound_config import CHANNELS, SoundConfig

HALVES = ("encoder", "decoder")
DILATIONS = (1, 3, 9)
"""Of the residual units of a decoder's block."""
PEAK = 0.95
"""Of a waveform that is encoded."""

Take = Callable[..., Tensor]
"""`take(name, *shape)` hands over the checkpoint's tensor of that name, in fp32."""


@dataclass
class Snake:
    """`x + sin(e^alpha x)^2 / (e^beta + 1e-9)` per channel, in fp32."""

    frequency: Tensor
    amplitude: Tensor

    @classmethod
    def of(cls, take: Take, name: str, channels: int) -> Snake:
        alpha, beta = (take(f"{name}.{part}", 1, channels, 1) for part in ("alpha", "beta"))
        return cls(alpha.exp(), (beta.exp() + 1e-9).reciprocal())

    def __call__(self, x: Tensor) -> Tensor:
        wave = (x * self.frequency).sin_().square_().mul_(self.amplitude)
        return wave.add_(x).to(x.dtype)


class Conv:
    """A convolution along time; `transposed` makes `stride` positions of each."""

    def __init__(
        self,
        take: Take,
        name: str,
        widths: tuple[int, int],
        size: int,
        dtype: torch.dtype,
        *,
        bias: bool = True,
        stride: int = 1,
        dilation: int = 1,
        transposed: bool = False,
        normalised: bool = True,
        groups: int = 1,
    ):
        inputs, outputs = widths
        shape = (inputs, outputs, size) if transposed else (outputs, inputs // groups, size)
        if normalised:
            length, direction = take(f"{name}.weight_g", shape[0], 1, 1), take(f"{name}.weight_v", *shape)
            weight = direction * (length / torch.norm_except_dim(direction))
        else:
            weight = take(f"{name}.weight", *shape)
        self.weight = weight.to(dtype)
        self.bias = take(f"{name}.bias", outputs).to(dtype) if bias else None
        padding = math.ceil(stride / 2) if stride > 1 else dilation * (size - 1) // 2
        self.how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        if transposed:
            self.how["output_padding"] = stride % 2
        self.convolve = F.conv_transpose1d if transposed else F.conv1d

    def __call__(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias, **self.how)


class ResidualUnit:
    """x + a convolution of 7, dilated, and one of 1, each behind a snake."""

    def __init__(self, take: Take, name: str, width: int, dilation: int, dtype: torch.dtype):
        self.snake1, self.snake2 = (Snake.of(take, f"{name}.snake{i}", width) for i in (1, 2))
        self.conv1 = Conv(take, f"{name}.conv1", (width, width), 7, dtype, dilation=dilation)
        self.conv2 = Conv(take, f"{name}.conv2", (width, width), 1, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv2(self.snake2(self.conv1(self.snake1(x)))).add_(x)


class _Layers:
    """Layers one after the other."""

    layers: list[Any]

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder(_Layers):
    """Latents [1, C, S] to a waveform [1, 2, S hop]."""

    def __init__(self, take: Take, config: SoundConfig, dtype: torch.dtype):
        widths, strides = config.decoder_widths, tuple(reversed(config.dec_strides))
        self.layers = [Conv(take, "decoder.conv1", (config.vocoder_input_dim, widths[0]), 7, dtype)]
        for i, (pair, stride) in enumerate(zip(pairwise(widths), strides, strict=True)):
            name = f"decoder.block.{i}"
            self.layers.append(Snake.of(take, f"{name}.snake1", pair[0]))
            self.layers.append(Conv(take, f"{name}.conv_t1", pair, 2 * stride, dtype, stride=stride, transposed=True))
            for unit, dilation in enumerate(DILATIONS, 1):
                self.layers.append(ResidualUnit(take, f"{name}.res_unit{unit}", pair[1], dilation, dtype))
        self.layers.append(Snake.of(take, "decoder.snake1", widths[-1]))
        self.layers.append(Conv(take, "decoder.conv2", (widths[-1], CHANNELS), 7, dtype, bias=False))


class ConvNeXt:
    """x + a depthwise convolution of 7, a norm over channels, and a layer of four times the width."""

    def __init__(self, take: Take, name: str, width: int, dtype: torch.dtype):
        self.depthwise = Conv(take, f"{name}.dwconv.1", (width, width), 7, dtype, normalised=False, groups=width)
        self.gain = take(f"{name}.norm.weight", width)
        self.up = Conv(take, f"{name}.pwconv1", (width, 4 * width), 1, dtype, normalised=False)
        self.snake = Snake.of(take, f"{name}.act", 4 * width)
        self.down = Conv(take, f"{name}.pwconv2", (4 * width, width), 1, dtype, normalised=False)

    def __call__(self, x: Tensor) -> Tensor:
        rows = self.depthwise(x).transpose(1, 2).float()
        normed = F.layer_norm(rows, self.gain.shape, self.gain, eps=1e-5).to(x.dtype).transpose(1, 2)
        return self.down(self.snake(self.up(normed))).add_(x)


class Encoder(_Layers):
    """A spectrogram [1, 2 (n_fft + 2), positions] to mean and scale of the latents, [1, 2 C, S]."""

    def __init__(self, take: Take, config: SoundConfig, dtype: torch.dtype):
        widths, spectrum = config.encoder_widths, CHANNELS * (config.enc_n_fft + 2)
        self.layers = []

        def name() -> str:
            return f"encoder.layers.{len(self.layers)}"

        self.layers.append(Conv(take, name(), (spectrum, widths[0]), 1, dtype, bias=False))
        for pair, stride in zip(pairwise(widths), config.enc_strides, strict=True):
            for _ in range(config.enc_num_blocks):
                self.layers.append(ConvNeXt(take, name(), pair[0], dtype))
            self.layers.append(Conv(take, name(), pair, 2 * stride, dtype, stride=stride))
        self.layers.append(Conv(take, name(), (widths[-1], config.enc_latent_dim), 1, dtype, bias=False))


class SoundCodec:
    """`encode` and `decode` between waveforms in [-1, 1] and fp32 latents, those of the `halves` that are there."""

    def __init__(
        self,
        config: SoundConfig,
        take: Take,
        device: torch.device | str,
        dtype: torch.dtype,
        halves: Collection[str] = HALVES,
    ):
        self.config, self.device, self.dtype = config, device, dtype
        if "encoder" in halves:
            self.encoder = Encoder(take, config, dtype)
        if "decoder" in halves:
            self.decoder = Decoder(take, config, dtype)

    @classmethod
    def names(cls, config: SoundConfig, halves: Collection[str] = HALVES) -> dict[str, tuple[int, ...]]:
        """Every tensor of these halves and its shape."""
        shapes: dict[str, tuple[int, ...]] = {}

        def listed(name: str, *shape: int) -> Tensor:
            shapes[name] = shape
            return torch.empty(1, *shape[1:])  # one row, as in VideoVAE.names

        cls(config, listed, "meta", torch.float32, halves)
        return shapes

    @classmethod
    def load(
        cls,
        config: SoundConfig,
        tensors: Iterable[tuple[str, Tensor]],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        halves: Collection[str] = HALVES,
    ) -> SoundCodec:
        """Build these halves from named tensors; others are passed over."""
        wanted = tuple(f"{half}." for half in halves)
        held = {name: t.to(device, torch.float32, copy=True) for name, t in tensors if name.startswith(wanted)}
        return cls(config, lambda name, *_: held.pop(name), device, dtype, halves)

    @torch.inference_mode()
    def encode(self, waveform: Tensor) -> Tensor:
        """A waveform [2, N] to the posterior's mean, [C, ceil(N / hop)] fp32. What the last frame lacks is silence."""
        wave = waveform.float().cpu()
        if self.config.normalize_volume:
            wave = wave / (wave.abs().max() + 1e-5) * PEAK
        spectrum = self._spectrum(F.pad(wave, (0, -wave.shape[1] % self.config.hop)))
        mean, _ = self.encoder(spectrum.to(self.device, self.dtype)).float().chunk(2, dim=1)
        return mean[0]

    def _spectrum(self, wave: Tensor) -> Tensor:
        """[1, 2 (n_fft + 2), positions]: of each channel the real parts, then the imaginary ones. On the host, as not
        every device knows complex numbers; it is no work beside the encoder's."""
        n_fft, hop = self.config.enc_n_fft, self.config.enc_hop_length
        before = (n_fft - hop) // 2
        padded = F.pad(wave, (before, n_fft - hop - before))
        window = torch.hann_window(n_fft)
        spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
        return torch.cat([spectrum.real, spectrum.imag], dim=1).flatten(0, 1).unsqueeze(0)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [C, S] to a waveform [2, S hop] in [-1, 1], fp32 on the host."""
        wave = self.decoder(latents.to(self.device, self.dtype).unsqueeze(0))
        return wave[0].float().clamp_(-1, 1).cpu()
