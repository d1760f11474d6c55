"""The two codecs as modules to train: batched, differentiable, and on whole clips, where the engine streams one clip.

Their parameters have the checkpoint's names, so that `state_dict` is what the engine loads. The formulas are those of
docs/model.md, section 5; tests/test_embedded.py holds them against the engine and diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos3_core.model.config import VAE_DOWN_IN_TIME, VAE_PATCH, VAE_PATCHED, VAE_WIDTHS


def patchify(pixels: Tensor) -> Tensor:
    """[B, 3, T, H, W] to [B, 12, T, H/2, W/2]: of a channel's four the column's offset counts before the row's."""
    x = pixels.unflatten(4, (-1, VAE_PATCH)).unflatten(3, (-1, VAE_PATCH))  # B C T h row w column
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor) -> Tensor:
    x = x.unflatten(1, (-1, VAE_PATCH, VAE_PATCH))  # B C column row T h w
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def normed(x: Tensor, gamma: Tensor, lit: bool, lead: int) -> Tensor:
    """RMS norm over channels of [B, C, ...], through SiLU if `lit`, behind `lead` frames of zeros."""
    y = F.rms_norm(x.movedim(1, -1), (len(gamma),), gamma.view(-1).to(x.dtype), 1e-12).movedim(-1, 1)
    y = F.silu(y) if lit else y
    return F.pad(y, (0, 0, 0, 0, lead, 0)) if lead else y


class Norm(nn.Module):
    """`normed` by a weight. `kernel` may be one launch that does the same."""

    kernel: Callable[[Tensor, Tensor, bool, int], Tensor] = staticmethod(normed)

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor, lit: bool = False, lead: int = 0) -> Tensor:
        return self.kernel(x, self.gamma, lit, lead)


class Causal(nn.Conv3d):
    """A convolution over a frame and the two before it; before the first frame are zeros."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__(inputs, outputs, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        """Of x, or of SiLU of x's norm."""
        if x.shape[2] == 1:  # of which only the last third of the kernel sees anything
            x, weight = x if norm is None else norm(x, True), self.weight[:, :, -1]
            return F.conv2d(x[:, :, 0], weight, self.bias, padding=self.padding[1:]).unsqueeze(2)
        return super().forward(F.pad(x, (0, 0, 0, 0, 2, 0)) if norm is None else norm(x, True, 2))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = Norm(inputs, 3), Causal(inputs, outputs)
        self.norm2, self.conv2 = Norm(outputs, 3), Causal(outputs, outputs)
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_shortcut(x) + self.conv2(self.conv1(x, self.norm1), self.norm2)


class Attention(nn.Module):
    """Every position of a frame attends to all of that frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = _frames(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).view(frames.shape)
        return x + _clip(self.proj(attended), len(x))


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.resnets = nn.ModuleList([Block(channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


def _frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] to [B T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(x: Tensor, clips: int) -> Tensor:
    return x.unflatten(0, (clips, -1)).transpose(1, 2)


class Half(nn.Module):
    """Half the rows and columns, and of the frames after the first if `in_time`."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels, 3, stride=2)])
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Tensor) -> Tensor:
        h = _clip(self.resample[1](F.pad(_frames(x), (0, 1, 0, 1))), len(x))
        if self.time_conv is None or h.shape[2] == 1:
            return h
        return torch.cat([h[:, :, :1], self.time_conv(h)], dim=2)


class Double(nn.Module):
    """Twice the rows and columns, and the frames after the first if `in_time`."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1)])
        self.time_conv = Causal(channels, 2 * channels, size=1) if in_time else None

    def forward(self, x: Tensor) -> Tensor:
        if self.time_conv is not None and x.shape[2] > 1:
            later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # B 2 C T H W: the pair are frames in turn
            x = torch.cat([x[:, :, :1], later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
        up = F.interpolate(_frames(x), scale_factor=2.0, mode="nearest-exact")
        return _clip(self.resample[1](up), len(x))


def averaged(x: Tensor, frames: int) -> Tensor:
    """The mean of each 2 x 2 square; `frames` frames in turn become channels, the first after a frame of zeros."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % frames, 0))
    x = _clip(F.avg_pool2d(_frames(x), 2), len(x))
    return x if frames == 1 else x.unflatten(2, (-1, 2)).movedim(3, 2).flatten(1, 2)


