"""A policy in a closed loop: a picture of the world goes in, its first actions move the world, and so on.

python examples/closed_loop.py

The world is a table from above, as the embedded model was trained on: a white disc, the agent, and two rings. Here the
agent is slower than its actions ask, so that each chunk has to begin with what is seen now. A simulator of gymnasium
takes the place of `Table` by its `render` and `step`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import cosmos3

SIDE, SPEED = 128, 5.0
"""Pixels of the picture, and how many of them the agent moves at most in a step."""
CHUNKS, CHUNK, TAKEN = 5, 16, 8
"""A chunk has 16 actions; of these 8 are taken before the next picture."""


class Table:
    """Positions in pixels: the agent's, and those of the two rings."""

    def __init__(self) -> None:
        self.agent = np.array([36.0, 92.0])
        self.rings = {(0.15, 0.85, 0.85): np.array([92.0, 30.0]), (0.95, 0.85, 0.15): np.array([34.0, 34.0])}
        self.cyan = next(iter(self.rings.values()))

    def step(self, goal: np.ndarray) -> float:
        """Move the agent some way to a goal; its distance to the cyan ring, in pixels."""
        way = goal - self.agent
        self.agent = self.agent + way * min(1.0, SPEED / max(float(np.linalg.norm(way)), 1e-6))
        return float(np.linalg.norm(self.agent - self.cyan))

    def render(self) -> np.ndarray:
        """The table from above, uint8 [H, W, 3]."""
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        picture = np.full((SIDE, SIDE, 3), 0.15)
        for colour, at in self.rings.items():
            picture[np.abs(np.hypot(x - at[0], y - at[1]) - 11.5) < 2.5] = colour
        picture[np.hypot(x - self.agent[0], y - self.agent[1]) < 8] = 0.95
        return (picture * 255).round().astype(np.uint8)


def main() -> None:
    pipe = cosmos3.load("embedded", backend="reference")
    table = Table()
    asked: dict[str, Any] = {"task": "policy", "domain": "pusht", "chunk": CHUNK}
    for chunk in range(CHUNKS):
        run = pipe.start("move to the cyan ring", image=table.render(), seed=chunk, **asked)
        for _ in run:
            pass
        for action in run.actions()[:TAKEN]:  # from -1 to 1 over the picture, as no statistics are given
            left = table.step((action + 1) / 2 * SIDE)
        print(f"chunk {chunk}: the agent is {left:.1f} pixels from the cyan ring")


if __name__ == "__main__":
    main()
