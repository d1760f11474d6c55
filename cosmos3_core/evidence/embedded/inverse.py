"""The generator's inverse: what a clip shows, measured from its pixels and samples, by no network.

A pixel belongs to a colour when at least half of what it differs from the background by is that colour. The shapes of
one colour are its connected parts; which shape a part is follows from how much of its bounding box it fills, and a ring
is empty in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .render import SOUND_RATE
from .world import COLOURS, HITTING, PAINTS, RESTING, SHAPES, STEPS, Scenes

SMALLEST = 60
"""Pixels of a part that counts as a shape."""
SQUARE_FILL, CIRCLE_FILL = 0.84, 0.66
"""The least share of its bounding box that each fills: a square 1, a circle 0.79, a triangle 0.5. The codec rounds
corners: after it squares fill 0.85 and more, circles 0.75 to 0.82, triangles 0.51 to 0.57."""

STILL = 6.0
"""Pixels that a thing at rest may seem to move."""
HOP = 20.0
"""Pixels that something which bounces on the floor rises at least: half the lowest hop that is drawn."""


@dataclass(frozen=True)
class Part:
    """One shape in one frame; `fill` is the share of its bounding box that it fills, `area` is in pixels. The box is
    (left, right, top, bottom), ends included."""

    colour: int
    shape: int
    fill: float
    area: int
    box: tuple[int, int, int, int]

    @property
    def x(self) -> float:
        return (self.box[0] + self.box[1] + 1) / 2

    @property
    def y(self) -> float:
        return (self.box[2] + self.box[3] + 1) / 2

    def shared(self, other: Part) -> int:
        """Pixels that the boxes of two parts have in common: so much of one the other may hide."""
        (left, right, top, bottom), (first, last, upper, lower) = self.box, other.box
        width, height = min(right, last) - max(left, first) + 1, min(bottom, lower) - max(top, upper) + 1
        return max(width, 0) * max(height, 0)


def masks(pixels: Tensor) -> Tensor:
    """bool [F, colours, H, W] of one clip [3, F, H, W] in [0, 1]."""
    ground = pixels.flatten(2).median(dim=2).values[:, :, None, None]
    palette = torch.tensor(list(COLOURS.values()), device=pixels.device)
    away = (pixels - ground).permute(1, 2, 3, 0)  # F H W 3
    towards = palette[None] - ground[:, :, 0, 0].T[:, None]  # F colours 3
    dot = torch.einsum("fhwc,fpc->fphw", away, towards)
    length = towards.square().sum(-1)[..., None, None]
    along = dot / length
    share = along.clamp(0, 1.2)
    # What is left of a pixel when the best share of each colour is taken away, but for what all colours have alike.
    best = (share * share * length - 2 * share * dot).argmin(dim=1, keepdim=True)
    return (along > 0.5) & (torch.arange(len(palette), device=pixels.device).view(1, -1, 1, 1) == best)


def _components(mask: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """(area, left, right, top, bottom) of each connected part of a mask [H, W], ends included, found from the runs of
    its rows: two of neighbouring rows belong together where they touch."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1] - 1
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    above: list[int] = []
    for row in np.unique(rows):
        here = np.flatnonzero(rows == row).tolist()
        for i in here:
            for j in above:
                if rows[j] == row - 1 and begins[j] <= ends[i] + 1 and ends[j] >= begins[i] - 1:
                    parent[root(i)] = root(j)
        above = here
    roots = np.array([root(i) for i in range(len(rows))], dtype=np.int64)
    out = []
    for one in np.unique(roots):
        of_it = roots == one
        area = int((ends[of_it] - begins[of_it] + 1).sum())
        left, right = int(begins[of_it].min()), int(ends[of_it].max())
        out.append((area, left, right, int(rows[of_it].min()), int(rows[of_it].max())))
    return out