def repeated(x: Tensor, outputs: int, frames: int) -> Tensor:
    """The map at twice its rows and columns and `frames` times its frames, of which the first frames - 1 are dropped;
    with fewer channels, neighbours become rows beside each other."""
    x = x.repeat_interleave(outputs * frames * 4 // x.shape[1], dim=1)
    x = x.unflatten(1, (outputs, frames, 2, 2))  # B C t row column T H W
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, frames - 1 :]


class Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, half: Half | None):
        super().__init__()
        self.resnets = nn.ModuleList([Block(outputs if j else inputs, outputs) for j in range(depth)])
        self.downsampler = half

    def forward(self, x: Tensor) -> Tensor:
        entry = x
        for block in self.resnets:
            x = block(x)
        if self.downsampler is None:
            return x + entry
        return self.downsampler(x) + averaged(entry, 1 if self.downsampler.time_conv is None else 2)


class Up(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, double: Double | None):
        super().__init__()
        self.resnets = nn.ModuleList([Block(outputs if j else inputs, outputs) for j in range(depth + 1)])
        self.upsampler = double

    def forward(self, x: Tensor) -> Tensor:
        entry = x
        for block in self.resnets:
            x = block(x)
        if self.upsampler is None:
            return x
        up = self.upsampler(x)
        return up + repeated(entry, up.shape[1], 1 if self.upsampler.time_conv is None else 2)


class Encoder(nn.Module):
    def __init__(self, width: int, outputs: int, depth: int):
        super().__init__()
        widths = [width * n for n in (1, *VAE_WIDTHS)]
        halves = [Half(after, in_time) for after, in_time in zip(widths[1:], VAE_DOWN_IN_TIME, strict=False)]
        self.conv_in = Causal(VAE_PATCHED, widths[0])
        self.down_blocks = nn.ModuleList(
            [Down(a, b, depth, half) for (a, b), half in zip(pairwise(widths), [*halves, None], strict=True)]
        )
        self.mid_block, self.norm_out = Middle(widths[-1]), Norm(widths[-1], 3)
        self.conv_out = Causal(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.mid_block(x), self.norm_out)


class Decoder(nn.Module):
    def __init__(self, width: int, inputs: int, depth: int):
        super().__init__()
        widths = [width * n for n in (VAE_WIDTHS[-1], *reversed(VAE_WIDTHS))]
        doubles = [Double(b, in_time) for b, in_time in zip(widths[1:], VAE_DOWN_IN_TIME[::-1], strict=False)]
        self.conv_in, self.mid_block = Causal(inputs, widths[0]), Middle(widths[0])
        self.up_blocks = nn.ModuleList(
            [Up(a, b, depth, double) for (a, b), double in zip(pairwise(widths), [*doubles, None], strict=True)]
        )
        self.norm_out, self.conv_out = Norm(widths[-1], 3), Causal(widths[-1], VAE_PATCHED)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(x, self.norm_out)


class VideoCodec(nn.Module):
    """Wan2.2's causal VAE, of the widths in a `vae/config.json`."""

    def __init__(self, base_dim: int, decoder_base_dim: int, z_dim: int, num_res_blocks: int, **_: object):
        super().__init__()
        self.encoder = Encoder(base_dim, 2 * z_dim, num_res_blocks)
        self.quant_conv, self.post_quant_conv = nn.Conv3d(2 * z_dim, 2 * z_dim, 1), nn.Conv3d(z_dim, z_dim, 1)
        self.decoder = Decoder(decoder_base_dim, z_dim, num_res_blocks)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance), each [B, C, 1 + (F - 1) / 4, H / 16, W / 16], not normalised."""
        mean, logvar = self.quant_conv(self.encoder(patchify(pixels))).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Pixels, not clamped."""
        return unpatchify(self.decoder(self.post_quant_conv(z)))


