"""A policy in a closed loop: a picture of the world goes in, its actions move the world, and so on.

python examples/closed_loop.py

The world is a table from above: a hand pushes a block towards a target, in two dimensions, as in PushT. The
embedded model has never seen this table, and the hand wanders. A simulator of gymnasium takes the place of `Table` by
its `render` and `step`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import cosmos3

SIDE, REACH = 96, 0.06
"""Pixels of the picture, and how near the hand is when it touches the block."""
CHUNKS, CHUNK = 3, 4


class Table:
    """Positions in [0, 1]: the hand's, the block's and the target's."""

    def __init__(self) -> None:
        self.hand, self.block, self.target = np.array([0.2, 0.5]), np.array([0.4, 0.5]), np.array([0.8, 0.5])

    def step(self, goal: np.ndarray) -> float:
        """Move the hand some way to a goal, and the block before it; the block's distance to the target."""
        move = np.clip(goal - self.hand, -0.1, 0.1)
        self.hand = np.clip(self.hand + move, 0, 1)
        if np.linalg.norm(self.block - self.hand) < REACH:
            self.block = np.clip(self.block + move, 0, 1)
        return float(np.linalg.norm(self.block - self.target))

    def render(self) -> np.ndarray:
        """The table from above, uint8 [H, W, 3]."""
        y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
        picture = np.full((SIDE, SIDE, 3), 235, dtype=np.uint8)
        for (at_x, at_y), size, colour in (
            (self.target, 0.09, (120, 200, 120)),
            (self.block, 0.06, (90, 90, 90)),
            (self.hand, 0.03, (200, 60, 50)),
        ):
            picture[(x - at_x) ** 2 + (y - at_y) ** 2 < size**2] = colour
        return picture


def main() -> None:
    pipe = cosmos3.load("embedded", backend="reference")
    table = Table()
    asked: dict[str, Any] = {"task": "policy", "domain": "pusht", "chunk": CHUNK, "fps": 10, "steps": 2}
    asked["view"] = "top_down_2d_view"
    for chunk in range(CHUNKS):
        run = pipe.start("push the grey block onto the green target", image=table.render(), seed=chunk, **asked)
        for _ in run:
            pass
        for action in run.actions():  # normalised to [-1, 1] over the table, as no statistics are given
            left = table.step((action + 1) / 2)
        seconds = run.manifest["seconds"]
        print(f"chunk {chunk}: the block is {left:.2f} from the target; {seconds['steps']:.2f} s in steps")


if __name__ == "__main__":
    main()