def parts(pixels: Tensor) -> list[list[Part]]:
    """The shapes of every frame of one clip [3, F, H, W] in [0, 1], the agent among them."""
    found = masks(pixels.float()).cpu().numpy()
    out: list[list[Part]] = [[] for _ in found]
    for frame, colour in zip(*np.nonzero(found.sum((2, 3)) >= SMALLEST), strict=True):
        for area, left, right, top, bottom in _components(found[frame, colour]):
            if area < SMALLEST:
                continue
            x, y = (left + right + 1) // 2, (top + bottom + 1) // 2
            hollow = not found[frame, colour, y - 1 : y + 2, x - 1 : x + 2].any()
            fill = area / ((right - left + 1) * (bottom - top + 1))
            shape = SHAPES.index("ring") if hollow else shape_of(fill)
            out[frame].append(Part(int(colour), shape, fill, area, (left, right, top, bottom)))
    return out


def shape_of(fill: float) -> int:
    """The solid shape that fills this share of its bounding box."""
    return SHAPES.index("square" if fill > SQUARE_FILL else "circle" if fill > CIRCLE_FILL else "triangle")


@dataclass(frozen=True)
class Seen:
    """What a clip shows. `count` and `shape` by colour: the number of its shapes in most frames, and what they are in
    most; `path` by colour: [F, 2], the middle of its shapes, NaN where there is none."""

    count: dict[int, int]
    shape: dict[int, int]
    path: dict[int, np.ndarray]