class Snake(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.zeros(1, channels, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha.exp() * x).square() / (self.beta.exp() + 1e-9)


class Normed(nn.Module):
    """A convolution whose weight is a direction `weight_v` times a length `weight_g`; `up`: the transposed one. What it
    gives begins at `begin` times the size of what it gets."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        up: bool = False,
        bias: bool = True,
        begin: float = 1.0,
    ):
        super().__init__()
        shape = (inputs, outputs, size) if up else (outputs, inputs, size)
        fan_in = inputs * size / (stride if up else 1)
        self.weight_v = nn.Parameter(torch.randn(shape) / math.sqrt(fan_in))
        self.weight_g = nn.Parameter(begin * self.weight_v.detach().norm(dim=(1, 2), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.dilation, self.up = stride, dilation, up
        self.padding = math.ceil(stride / 2) if stride > 1 else (size - 1) * dilation // 2

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=(1, 2), keepdim=True)
        if self.up:
            return F.conv_transpose1d(x, weight, self.bias, self.stride, self.padding, self.stride % 2)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class Unit(nn.Module):
    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake1, self.conv1 = Snake(channels), Normed(channels, channels, 7, dilation=dilation)
        self.snake2, self.conv2 = Snake(channels), Normed(channels, channels, 1, begin=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Rise(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.snake1, self.conv_t1 = Snake(inputs), Normed(inputs, outputs, 2 * stride, stride=stride, up=True)
        self.res_unit1, self.res_unit2, self.res_unit3 = (Unit(outputs, dilation) for dilation in (1, 3, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_unit3(self.res_unit2(self.res_unit1(self.conv_t1(self.snake1(x)))))


class Wave(nn.Module):
    def __init__(self, width: int, inputs: int, strides: Sequence[int], multiples: Sequence[int]):
        super().__init__()
        widths = [width * n for n in (1, *multiples)][::-1]
        self.conv1 = Normed(inputs, widths[0], 7)
        self.block = nn.ModuleList(
            [Rise(a, b, stride) for (a, b), stride in zip(pairwise(widths), reversed(strides), strict=True)]
        )
        self.snake1, self.conv2 = Snake(width), Normed(width, 2, 7, bias=False, begin=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class NormedOverChannels(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.transpose(1, 2), self.weight.shape, self.weight, None, 1e-5).transpose(1, 2)


class Next(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, channels: int):
        super().__init__()
        depthwise = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.dwconv, self.norm = nn.Sequential(nn.Identity(), depthwise), NormedOverChannels(channels)
        self.pwconv1, self.act = nn.Conv1d(channels, 4 * channels, 1), Snake(4 * channels)
        self.pwconv2 = nn.Conv1d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x)))))


class Listener(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        c = config
        self.fft, self.hop = c["enc_n_fft"], c["enc_hop_length"]
        widths = [c["enc_dim"] * n for n in c["enc_c_mults"]]
        layers: list[nn.Module] = [Normed(2 * (self.fft + 2), widths[0], 1, bias=False)]
        for before, after, stride in zip(widths, [*widths[1:], widths[-1]], c["enc_strides"], strict=True):
            layers += [Next(before) for _ in range(c["enc_num_blocks"])]
            layers.append(Normed(before, after, 2 * stride, stride=stride))
        self.layers = nn.Sequential(*layers, Normed(widths[-1], c["enc_latent_dim"], 1, bias=False))

    def forward(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave.flatten(0, 1), ((self.fft - self.hop) // 2, -(-(self.fft - self.hop) // 2)))
        window = torch.hann_window(self.fft, device=wave.device)
        spectrum = torch.stft(padded, self.fft, self.hop, window=window, center=False, return_complex=True)
        both = torch.cat([spectrum.real, spectrum.imag], dim=1)
        return self.layers(both.unflatten(0, wave.shape[:2]).flatten(1, 2))


class SoundCodec(nn.Module):
    """The AVAE, of the widths in a `sound_tokenizer/config.json`."""

    def __init__(self, config: dict):
        super().__init__()
        self.hop = math.prod(config["dec_strides"])
        self.encoder = Listener(config)
        self.decoder = Wave(
            config["dec_dim"], config["vocoder_input_dim"], config["dec_strides"], config["dec_c_mults"]
        )

    def encode(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) [B, C, S] of waveforms [B, 2, N], which are brought to one loudness and filled up
        to whole latents."""
        wave = 0.95 * wave / (wave.abs().amax((1, 2), keepdim=True) + 1e-5)
        mean, scale = self.encoder(F.pad(wave, (0, -wave.shape[2] % self.hop))).chunk(2, dim=1)
        return mean, F.softplus(scale) + 1e-4

    def decode(self, z: Tensor) -> Tensor:
        """Waveforms [B, 2, 1920 S], not clamped."""
        return self.decoder(z)
