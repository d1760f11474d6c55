"""The world that the embedded model knows: coloured shapes that move, bounce, collide, pass each other and are pushed.

    scenes = make(seed=7, count=64, frames=17)

A scene is drawn from a seed alone: the same seed, count and frames give the same scenes on every machine. All of them
have one number of frames; the rest is theirs. Lengths are pixels of a picture of SIZE x SIZE, x to the right and y
down; times are seconds. `render` draws them, `captions` says what happens in them and `inverse` reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

SIZE = 128
OBJECTS = 3
"""The most that a scene holds."""
EVENTS = 6
"""The most impacts that a scene has."""
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.80, 0.20, 0.85),
    "cyan": (0.15, 0.85, 0.85),
    "white": (0.95, 0.95, 0.95),
}
PAINTS = 6
"""The colours of shapes; white is the agent's."""
SHAPES = ("circle", "square", "triangle", "ring")
SOLIDS = 3
"""The shapes that things have; a ring marks a place."""
EXTENT = (1.0, 0.88, 0.9, 1.0)
"""How far a shape of radius 1 reaches along an axis."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STEPS = np.array(list(DIRECTIONS.values()), dtype=np.float64)
RATES = {1: (24.0,), 17: (8.0, 10.0, 12.0), 33: (16.0, 20.0, 24.0)}
"""Frames a second for each length, so that every clip lasts 1.3 to 2.1 seconds and one speed suits all."""
ACTION_RATES = (8.0, 10.0, 12.0)
PASSIVE = ("still", "pair", "move", "group", "pass", "bounce", "dribble", "collide")
RESTING = ("still", "pair")
"""Scenes in which nothing moves: a picture shows them whole."""
HITTING = ("bounce", "collide")
"""Scenes with one impact, at which the path turns."""
QUIET = ("still", "pair", "move", "group", "pass")
"""Scenes without an impact."""
ACTIVE = ("reach", "push", "wander")
"""Scenes with an agent, which actions control."""
AGENT_RADIUS = 8.0
MARGIN = 2.0
"""Pixels that stay free at the edge."""


@dataclass(frozen=True)
class Scenes:
    """B scenes of F frames. Objects lie in the order in which they are drawn, the last on top; `subject` is the one
    that the caption is about. `colour` and `shape` are indices, -1 where there is no object."""

    kind: np.ndarray  # [B] str
    fps: np.ndarray  # [B]
    colour: np.ndarray  # [B, OBJECTS]
    shape: np.ndarray  # [B, OBJECTS]
    radius: np.ndarray  # [B, OBJECTS]
    path: np.ndarray  # [B, OBJECTS, F, 2], centres
    subject: np.ndarray  # [B]
    direction: np.ndarray  # [B], of the subject at first; -1 where it has none
    events: np.ndarray  # [B, EVENTS], when something hits something; NaN where there are fewer
    actions: np.ndarray  # [B, F - 1, 2], where the agent is sent, -1 to 1 over the picture; NaN without an agent
    background: np.ndarray  # [B], brightness

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def frames(self) -> int:
        return self.path.shape[2]

    def take(self, rows: np.ndarray | slice) -> Scenes:
        """Some of them."""
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def count_of(scenes: Scenes, row: int) -> int:
    """How many objects a scene holds."""
    return int((scenes.colour[row] >= 0).sum())


def make(seed: int, count: int, frames: int, kinds: Mapping[str, float] | None = None) -> Scenes:
    """`count` scenes of `frames` frames. `kinds` are the shares of what happens in them; all passive ones alike if not
    given. Raises ValueError for frames without rates, or a kind that is none."""
    if frames not in RATES:
        raise ValueError(f"scenes of {frames} frames: give one of {', '.join(map(str, RATES))}")
    shares = dict.fromkeys(PASSIVE, 1.0) if kinds is None else dict(kinds)
    if wrong := shares.keys() - _MAKERS.keys():
        raise ValueError(f"no kind of scene is called {', '.join(sorted(wrong))}")
    stream = np.random.default_rng([seed, frames])
    weights = np.array(list(shares.values()), dtype=np.float64)
    kind = stream.choice(np.array(list(shares)), size=count, p=weights / weights.sum())
    scenes = _empty(kind, frames, stream)
    for name in shares:
        rows = np.flatnonzero(kind == name)
        if len(rows):
            _fill(scenes, rows, _MAKERS[name](stream, scenes.fps[rows], frames))
    return scenes


def _empty(kind: np.ndarray, frames: int, stream: np.random.Generator) -> Scenes:
    count = len(kind)
    fps = stream.choice(np.array(RATES[frames]), size=count)
    fps[np.isin(kind, ACTIVE)] = stream.choice(np.array(ACTION_RATES), size=count)[np.isin(kind, ACTIVE)]
    return Scenes(
        kind=kind,
        fps=fps,
        colour=np.full((count, OBJECTS), -1),
        shape=np.full((count, OBJECTS), -1),
        radius=np.ones((count, OBJECTS)),
        path=np.zeros((count, OBJECTS, frames, 2)),
        subject=np.zeros(count, dtype=np.int64),
        direction=np.full(count, -1),
        events=np.full((count, EVENTS), np.nan),
        actions=np.full((count, max(frames - 1, 0), 2), np.nan),
        background=stream.uniform(0.12, 0.22, size=count),
    )


def _fill(scenes: Scenes, rows: np.ndarray, made: dict[str, np.ndarray]) -> None:
    for name, values in made.items():
        target = getattr(scenes, name)
        if values.ndim > 1 and values.shape[1] < target.shape[1]:  # fewer objects or events than there is room for
            target[rows, : values.shape[1]] = values
        else:
            target[rows] = values


def _times(fps: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(t [B, F], how long each clip takes from the first frame to the last [B])."""
    t = np.arange(frames) / fps[:, None]
    return t, np.maximum(t[:, -1], 1.0 / fps)


