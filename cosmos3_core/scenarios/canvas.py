"""An input on an action's canvas: as large as it is or smaller, at the top left, the rest filled with its reflection.

docs/model.md, section 4.4; NVIDIA's framework (reflection_pad_to_target) and diffusers (_prepare_action_video_
conditioning). The whole canvas is encoded, and the model sees the latents that the input covers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.config import SPATIAL_COMPRESSION
from .action import content
from .action_kinds import DIFFUSERS


def placed(frames: Tensor, canvas: tuple[int, int], image_filter: str) -> Tensor:
    """uint8 [F, H, W, 3] to fp32 [3, F, height, width] in [-1, 1] on a canvas (width, height).

    Scaled down with an antialiased bicubic filter and rounded to whole pixel values, as in training. `DIFFUSERS` scales
    the sides down to multiples of 16 before, without regard to aspect, and rounds nothing, as diffusers does.
    """
    exact = image_filter == DIFFUSERS
    if exact:
        frames = _to_multiples(frames)
    source_h, source_w = frames.shape[1:3]
    width, height = content((source_w, source_h), canvas)
    pixels = frames.permute(0, 3, 1, 2).float()
    if exact:
        pixels = 2 * (pixels / 255) - 1
    if (height, width) != (source_h, source_w):
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        if not exact:
            pixels = pixels.round().clamp(0, 255)
    if not exact:
        pixels = pixels / 127.5 - 1
    return filled(pixels.transpose(0, 1), canvas)


def filled(pixels: Tensor, canvas: tuple[int, int]) -> Tensor:
    """[3, F, H, W] at the top left of a canvas (width, height) that is as large or larger: its own reflection fills the
    rest, or its edges where they are too far away."""
    height, width = pixels.shape[2:]
    right, bottom = canvas[0] - width, canvas[1] - height
    if not (right or bottom):
        return pixels
    mode = "reflect" if right < width and bottom < height else "replicate"
    return F.pad(pixels.transpose(0, 1), (0, right, 0, bottom), mode=mode).transpose(0, 1)


def _to_multiples(frames: Tensor) -> Tensor:
    """Sides that are multiples of 16, by Pillow's bilinear filter."""
    from PIL import Image

    height, width = (side - side % SPATIAL_COMPRESSION for side in frames.shape[1:3])
    if (height, width) == tuple(frames.shape[1:3]):
        return frames
    resized = [Image.fromarray(f.numpy()).resize((width, height), Image.Resampling.BILINEAR) for f in frames]
    return torch.stack([torch.frombuffer(bytearray(f.tobytes()), dtype=torch.uint8) for f in resized]).view(
        -1, height, width, 3
    )
