"""A generation a step at a time: between two steps a program may look at it, stop it, or step another one.

python examples/step_by_step.py OUTPUT.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.images import write_image
from cosmos3_core.settle import Wish, settle

CUP = {"task": "t2i", "prompt": "a cup", "size": "64x64", "steps": 4, "seed": 7}


def main(output: Path) -> None:
    settled = settle(Wish(model="tiny", backend="reference", given=CUP))
    engine = Engine(settled.model, settled.plan)
    state = engine.start(settled.request)
    while not state.done:
        (velocity,) = engine.predict([state])
        engine.advance(state, velocity)  # engine.step(state) does both
        print(f"step {state.index} of {state.steps}: the latents' spread is {state.x.std():.3f}")
    (frames,) = engine.finish(state)  # uint8 [1, H, W, 3]
    write_image(output, frames[0].numpy(), {"prompt": settled.request.prompt})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
