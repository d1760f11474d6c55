"""A preview after every step: the first frame of the latents as they are, noise and all, decoded beside the run.

python examples/preview.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from wish import CUP, settle

from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files import media


def main(folder: Path) -> None:
    model, plan, request = settle(CUP)
    weights = Weights(model)
    decoder = weights.vae(plan.target(), "decoder")
    engine = Engine(model, plan, weights=weights)
    state = engine.start(request)
    while not state.done:
        engine.step(state)
        vision_CTHW = state.latents()[0]
        (frames,) = decoder.decode(vision_CTHW[:, :1])  # the VAE is causal: the first frame needs no other
        media.write_image(folder / f"preview-{state.index}.png", frames[0].numpy(), {})
        print(f"preview-{state.index}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
