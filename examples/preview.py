"""A preview after every step: the first frame of what the step foresees, decoded beside the run.

python examples/preview.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.images import write_image
from cosmos3_core.sampling.state import views
from cosmos3_core.settle import Wish, settle

CUP = {"task": "t2v", "prompt": "a cup", "size": "64x64", "frames": 9, "steps": 4, "seed": 7}


def main(folder: Path) -> None:
    settled = settle(Wish(model="tiny", backend="reference", given=CUP))
    weights = Weights(settled.model)
    engine = Engine(settled.model, settled.plan, weights=weights)
    decoder = weights.vae(engine.target, "decoder")
    state = engine.start(settled.request)
    while not state.done:
        (velocity,) = engine.predict([state])
        # A velocity is noise - x0: what the clip would be if the rest of the way were straight.
        foreseen = state.x - state.solver.sigmas[state.index] * velocity
        engine.advance(state, velocity)
        vision_CTHW = views(foreseen, state.items)[0]
        # The VAE is causal: the first frame needs no other.
        (frames,) = decoder.decode(vision_CTHW[:, :1], settled.execution.tiling)
        write_image(folder / f"preview-{state.index}.png", frames[0].numpy(), {})
        print(f"preview-{state.index}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