def _paints(stream: np.random.Generator, count: int, objects: int, *, alike: bool = False) -> np.ndarray:
    """Colours [B, objects], all different or all alike."""
    if alike:
        return np.repeat(stream.integers(PAINTS, size=(count, 1)), objects, axis=1)
    return stream.permuted(np.tile(np.arange(PAINTS), (count, 1)), axis=1)[:, :objects]


def _solids(stream: np.random.Generator, count: int, objects: int, *, alike: bool = False) -> np.ndarray:
    if alike:
        return np.repeat(stream.integers(SOLIDS, size=(count, 1)), objects, axis=1)
    return stream.integers(SOLIDS, size=(count, objects))


def _within(stream: np.random.Generator, radius: np.ndarray, travel: np.ndarray | float = 0.0) -> np.ndarray:
    """A coordinate from which a shape can go `travel` pixels, to either side by its sign, and stay in the picture."""
    low = radius + MARGIN - np.minimum(travel, 0)
    high = SIZE - radius - MARGIN - np.maximum(travel, 0)
    return low + (high - low) * stream.uniform(size=radius.shape)


def _straight(
    stream: np.random.Generator, radius: np.ndarray, direction: np.ndarray, t: np.ndarray, speed: np.ndarray
) -> np.ndarray:
    """Paths [B, F, 2] of a constant velocity that stay in the picture."""
    step = STEPS[direction]
    travel = step * (speed * t[:, -1])[:, None]
    start = np.stack([_within(stream, radius, travel[:, axis]) for axis in range(2)], axis=1)
    return start[:, None] + step[:, None] * (speed[:, None] * t)[..., None]


