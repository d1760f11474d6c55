"""The blocks of Wan2.2's causal VAE (docs/model.md, sections 5.2 and 5.3), on the ops they are given.

Feature maps are x_THWC, contiguous: one clip, channels last. Convolutions are fastest that way on most devices, and the
norm over channels is a norm over rows. A convolution whose weight has its channels first gets a copy of the map. A
causal convolution reads its frames behind the two before them, so its input is written once, by the norm, into a buffer
that has room for those.

Every block is built from `take(name, *shape)`, which hands over the checkpoint's tensor of that name: to load with, or
to list names and shapes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Ops
from .config import VAE_DOWN_IN_TIME, VAE_WIDTHS

Take = Callable[..., Tensor]


class Edges(Protocol):
    """What lies beyond a map whose rows are some of a larger one's."""

    def around(self, x_THWC: Tensor, above: int, below: int) -> Tensor:
        """The map with so many of its neighbours' rows, none or one; with zeros where the larger one ends."""

    def whole(self, x_TNC: Tensor, width: int) -> Tensor:
        """Positions of maps of this width: those of all rows."""


class Stream:
    """What the frames so far leave to the next chunk of the same clip: each causal convolution's last inputs. With
    `edges` the clip is some rows of one.

    `first` holds while the clip's first frame, a chunk of its own, runs: nothing lies before it, and the convolutions
    between frames are skipped. A clip of `one` frame remembers nothing.
    """

    def __init__(self, *, one: bool):
        self.first, self.one = True, one
        self.edges: Edges | None = None
        self._past: dict[object, Tensor] = {}

    def past(self, owner: object) -> Tensor | None:
        return self._past.get(owner)

    def keep(self, owner: object, frames: Tensor) -> None:
        """Copy `frames`, whose buffer will be used again."""
        if owner in self._past:
            self._past[owner].copy_(frames)
        elif not self.one:
            self._past[owner] = frames.clone()


def laid_out(weight: Tensor, channels_last: bool) -> Tensor:
    """[O, I, ...] with I innermost in memory, or as written. `contiguous(memory_format=...)` does it too, but not on
    every device."""
    return weight.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else weight.contiguous()


def is_channels_last(weight: Tensor) -> bool:
    """Of a kernel with several taps."""
    return weight.stride(1) == 1


def as_the_weight(x: Tensor, weight: Tensor) -> Tensor:
    """A map [B, C, ...], whose channels are innermost in memory, in the weight's layout."""
    return x if is_channels_last(weight) else x.contiguous()


def conv2d(
    x_THWC: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    y = F.conv2d(as_the_weight(x_THWC.permute(0, 3, 1, 2), weight), weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 1).contiguous()


def conv3d(
    x_THWC: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...],
) -> Tensor:
    # unsqueeze first: the batch axis then has the stride by which torch recognises channels-last.
    x_BCTHW = x_THWC.unsqueeze(0).permute(0, 4, 1, 2, 3)
    y = F.conv3d(as_the_weight(x_BCTHW, weight), weight, bias, stride=stride, padding=padding)
    return y.permute(0, 2, 3, 4, 1).contiguous()[0]


class Pointwise:
    """A 1 x 1 (x 1) convolution: a linear layer over rows. `axes` is the kernel's rank in the checkpoint."""

    def __init__(self, take: Take, name: str, ops: Ops, inputs: int, outputs: int, axes: int = 3):
        weight = take(f"{name}.weight", outputs, inputs, *[1] * axes)
        self.linear = ops.pack_linear(weight.flatten(1), take(f"{name}.bias", outputs))

    def __call__(self, x_THWC: Tensor) -> Tensor:
        return self.linear(x_THWC.flatten(0, 2)).unflatten(0, x_THWC.shape[:3])


@dataclass
class Sum:
    """A feature map as the terms of a sum: what a convolution gave without its bias, that bias, and what the block
    adds. The norm that reads it next adds them in its own pass; with a residual they are then in `x_THWC`."""

    x_THWC: Tensor
    bias_C: Tensor | None = None
    residual_THWC: Tensor | None = None

    def added(self) -> Tensor:
        if self.bias_C is not None:
            self.x_THWC.add_(self.bias_C)
        if self.residual_THWC is not None:
            self.x_THWC.add_(self.residual_THWC)
        self.bias_C = self.residual_THWC = None
        return self.x_THWC


