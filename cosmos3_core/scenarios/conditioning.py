"""Input pictures and clips, fitted to the canvas; docs/model.md, sections 4.3 and 4.4."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import InputError

MAX_CROP = 16
"""Times the canvas that a covering picture may measure: one of 1x20000 pixels would fill the memory."""


def fit(frames: Tensor, width: int, height: int, *, image_filter: str, stretch: bool) -> Tensor:
    """uint8 [F, H, W, 3] to fp32 [3, F, height, width] in [-1, 1].

    Scaled to cover the canvas and cropped at the centre, or with `stretch` resized without regard to aspect. Filters
    are antialiased: "bilinear" as NVIDIA's framework and diffusers, "lanczos" as vllm-omni and sglang, which also round
    the crop down. Rounded to whole pixel values before scaling to [-1, 1], as all of them do. Raises InputError for a
    shape of which next to nothing would be left.
    """
    source_h, source_w = frames.shape[1:3]
    scale = max(width / source_w, height / source_h)
    size = (height, width) if stretch else (math.ceil(scale * source_h), math.ceil(scale * source_w))
    if size[0] * size[1] > MAX_CROP * width * height:
        raise InputError(
            f"an input of {source_w}x{source_h} pixels for {width}x{height}",
            f"scaled to cover that, less than 1/{MAX_CROP} of it would be seen",
            "Crop it to the part to start from",
        )
    pixels = _resize(frames, size, image_filter)
    cut = math.floor if image_filter == "lanczos" else round
    top, left = cut((size[0] - height) / 2), cut((size[1] - width) / 2)
    pixels = pixels[:, :, top : top + height, left : left + width].round().clamp(0, 255)
    return (pixels / 127.5 - 1.0).transpose(0, 1)


def kept(source: tuple[int, int], size: tuple[int, int]) -> float:
    """The share of an input's pixels that a crop to `size` keeps; both are (width, height)."""
    wider = source[0] * size[1] / (source[1] * size[0])
    return min(wider, 1 / wider)


def _resize(frames: Tensor, size: tuple[int, int], image_filter: str) -> Tensor:
    """uint8 [F, H, W, 3] to fp32 [F, 3, *size] in 0 to 255."""
    if image_filter == "lanczos":
        from PIL import Image

        resized = [Image.fromarray(f.numpy()).resize(size[::-1], Image.Resampling.LANCZOS) for f in frames]
        frames = torch.stack([torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8) for f in resized])
        return frames.view(-1, *size, 3).permute(0, 3, 1, 2).float()
    pixels = frames.permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
