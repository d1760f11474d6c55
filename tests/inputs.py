"""Pictures and clips for the tests to put in: made here, and like what a camera gives."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw


def photograph(width: int, height: int) -> Image.Image:
    """A desk scene: graded sky and table, a lamp's glow, a cup, sensor noise. Nothing in it is flat."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    glow = np.exp(-((x - 0.7) ** 2 + (y - 0.15) ** 2) / 0.05)
    base = np.stack([0.35 + 0.5 * y + 0.4 * glow, 0.4 + 0.2 * x + 0.3 * glow, 0.6 - 0.4 * y + 0.1 * glow], -1)
    base += np.random.default_rng(3).normal(0, 0.02, base.shape)
    picture = Image.fromarray((base.clip(0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    w, h = width, height
    draw.rounded_rectangle((0.3 * w, 0.45 * h, 0.5 * w, 0.85 * h), radius=0.03 * w, fill=(225, 222, 214))
    draw.ellipse((0.3 * w, 0.41 * h, 0.5 * w, 0.5 * h), fill=(70, 45, 30), outline=(240, 238, 230))
    draw.arc((0.46 * w, 0.52 * h, 0.58 * w, 0.74 * h), -90, 90, fill=(225, 222, 214), width=max(2, w // 60))
    return picture


def clip(path: Path, frames: int = 9, rate: int = 12) -> Path:
    """The photograph under a slow pan, as an H.264 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(frames):
            picture = photograph(200, 110).crop((2 * i, i, 160 + 2 * i, 96 + i))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path