class NormSilu:
    """RMS norm over channels, then SiLU: everywhere before a convolution."""

    def __init__(self, take: Take, name: str, ops: Ops, channels: int):
        self.ops, self.gamma = ops, take(f"{name}.gamma", channels, 1, 1, 1).view(-1)

    def __call__(self, x: Sum, out_THWC: Tensor) -> None:
        residual = None if x.residual_THWC is None else self._rows(x.residual_THWC)
        x_MI, out_MI = self._rows(x.x_THWC), self._rows(out_THWC)
        self.ops.norm_silu(x_MI, self.gamma, bias_I=x.bias_C, residual_MI=residual, out_MI=out_MI)
        if residual is not None:
            x.bias_C = x.residual_THWC = None

    def _rows(self, x_THWC: Tensor) -> Tensor:
        return x_THWC.view(-1, len(self.gamma))


class CausalConv:
    """A convolution over three frames, the last of which is the frame it computes; `size` rows and columns. Its bias
    is left to who reads the result: by itself it would be another pass over the map."""

    def __init__(self, take: Take, name: str, inputs: int, outputs: int, size: int = 3):
        self.weight, self.bias = take(f"{name}.weight", outputs, inputs, 3, size, size), take(f"{name}.bias", outputs)
        self.padding = size // 2

    def input(self, x: Sum, stream: Stream, norm: NormSilu | None = None) -> Tensor:
        """The two frames of the past and then x, normed if there is a `norm`; at the clip's first frame only that."""
        frames, *area = x.x_THWC.shape
        before = 0 if stream.first else 2
        padded = x.x_THWC.new_empty(before + frames, *area)
        if norm is None:
            padded[before:] = x.added()
        else:
            norm(x, padded[before:])
        if stream.first:
            if not stream.one:
                stream.keep(self, F.pad(padded, (0, 0, 0, 0, 0, 0, 1, 0)))
            return padded
        past = stream.past(self)
        padded[:2] = 0 if past is None else past
        stream.keep(self, padded[-2:])
        return padded

    def __call__(self, padded_THWC: Tensor, stream: Stream) -> Sum:
        rows = self.padding
        if stream.edges and rows:
            padded_THWC, rows = stream.edges.around(padded_THWC, 1, 1), 0
        if len(padded_THWC) == 1:  # before the first frame are zeros, which two thirds of the kernel would multiply
            weight = laid_out(self.weight[:, :, -1], is_channels_last(self.weight))
            return Sum(conv2d(padded_THWC, weight, padding=(rows, self.padding)), self.bias)
        return Sum(conv3d(padded_THWC, self.weight, padding=(0, rows, self.padding)), self.bias)


class ResBlock:
    """x + two causal convolutions, each behind norm and SiLU; x through `conv_shortcut` where the widths differ."""

    def __init__(self, take: Take, name: str, ops: Ops, inputs: int, outputs: int):
        self.norm1, self.norm2 = (
            NormSilu(take, f"{name}.norm{i}", ops, width) for i, width in ((1, inputs), (2, outputs))
        )
        self.conv1 = CausalConv(take, f"{name}.conv1", inputs, outputs)
        self.conv2 = CausalConv(take, f"{name}.conv2", outputs, outputs)
        self.shortcut = Pointwise(take, f"{name}.conv_shortcut", ops, inputs, outputs) if inputs != outputs else None

    def __call__(self, x: Sum, stream: Stream) -> Sum:
        # No map outlives its reader: these are the decode's largest tensors.
        padded = self.conv1.input(x, stream, self.norm1)
        h = self.conv1(padded, stream)
        del padded
        padded = self.conv2.input(h, stream, self.norm2)
        del h
        h = self.conv2(padded, stream)
        del padded
        h.residual_THWC = x.added() if self.shortcut is None else self.shortcut(x.added())
        return h


class Attention:
    """Every position of a frame attends to all of that frame: one head, as wide as the map."""

    def __init__(self, take: Take, name: str, ops: Ops, channels: int):
        self.gamma = take(f"{name}.norm.gamma", channels, 1, 1).view(-1)
        self.qkv = Pointwise(take, f"{name}.to_qkv", ops, channels, 3 * channels, axes=2)
        self.out = Pointwise(take, f"{name}.proj", ops, channels, channels, axes=2)

    def __call__(self, x_THWC: Tensor, stream: Stream) -> Tensor:
        channels = len(self.gamma)
        normed = F.normalize(x_THWC.float(), dim=-1) * (channels**0.5 * self.gamma.float())
        q, k, v = self.qkv(normed.to(x_THWC.dtype)).flatten(1, 2).chunk(3, dim=-1)
        if stream.edges:
            k, v = (stream.edges.whole(one, x_THWC.shape[2]) for one in (k, v))
        # Written out: a head this wide is beyond the kernels behind ops.attention. Scores in fp32, as those keep them.
        scores = torch.matmul(q.float() * channels**-0.5, k.float().transpose(1, 2))
        attended = torch.softmax(scores, dim=-1).to(v.dtype) @ v
        return self.out(attended.view(x_THWC.shape)).add_(x_THWC)


