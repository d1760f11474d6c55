"""The VAE on several devices: each has some rows of every map, and where a convolution reads beyond them its neighbours
hand theirs over. What comes out is what one device makes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..model.config import SPATIAL_COMPRESSION, VAE_PATCH
from ..model.vae import VideoVAE
from ..model.vae_blocks import Stream
from .ranks import Circle, parts


class Neighbours:
    """model.vae_blocks.Edges of one process of a circle, which have so many rows each in the VAE's innermost map."""

    def __init__(self, circle: Circle, heights: list[int]):
        self.circle, self.heights = circle, heights

    def around(self, x_THWC: Tensor, above: int, below: int) -> Tensor:
        """As Edges'. The first process and the last one are neighbours, too, and drop what they get."""
        number, count = self.circle.number, self.circle.count
        arriving: list[Callable[[], Tensor]] = []
        if above:
            arriving.append(self.circle.passed_on(x_THWC[:, -1:].contiguous()))
        if below:
            arriving.append(self.circle.passed_on(x_THWC[:, :1].contiguous(), back=True))
        rows = [one() for one in arriving]
        if above and number == 0:
            rows[0].zero_()
        if below and number == count - 1:
            rows[-1].zero_()
        return torch.cat([*rows[:above], x_THWC, *rows[above:]], dim=1)

    def whole(self, x_TNC: Tensor, width: int) -> Tensor:
        return self.circle.gathered_rows(x_TNC, [height * width for height in self.heights], 1)


class Rows:
    """A half of the VAE on the rows of one process; `unit` is how many there are for each row of the latents. What goes
    in and out is whole. Fewer rows than processes are everyone's."""

    def __init__(self, half: Any, circle: Circle, unit: int):
        self.half, self.circle, self.unit = half, circle, unit

    def __call__(self, x_THWC: Tensor, stream: Stream) -> Tensor:
        circle, whole = self.circle, x_THWC.shape[1] // self.unit
        if whole < circle.count:
            return self.half(x_THWC, stream)
        heights, own = parts(whole, circle.count), circle.part(whole)
        stream.edges = Neighbours(circle, heights)
        y = self.half(x_THWC[:, own.start * self.unit : own.stop * self.unit].contiguous(), stream)
        scale = y.shape[1] // heights[circle.number]
        return circle.gathered_rows(y, [scale * height for height in heights], 1).contiguous()


def by_rows(vae: VideoVAE, circle: Circle) -> VideoVAE:
    """The VAE as one process of a circle has it."""
    shared = copy.copy(vae)
    for name, unit in (("encoder", SPATIAL_COMPRESSION // VAE_PATCH), ("decoder", 1)):
        if hasattr(shared, name):
            setattr(shared, name, Rows(getattr(vae, name), circle, unit))
    return shared
