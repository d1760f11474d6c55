"""Scenes as pixels and as sound, on any torch device."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .world import COLOURS, EXTENT, SHAPES, SIZE, Scenes

PITCHES = {"circle": 880.0, "square": 440.0, "triangle": 587.33, "ring": 660.0}
"""Hertz of what a shape sounds like when it hits something."""
DECAY, ATTACK = 0.09, 0.004
"""Seconds in which a tone falls to 1 / e, and in which it begins."""
SOUND_RATE = 48000


def distances(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """How far inside a shape's outline a point is, in pixels; negative outside. All of one shape when broadcast."""
    circle = radius - torch.sqrt(dx**2 + dy**2)
    square = EXTENT[1] * radius - torch.maximum(dx.abs(), dy.abs())
    # Its centre is half way between the tip and the base, so that it reaches as far up as down.
    triangle = torch.minimum(0.9 * radius - dy, (0.9 * radius + dy) * 0.5 - dx.abs() * 0.9)
    ring = 2.5 - (radius - 2.5 - torch.sqrt(dx**2 + dy**2)).abs()
    out = torch.where(shape == SHAPES.index("square"), square, circle)
    out = torch.where(shape == SHAPES.index("triangle"), triangle, out)
    return torch.where(shape == SHAPES.index("ring"), ring, out)


def on(scenes: Scenes, device: torch.device | str) -> tuple[Tensor, ...]:
    """What `paint` takes of scenes, on a device: colour, shape, radius, path, background."""
    names = ("colour", "shape", "radius", "path", "background")
    return tuple(torch.as_tensor(getattr(scenes, n), dtype=torch.float32, device=device) for n in names)


def paint(colour: Tensor, shape: Tensor, radius: Tensor, path: Tensor, background: Tensor) -> Tensor:
    """Pixels fp32 [B, 3, F, SIZE, SIZE] in [-1, 1] of the arrays of `Scenes`."""
    device = path.device
    axis = torch.arange(SIZE, device=device) + 0.5
    y, x = axis.view(1, 1, -1, 1), axis.view(1, 1, 1, -1)
    ground = background.view(-1, 1, 1, 1) + 0.06 * (y - SIZE / 2) / SIZE
    picture = ground.unsqueeze(1).expand(-1, 3, path.shape[2], SIZE, SIZE)
    palette = _palette(device)
    for item in range(path.shape[1]):
        at = path[:, item, :, :, None, None]  # B F 2 1 1
        r, s, c = (values[:, item].view(-1, 1, 1, 1) for values in (radius, shape, colour))
        inside = distances(s, x - at[:, :, 0], y - at[:, :, 1], r)
        mask = (inside + 0.5).clamp(0, 1) * (c >= 0)
        paint = palette[c.flatten().long().clamp_min(0)]
        picture = torch.lerp(picture, paint.view(-1, 3, 1, 1, 1), mask.unsqueeze(1))
    return picture * 2 - 1


@cache
def _palette(device: torch.device) -> Tensor:
    return torch.tensor(list(COLOURS.values()), device=device)


def draw(scenes: Scenes, device: torch.device | str = "cpu") -> Tensor:
    """Pixels fp32 [B, 3, F, SIZE, SIZE] in [-1, 1]."""
    return paint(*on(scenes, device))


def samples_of(frames: int, fps: float) -> int:
    """Samples of a clip's sound, as the engine counts them (docs/model.md, section 4.4)."""
    return int(frames / fps * SOUND_RATE)


def play(scenes: Scenes, samples: int, device: torch.device | str = "cpu") -> Tensor:
    """The sound fp32 [B, 2, samples], stereo: a falling tone for each impact, whose pitch is the shape's and whose side
    is where it happens. The loudest sample of each is at 0.95; a scene without impacts is silent."""
    t = torch.arange(samples, device=device) / SOUND_RATE
    wave = torch.zeros(len(scenes), 2, samples, device=device)
    pitches = np.array([PITCHES[name] for name in SHAPES])
    for event in range(scenes.events.shape[1]):
        if np.isnan(scenes.events[:, event]).all():
            continue
        for item in range(2):
            sounds = ~np.isnan(scenes.events[:, event]) & (scenes.colour[:, item] >= 0)
            if not sounds.any():
                continue
            when = np.where(sounds, scenes.events[:, event], 1e3)
            frame = np.clip((np.nan_to_num(scenes.events[:, event]) * scenes.fps).round(), 0, scenes.frames - 1)
            side = scenes.path[np.arange(len(scenes)), item, frame.astype(int), 0] / SIZE
            since = t - torch.as_tensor(when, dtype=torch.float32, device=device)[:, None]
            pitch = torch.as_tensor(pitches[scenes.shape[:, item]], dtype=torch.float32, device=device)[:, None]
            tone = torch.exp(-since.clamp_min(0) / DECAY) * (since / ATTACK).clamp(0, 1)
            tone = tone * torch.sin(2 * math.pi * pitch * since)
            angle = torch.as_tensor(side, dtype=torch.float32, device=device) * (math.pi / 2)
            wave += torch.stack([angle.cos(), angle.sin()], dim=1)[..., None] * tone[:, None]
    peak = wave.abs().amax((1, 2), keepdim=True)
    return torch.where(peak > 0, 0.95 * wave / peak.clamp_min(1e-6), wave)
