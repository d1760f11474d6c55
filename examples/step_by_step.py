"""A generation a step at a time: between two steps a program may look at it, stop it, or step another one.

python examples/step_by_step.py OUTPUT.png
"""

from __future__ import annotations

import sys

import cosmos3


def main(output: str) -> None:
    pipe = cosmos3.load("embedded", backend="reference")
    run = pipe.start("a cup", frames=1, size="64x64", steps=4, seed=7)
    for step in run:
        print(f"step {step} of {run.steps}: the latents' spread is {run.latents.std():.3f}")
    run.finish().save(output)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