def see(pixels: Tensor) -> Seen:
    """Measure one clip [3, F, H, W] in [0, 1]."""
    frames = parts(pixels)
    count, shape, path = {}, {}, {}
    for colour in range(len(COLOURS)):
        of_it = [[part for part in frame if part.colour == colour] for frame in frames]
        if (many := _most([len(found) for found in of_it])) == 0 and sum(map(len, of_it)) < len(frames) / 2:
            continue
        count[colour] = max(many, 1)
        seen = [(_hidden(part, frame), -part.area, part) for frame in frames for part in frame if part.colour == colour]
        # In the other half, things that pass hide some of each other, and the codec mixes their colours.
        clearest = sorted(seen, key=lambda one: one[:2])[: max(len(seen) // 2, 1)]
        shape[colour] = _shape_in([part for *_, part in clearest])
        path[colour] = np.array([_middle(found) for found in of_it])
    return Seen(count, shape, path)


def _hidden(part: Part, frame: list[Part]) -> float:
    """The most of a part that parts of other colours may hide, as a share of its area."""
    return max((part.shared(other) / part.area for other in frame if other.colour != part.colour), default=0.0)


def _shape_in(seen: list[Part]) -> int:
    """What one thing is that was seen so often: a ring if it is one in most; else by the median of what it fills, which
    a frame that is off does not move."""
    ring = SHAPES.index("ring")
    most = _most([part.shape for part in seen])
    return ring if most == ring else shape_of(float(np.median([part.fill for part in seen])))


def _most(values: list[int]) -> int:
    return int(np.bincount(values).argmax())


def _middle(found: list[Part]) -> tuple[float, float]:
    if not found:
        return (np.nan, np.nan)
    return float(np.mean([part.x for part in found])), float(np.mean([part.y for part in found]))


def moved(path: np.ndarray) -> tuple[int, float]:
    """(the direction in which a path [F, 2] leads first, -1 for none; pixels to its farthest point)."""
    known = path[~np.isnan(path[:, 0])]
    if len(known) < 2:
        return -1, 0.0
    away = known - known[0]
    far = int(np.abs(away).max(axis=1).argmax())
    length = float(np.abs(away[far]).max())
    return (int((away[far] @ STEPS.T).argmax()) if length > STILL else -1), length


def turn(path: np.ndarray) -> float | None:
    """The frame at which a path [F, 2] that goes somewhere and comes back turns, between frames where it does; None if
    it goes straight on or stands still."""
    known = ~np.isnan(path[:, 0])
    if known.sum() < 5 or moved(path)[1] <= STILL:
        return None
    t, axis = np.flatnonzero(known), int(np.nanmax(np.abs(path - path[known][0]), axis=0).argmax())
    p = path[known, axis]
    best, at = np.inf, None
    for turning in np.arange(t[1] + 1, t[-1] - 1, 0.25):
        design = np.stack([np.ones_like(p), np.abs(t - turning)], axis=1)
        solution, *_ = np.linalg.lstsq(design, p, rcond=None)
        error = float(np.square(design @ solution - p).sum())
        if error < best:
            best, at = error, float(turning)
    straight = np.polyfit(t, p, 1)
    return at if best < 0.5 * float(np.square(np.polyval(straight, t) - p).sum()) else None


def onsets(wave: np.ndarray, share: float = 0.3) -> list[float]:
    """Seconds at which sounds begin in a waveform [2, N]: its level rises above `share` of its highest."""
    step = SOUND_RATE // 200
    level = np.abs(wave[:, : wave.shape[1] // step * step]).reshape(2, -1, step).max(axis=(0, 2))
    if level.max() < 0.02:
        return []
    loud = level > share * level.max()
    recent = np.array([level[max(0, i - 12) : i].min(initial=level[i]) for i in range(len(level))])
    out: list[float] = []
    for i in np.flatnonzero(loud):
        rising = recent[i] < 0.6 * level[i]
        if rising and (not out or i * step / SOUND_RATE - out[-1] > 0.15):
            out.append(i * step / SOUND_RATE)
    return out


def pitch(wave: np.ndarray, begins: float) -> float:
    """Hertz of the loudest tone in the 120 ms after `begins` seconds of a waveform [2, N]."""
    first = int(begins * SOUND_RATE)
    tone = wave[:, first : first + int(0.12 * SOUND_RATE)]
    power = np.square(np.abs(np.fft.rfft(tone * np.hanning(tone.shape[1])))).sum(axis=0)
    return float(power.argmax()) * SOUND_RATE / tone.shape[1]


@dataclass(frozen=True)
class Verdict:
    """Whether a clip shows what was asked. `direction` is None where none was asked for; `motion` says whether what
    rests stays, what bounces or collides turns and what bounces on the floor goes up and down, and is None of all else
    and of pictures."""

    colour: bool
    shape: bool
    count: bool
    direction: bool | None
    motion: bool | None


def judge(seen: Seen, scenes: Scenes, row: int) -> Verdict:
    """Compare what a clip shows with the scene that its prompt was made of."""
    there = scenes.colour[row] >= 0
    wanted = {int(c): int((scenes.colour[row] == c).sum()) for c in scenes.colour[row][there]}
    shapes = {int(c): int(s) for c, s in zip(scenes.colour[row][there], scenes.shape[row][there], strict=True)}
    main, asked = int(scenes.colour[row, scenes.subject[row]]), int(scenes.direction[row])
    direction = None
    if asked >= 0:
        direction = main in seen.path and moved(seen.path[main])[0] == asked
    return Verdict(
        colour=wanted.keys() == seen.count.keys(),
        shape=all(seen.shape.get(c) == s for c, s in shapes.items()),
        count=all(seen.count.get(c) == n for c, n in wanted.items())
        and sum(seen.count.values()) == sum(wanted.values()),
        direction=direction,
        motion=_moves(str(scenes.kind[row]), [seen.path.get(c) for c in shapes]) if scenes.frames > 1 else None,
    )


def _moves(kind: str, paths: list[np.ndarray | None]) -> bool | None:
    """Whether things of these paths [F, 2] (None: not seen) move as such a scene says; None where `direction` does."""
    if kind in RESTING:
        return all(path is not None and moved(path)[0] == -1 for path in paths)
    if kind in HITTING:
        return all(path is not None and turn(path) is not None for path in paths)
    if kind == "dribble":
        return all(path is not None and float(np.nanmax(path[:, 1]) - np.nanmin(path[:, 1])) > HOP for path in paths)
    return None


def agent_path(seen: Seen) -> np.ndarray | None:
    """The agent's [F, 2] in pixels; None if no agent is seen."""
    return seen.path.get(PAINTS)
