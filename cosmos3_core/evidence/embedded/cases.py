"""Held-out cases of the world: scenes that training never sees, and what is asked for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .captions import sentence
from .render import draw
from .world import PAINTS, PASSIVE, RESTING, Scenes, make

HELD_OUT = 90_000
"""Seeds from here on are no training's."""
FRAMES = 17
MOVING = ("move", "group", "pass", "bounce", "collide")
"""Kinds of which the first frame does not say all, and which a clip goes on with."""
ACTING = ("reach", "push")
"""Kinds in which the agent has something to do."""
TASKS: dict[str, tuple[str, ...]] = {
    "t2v": PASSIVE,
    "t2vs": PASSIVE,
    "t2i": RESTING,
    "i2v": MOVING,
    "i2vs": MOVING,
    "v2v": MOVING,
    "policy": ACTING,
    "inverse-dynamics": ACTING,
    "forward-dynamics": ACTING,
    "velocity": PASSIVE,
    "codec": PASSIVE,
}
"""By what is judged the kinds of scene that it is judged on."""


@dataclass(frozen=True)
class Case:
    """One scene, the only one of `scenes`, what is asked for it, and the seed of the run."""

    scenes: Scenes
    prompt: str
    seed: int

    @property
    def kind(self) -> str:
        return str(self.scenes.kind[0])

    @property
    def fps(self) -> float:
        return float(self.scenes.fps[0])

    @property
    def subject(self) -> int:
        """Its colour."""
        return int(self.scenes.colour[0, self.scenes.subject[0]])

    @property
    def agent(self) -> np.ndarray:
        """The path of the agent, the white one, [F, 2] in pixels."""
        path: np.ndarray = self.scenes.path[0, int(np.flatnonzero(self.scenes.colour[0] == PAINTS)[0])]
        return path

    @property
    def clip(self) -> Tensor:
        """What is to be seen: fp32 [3, F, H, W] in [-1, 1]."""
        return draw(self.scenes)[0]


def cases_of(task: str, count: int) -> list[Case]:
    """The first `count` cases of a task, every kind as often as the others."""
    kinds, first = TASKS[task], HELD_OUT + 100 * list(TASKS).index(task)
    frames, each = 1 if task == "t2i" else FRAMES, -(-count // len(kinds))
    drawn = [make(first + number, each, frames, {kind: 1.0}) for number, kind in enumerate(kinds)]
    rows = [scenes.take(slice(row, row + 1)) for row in range(each) for scenes in drawn][:count]
    return [Case(one, _asked(one, first + number), number) for number, one in enumerate(rows)]


def _asked(scenes: Scenes, seed: int) -> str:
    return sentence(scenes, 0, np.random.default_rng(seed))


def pictures(clip: Tensor) -> Sequence[np.ndarray]:
    """A clip [3, F, H, W] in [-1, 1] as a program hands it over: uint8 [H, W, 3] each."""
    frames = ((clip + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    return list(frames)