class Middle:
    def __init__(self, take: Take, name: str, ops: Ops, channels: int):
        first, second = (ResBlock(take, f"{name}.resnets.{i}", ops, channels, channels) for i in range(2))
        self.resnets, self.attention = (first, second), Attention(take, f"{name}.attentions.0", ops, channels)

    def __call__(self, x: Sum, stream: Stream) -> Sum:
        first, second = self.resnets
        return second(Sum(self.attention(first(x, stream).added(), stream)), stream)


class Upsample:
    """Twice the rows and columns, and after the first frame of a clip twice the frames if `in_time`; plus `shortcut`,
    the map at the block's start, repeated to the same size (diffusers' DupUp3D)."""

    def __init__(self, take: Take, name: str, channels: int, in_time: bool):
        weight = take(f"{name}.resample.1.weight", channels, channels, 3, 3)
        self.weight, self.bias = self.phases(weight), take(f"{name}.resample.1.bias", channels)
        self.in_time = CausalConv(take, f"{name}.time_conv", channels, 2 * channels, size=1) if in_time else None

    @staticmethod
    def phases(weight: Tensor) -> Tensor:
        """Nearest upsampling then a 3 x 3 convolution are four 2 x 2 convolutions of the small map, one for each place
        in a 2 x 2 square of the large: two of three taps meet the same pixel. 4 taps instead of 9, and no large map.

        [O, I, 3, 3] to [4 O, I, 2, 2]: even rows see the row above through tap 0 and their own through 1 and 2, odd
        rows their own through 0 and 1 and the row below through 2; columns likewise.
        """
        w = weight.float()
        rows = torch.stack([w[:, :, 0], w[:, :, 1] + w[:, :, 2], w[:, :, 0] + w[:, :, 1], w[:, :, 2]])
        both = torch.stack([rows[..., 0], rows[..., 1] + rows[..., 2], rows[..., 0] + rows[..., 1], rows[..., 2]])
        both = both.unflatten(0, (2, 2)).unflatten(2, (2, 2))  # column phase, column tap, row phase, row tap, O, I
        phases = both.permute(2, 0, 4, 5, 3, 1).flatten(0, 2)
        return laid_out(phases.to(weight.dtype), is_channels_last(weight))

    def __call__(self, x_THWC: Tensor, shortcut_THWC: Tensor, stream: Stream) -> Tensor:
        frames, height, width, _ = shortcut_THWC.shape
        channels = len(self.bias)
        if self.in_time and not stream.first:
            x_THWC = self.in_time(self.in_time.input(Sum(x_THWC), stream), stream).added()
            x_THWC = x_THWC.unflatten(3, (2, channels)).transpose(2, 3).transpose(1, 2).flatten(0, 1)
        # The bias goes to the small map: one pass over the large one less.
        step = shortcut_THWC.shape[3] // channels
        shortcuts = [(shortcut_THWC[..., i::step] + self.bias).unsqueeze(1) for i in range(step)]
        rows = 1
        if stream.edges:
            x_THWC, rows = stream.edges.around(x_THWC, 1, 1), 0
        y = conv2d(x_THWC, self.weight, padding=(rows, 1)).unflatten(0, (frames, -1)).unflatten(4, (4, channels))
        out = y.new_empty(*y.shape[:2], height, 2, width, 2, channels)
        for phase in range(4):
            i, j = divmod(phase, 2)
            part = y[:, :, i : i + height, j : j + width, phase]
            torch.add(part, shortcuts[phase * step // 4], out=out[:, :, :, i, :, j])
        return out.view(-1, 2 * height, 2 * width, channels)


class Downsample:
    """Half the rows and columns, and after the first frame of a clip half the frames if `in_time`; plus `shortcut`, the
    map at the block's start, averaged to the same size (diffusers' AvgDown3D)."""

    def __init__(self, take: Take, name: str, channels: int, in_time: bool):
        self.weight = take(f"{name}.resample.1.weight", channels, channels, 3, 3)
        self.bias = take(f"{name}.resample.1.bias", channels)
        self.time = None
        if in_time:
            weight = take(f"{name}.time_conv.weight", channels, channels, 3, 1, 1)
            self.time = weight, take(f"{name}.time_conv.bias", channels)

    def __call__(self, x_THWC: Tensor, shortcut_THWC: Tensor, stream: Stream) -> Tensor:
        below = 1
        if stream.edges:
            x_THWC, below = stream.edges.around(x_THWC, 0, 1), 0
        x = conv2d(F.pad(x_THWC, (0, 0, 0, 1, 0, below)), self.weight, self.bias, stride=2)
        if self.time is None:
            return x.add_(_averaged(shortcut_THWC, 1))
        if stream.first:
            stream.keep(self, x)
            return x.add_(_averaged(shortcut_THWC, 2))
        past = stream.past(self)
        assert past is not None, "the first frame was kept"
        behind = torch.cat([past, x])
        stream.keep(self, x[-1:])
        x = conv3d(behind, *self.time, stride=(2, 1, 1), padding=(0, 0, 0))
        return x.add_(_averaged(shortcut_THWC, 2))


def _averaged(x_THWC: Tensor, frames: int) -> Tensor:
    """The mean of each 2 x 2 square; `frames` consecutive frames become channels, beside each other. A frame that has
    no partner gets zeros before it."""
    _, height, width, _ = x_THWC.shape
    x = F.pad(x_THWC, (0, 0, 0, 0, 0, 0, -len(x_THWC) % frames, 0))
    x = x.view(-1, frames, height // 2, 2, width // 2, 2, x.shape[3]).mean((3, 5))
    return x.permute(0, 2, 3, 4, 1).flatten(3)


class Encoder:
    """Patched pixels [T, H, W, inputs] to [T', H/8, W/8, outputs]."""

    def __init__(self, take: Take, ops: Ops, width: int, inputs: int, outputs: int, depth: int):
        widths = [width * n for n in (1, *VAE_WIDTHS)]
        self.conv_in = CausalConv(take, "encoder.conv_in", inputs, widths[0])
        self.levels: list[tuple[list[ResBlock], Downsample | None]] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            name = f"encoder.down_blocks.{i}"
            blocks = [ResBlock(take, f"{name}.resnets.{j}", ops, after if j else before, after) for j in range(depth)]
            down = (
                Downsample(take, f"{name}.downsampler", after, VAE_DOWN_IN_TIME[i])
                if i < len(VAE_DOWN_IN_TIME)
                else None
            )
            self.levels.append((blocks, down))
        self.middle = Middle(take, "encoder.mid_block", ops, widths[-1])
        self.norm_out = NormSilu(take, "encoder.norm_out", ops, widths[-1])
        self.conv_out = CausalConv(take, "encoder.conv_out", widths[-1], outputs)

    def __call__(self, x_THWC: Tensor, stream: Stream) -> Tensor:
        x = self.conv_in(self.conv_in.input(Sum(x_THWC), stream), stream)
        for blocks, down in self.levels:
            entry = x.added()
            for block in blocks:
                x = block(x, stream)
            x = Sum(x.added().add_(entry) if down is None else down(x.added(), entry, stream))
        x = self.middle(x, stream)
        x = self.conv_out(self.conv_out.input(x, stream, self.norm_out), stream)
        stream.first = False
        return x.added()


class Decoder:
    """Latents [T, h, w, inputs] to patched pixels [T', 8 h, 8 w, outputs]."""

    def __init__(self, take: Take, ops: Ops, width: int, inputs: int, outputs: int, depth: int):
        widths = [width * n for n in (VAE_WIDTHS[-1], *reversed(VAE_WIDTHS))]
        in_time = VAE_DOWN_IN_TIME[::-1]
        self.conv_in = CausalConv(take, "decoder.conv_in", inputs, widths[0])
        self.middle = Middle(take, "decoder.mid_block", ops, widths[0])
        self.levels: list[tuple[list[ResBlock], Upsample | None]] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            name = f"decoder.up_blocks.{i}"
            blocks = [
                ResBlock(take, f"{name}.resnets.{j}", ops, after if j else before, after) for j in range(depth + 1)
            ]
            up = Upsample(take, f"{name}.upsampler", after, in_time[i]) if i < len(in_time) else None
            self.levels.append((blocks, up))
        self.norm_out = NormSilu(take, "decoder.norm_out", ops, widths[-1])
        self.conv_out = CausalConv(take, "decoder.conv_out", widths[-1], outputs)

    def __call__(self, z_THWC: Tensor, stream: Stream) -> Tensor:
        x = self.middle(self.conv_in(self.conv_in.input(Sum(z_THWC), stream), stream), stream)
        for blocks, up in self.levels:
            entry = x.added() if up else None
            for block in blocks:
                x = block(x, stream)
            if up and entry is not None:
                x = Sum(up(x.added(), entry, stream))
        padded = self.conv_out.input(x, stream, self.norm_out)
        del x  # before the last convolution, like every map that has been read
        x = self.conv_out(padded, stream)
        stream.first = False
        return x.added()