def _still(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """One to three equal shapes beside each other, at rest."""
    made = _row(stream, fps, frames, fewest=1)
    made["path"] = np.repeat(made["path"][:, :, :1], frames, axis=2)
    made["direction"] = np.full(len(fps), -1)
    return made


def _pair(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Two different shapes at rest, the subject left of the other."""
    count = len(fps)
    radius = stream.uniform(14, 19, size=(count, 2))
    x = np.stack([stream.uniform(24, 42, count), stream.uniform(86, 104, count)], axis=1)
    y = np.clip(stream.uniform(30, 98, (count, 1)) + stream.uniform(-12, 12, (count, 2)), 24, SIZE - 24)
    path = np.repeat(np.stack([x, y], axis=-1)[:, :, None], frames, axis=2)
    return dict(colour=_paints(stream, count, 2), shape=_solids(stream, count, 2), radius=radius, path=path)


def _move(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """One shape goes straight on."""
    count, (t, lasts) = len(fps), _times(fps, frames)
    radius, direction = stream.uniform(13, 20, size=(count, 1)), stream.integers(4, size=count)
    speed = np.minimum(stream.uniform(28, 44, count), (SIZE - 2 * MARGIN - 2 * radius[:, 0] - 2) / lasts)
    path = _straight(stream, radius[:, 0], direction, t, speed)[:, None]
    colour, shape = _paints(stream, count, 1), _solids(stream, count, 1)
    return dict(colour=colour, shape=shape, radius=radius, path=path, direction=direction)


def _group(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Two or three equal shapes side by side go the same way."""
    return _row(stream, fps, frames, fewest=2)


def _row(stream: np.random.Generator, fps: np.ndarray, frames: int, *, fewest: int) -> dict[str, np.ndarray]:
    count, (t, lasts) = len(fps), _times(fps, frames)
    many, direction = stream.integers(fewest, OBJECTS + 1, size=count), stream.integers(4, size=count)
    radius = stream.uniform(12, 15, size=count)
    speed = np.minimum(stream.uniform(28, 44, count), (SIZE - 2 * MARGIN - 2 * radius - 2) / lasts)
    gap = 2 * radius + stream.uniform(8, 12, count)
    # The middle of the row: its path has the row's whole width to stay clear of the edge.
    across = np.where(direction < 2, 1, 0)
    middle = _straight(stream, radius, direction, t, speed)
    half = radius + gap * (many - 1) / 2 + MARGIN
    place = half + (SIZE - 2 * half) * stream.uniform(size=count)
    middle[np.arange(count), :, across] = place[:, None]
    offsets = (np.arange(OBJECTS)[None] - (many[:, None] - 1) / 2) * gap[:, None]
    path = np.repeat(middle[:, None], OBJECTS, axis=1)
    for row in range(count):
        path[row, :, :, across[row]] += offsets[row][:, None]
    there = np.arange(OBJECTS)[None] < many[:, None]
    colour = np.where(there, _paints(stream, count, OBJECTS, alike=True), -1)
    shape = np.where(there, _solids(stream, count, OBJECTS, alike=True), -1)
    return dict(
        colour=colour, shape=shape, radius=np.repeat(radius[:, None], OBJECTS, 1), path=path, direction=direction
    )


def _pass(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """One shape goes by another, in front of it or behind it."""
    count, (t, lasts) = len(fps), _times(fps, frames)
    direction, front = stream.integers(4, size=count), stream.integers(2, size=count)
    mover, other = stream.uniform(14, 17, count), stream.uniform(19, 22, count)
    speed = np.minimum(stream.uniform(38, 50, count), (SIZE - 2 * MARGIN - 2 * mover - 2) / lasts)
    middle = np.stack([stream.uniform(56, 72, count), stream.uniform(56, 72, count)], axis=1)
    step = STEPS[direction]
    along = speed[:, None] * (t - t[:, -1:] / 2)
    path = middle[:, None] + step[:, None] * along[..., None]
    side = np.abs(step[:, ::-1]) * stream.uniform(-4, 4, (count, 1))
    path = np.clip(path + side[:, None], mover[:, None, None] + MARGIN, SIZE - mover[:, None, None] - MARGIN)
    rest = np.repeat(middle[:, None], t.shape[1], axis=1)
    swap, colour, shape = front[:, None].astype(bool), _paints(stream, count, 2), _solids(stream, count, 2)
    # As (subject, other); in front means that the subject is drawn last.
    return dict(
        colour=np.where(swap, colour[:, ::-1], colour),
        shape=np.where(swap, shape[:, ::-1], shape),
        radius=np.where(swap, np.stack([other, mover], 1), np.stack([mover, other], 1)),
        path=np.where(swap[..., None, None], np.stack([rest, path], 1), np.stack([path, rest], 1)),
        subject=front,
        direction=direction,
    )


def _bounce(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """One shape goes to an edge and comes back."""
    count, (t, lasts) = len(fps), _times(fps, frames)
    radius, direction = stream.uniform(13, 18, size=count), stream.integers(4, size=count)
    shape = _solids(stream, count, 1)
    hit = lasts * stream.uniform(0.38, 0.62, count)
    longest = np.maximum(hit, lasts - hit)
    speed = np.minimum(stream.uniform(48, 64, count), (SIZE - 2 * MARGIN - 2 * radius - 4) / longest)
    reach = radius * np.array(EXTENT)[shape[:, 0]]
    step = STEPS[direction]
    wall = np.where(step > 0, SIZE - reach[:, None], reach[:, None])
    place = _within(stream, radius)
    back = -np.abs(t - hit[:, None]) * speed[:, None]
    path = np.where(step[:, None] != 0, wall[:, None] + step[:, None] * back[..., None], place[:, None, None])
    return dict(
        colour=_paints(stream, count, 1),
        shape=shape,
        radius=radius[:, None],
        path=path[:, None],
        direction=direction,
        events=hit[:, None],
    )


def _dribble(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """One shape falls to the floor again and again."""
    count, (t, _) = len(fps), _times(fps, frames)
    radius, shape = stream.uniform(13, 17, size=count), _solids(stream, count, 1)
    period, height = stream.uniform(0.5, 0.75, count), stream.uniform(40, 66, count)
    first = period * stream.uniform(0.35, 0.65, count)
    floor = SIZE - radius * np.array(EXTENT)[shape[:, 0]]
    phase = ((t - first[:, None]) / period[:, None]) % 1.0
    y = floor[:, None] - height[:, None] * 4 * phase * (1 - phase)
    path = np.stack([np.broadcast_to(_within(stream, radius)[:, None], y.shape), y], axis=-1)
    hits = first[:, None] + period[:, None] * np.arange(EVENTS)[None]
    hits = np.where(hits <= t[:, -1:], hits, np.nan)
    return dict(colour=_paints(stream, count, 1), shape=shape, radius=radius[:, None], path=path[:, None], events=hits)


def _collide(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Two shapes come towards each other, along a row or a column, and go back where they meet."""
    count, (t, lasts) = len(fps), _times(fps, frames)
    radius, shape = stream.uniform(12, 15, size=(count, 2)), _solids(stream, count, 2)
    reach = radius * np.array(EXTENT)[shape]
    across = stream.integers(2, size=count)  # 0: along x
    hit = lasts * stream.uniform(0.42, 0.58, count)
    longest = np.maximum(hit, lasts - hit)
    meeting, place = stream.uniform(58, 70, count), stream.uniform(20, SIZE - 20, count)
    room = np.minimum(meeting - 2 * radius[:, 0], SIZE - meeting - 2 * radius[:, 1]) - MARGIN
    speed = np.minimum(stream.uniform(26, 40, count), room / longest)
    apart = np.abs(t - hit[:, None]) * speed[:, None]
    along = np.stack([(meeting - reach[:, 0])[:, None] - apart, (meeting + reach[:, 1])[:, None] + apart], axis=1)
    side = np.broadcast_to(place[:, None, None], along.shape)
    upright = across[:, None, None].astype(bool)
    path = np.stack([np.where(upright, side, along), np.where(upright, along, side)], axis=-1)
    # No caption says which way they go, so they have no direction.
    return dict(colour=_paints(stream, count, 2), shape=shape, radius=radius, path=path, events=hit[:, None])


def _smooth(stream: np.random.Generator, count: int, frames: int, low: float, high: float) -> np.ndarray:
    """Paths [B, F, 2] that wind through four random places."""
    places = stream.uniform(low, high, size=(count, 4, 2))
    s = np.linspace(0, 3, frames)
    i = np.minimum(s.astype(np.int64), 2)
    u = (s - i)[None, :, None]
    share = u * u * (3 - 2 * u)
    return places[:, i] * (1 - share) + places[:, i + 1] * share


def _eased(start: np.ndarray, goal: np.ndarray, bend: np.ndarray, frames: int) -> np.ndarray:
    """Paths [B, F, 2] from start to goal, which they reach a little before the end, bent to one side."""
    s = np.clip(np.arange(frames) / max(frames - 3, 1), 0, 1)[None, :, None]
    share, way = s * s * (3 - 2 * s), goal - start
    side = np.stack([-way[:, 1], way[:, 0]], axis=1)[:, None] * bend[:, None, None]
    return start[:, None] + way[:, None] * share + side * (share * (1 - share))


def _commands(path: np.ndarray) -> np.ndarray:
    """The actions that lead along a path: action k is where the agent is at frame k + 1."""
    return path[:, 1:] / (SIZE / 2) - 1


def _agent(colour: np.ndarray, shape: np.ndarray, radius: np.ndarray) -> dict[str, np.ndarray]:
    """With the agent drawn last, on top: white and round."""
    count = len(colour)
    return dict(
        colour=np.concatenate([colour, np.full((count, 1), PAINTS)], axis=1),
        shape=np.concatenate([shape, np.zeros((count, 1), dtype=np.int64)], axis=1),
        radius=np.concatenate([radius, np.full((count, 1), AGENT_RADIUS)], axis=1),
    )


def _reach(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """The agent goes to one of two rings, the subject."""
    count = len(fps)
    corners = np.array([(32, 32), (96, 32), (32, 96), (96, 96)], dtype=np.float64)
    place = stream.permuted(np.tile(np.arange(4), (count, 1)), axis=1)[:, :3]
    spots = corners[place] + stream.uniform(-10, 10, size=(count, 3, 2))
    subject = stream.integers(2, size=count)
    goal = spots[np.arange(count), subject]
    agent = _eased(spots[:, 2], goal, stream.uniform(-0.8, 0.8, count), frames)
    rings = np.repeat(spots[:, :2, None], frames, axis=2)
    shape = np.full((count, 2), SHAPES.index("ring"))
    made = _agent(_paints(stream, count, 2), shape, np.full((count, 2), 14.0))
    return made | dict(path=np.concatenate([rings, agent[:, None]], axis=1), subject=subject, actions=_commands(agent))


def _push(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """The agent pushes a shape, the subject, one way."""
    count, direction = len(fps), stream.integers(4, size=len(fps))
    radius, shape = stream.uniform(12, 15, size=(count, 1)), _solids(stream, count, 1)
    step = STEPS[direction]
    block = np.stack([stream.uniform(46, 82, count), stream.uniform(46, 82, count)], axis=1) - step * 14
    touch = AGENT_RADIUS + radius[:, 0] * np.array(EXTENT)[shape[:, 0]]
    start = block - step * (touch + stream.uniform(4, 12, count))[:, None]
    goal = block - step * touch[:, None] + step * stream.uniform(26, 38, count)[:, None]
    agent = _eased(np.clip(start, 10, SIZE - 10), goal, np.zeros(count), frames)
    ahead = ((agent - block[:, None]) * step[:, None]).sum(-1) + touch[:, None]
    path = block[:, None] + step[:, None] * np.maximum(ahead, 0)[..., None]
    made = _agent(_paints(stream, count, 1), shape, radius)
    return made | dict(path=np.stack([path, agent], axis=1), direction=direction, actions=_commands(agent))


def _wander(stream: np.random.Generator, fps: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """The agent goes anywhere; a ring, which means nothing, lies about."""
    count = len(fps)
    agent = _smooth(stream, count, frames, 14, SIZE - 14)
    ring = np.repeat(stream.uniform(24, SIZE - 24, size=(count, 1, 1, 2)), frames, axis=2)
    made = _agent(_paints(stream, count, 1), np.full((count, 1), SHAPES.index("ring")), np.full((count, 1), 14.0))
    return made | dict(path=np.concatenate([ring, agent[:, None]], axis=1), actions=_commands(agent))


_MAKERS: dict[str, Callable[[np.random.Generator, np.ndarray, int], dict[str, np.ndarray]]] = {
    "still": _still,
    "pair": _pair,
    "move": _move,
    "group": _group,
    "pass": _pass,
    "bounce": _bounce,
    "dribble": _dribble,
    "collide": _collide,
    "reach": _reach,
    "push": _push,
    "wander": _wander,
}
