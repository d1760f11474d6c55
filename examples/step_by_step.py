"""A generation a step at a time: between two steps a program may look at it, stop it, or step another one.

python examples/step_by_step.py OUTPUT.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from wish import CUP, settle

from cosmos3_core.engine.engine import Engine
from cosmos3_core.files import media


def main(output: Path) -> None:
    model, plan, request = settle(CUP | {"task": "t2i", "frames": 1})
    engine = Engine(model, plan)
    state = engine.start(request)
    while not state.done:
        engine.step(state)
        print(f"step {state.index} of {state.steps}: the latents' spread is {state.x.std():.3f}")
    (frames,) = engine.finish(state)  # uint8 [1, H, W, 3]
    media.write_image(output, frames[0].numpy(), {"prompt": request.prompt})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
