"""How deep a run of the kit looks among the sizes that the models ask."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MOST_ROWS = 44_160
"""Media tokens of 189 frames of 1280 x 720: the largest call of the published models (docs/model.md, section 4)."""


class Draw:
    """Which inputs a run of the kit draws: those of another `number` are others throughout."""

    number = 0

    @classmethod
    def seed(cls, seed: int) -> int:
        """For the generator of one of the kit's inputs."""
        return seed + 1_000_003 * cls.number


@dataclass(frozen=True)
class Depth:
    """How far a run of the kit goes: calls that take up to `seconds`, as the calls before them let one expect, `draws`
    sizes by chance, and inputs and weights of up to so many `elements`, which the host draws."""

    name: str
    seconds: float
    draws: int
    elements: float
    rows: tuple[int, ...]


def _around(powers: Iterable[int]) -> tuple[int, ...]:
    return tuple(
        sorted({size + step for power in powers for size in (2**power,) for step in (-1, 0, 1) if size + step})
    )


QUICK = Depth("quick", 0.4, 3, 5e6, (1, 2, 3, *_around(range(4, 10, 2)), 77, 129, 513, 1025, 2049, 4097))
FULL = Depth("full", 2.0, 24, 2e8, (*_around(range(1, 15)), 77, 11_040, 16_560, 22_080, 33_120, MOST_ROWS))
DEPTHS = {depth.name: depth for depth in (QUICK, FULL)}


class Pace:
    """Which calls of one row are worth their time, from the smallest on: its device's speed is that of the last one."""

    def __init__(self, depth: Depth, host: bool):
        self.depth, self.rate = depth, 0.0
        # On the host a busy machine does not make a call look long.
        self.clock = time.process_time if host else time.perf_counter
        self.done: list[str] = []
        self.beyond: list[str] = []

    def worth(self, calls: Iterable[tuple[str, float, float, Any]]) -> Iterator[Any]:
        """The last part of each call (name, work, elements to draw, anything) whose work is expected to take no more
        than the depth's seconds, by work; who takes one has done it when the next one is asked for."""
        for name, work, elements, call in sorted(calls, key=lambda one: one[1]):
            if self.rate * work > self.depth.seconds or elements > self.depth.elements:
                self.beyond.append(name)
                continue
            started = self.clock()
            yield call
            self.rate = min(self.rate or 1e9, (self.clock() - started) / max(work, 1))
            self.done.append(name)

    def told(self) -> dict[str, Any]:
        """For the record."""
        return {"depth": self.depth.name, "sizes": len(self.done), "largest": self.done[-1:], "beyond": self.beyond}


def drawn(depth: Depth, seed: int, most: int) -> tuple[int, ...]:
    """Sizes by chance, the smaller ones more often."""
    stream = random.Random(Draw.seed(seed))
    return tuple(int(most ** stream.random()) for _ in range(depth.draws))
