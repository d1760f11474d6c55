"""A preview after every step: the first frame of what the step foresees, decoded beside the run.

python examples/preview.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.images import write_image
from cosmos3_core.settle import Wish, settle

CUP = {"task": "t2v", "prompt": "a cup", "size": "64x64", "frames": 9, "steps": 4, "seed": 7}


def main(folder: Path) -> None:
    settled = settle(Wish(model="tiny", backend="reference", given=CUP))
    engine = Engine(settled.model, settled.plan, resident=True)  # so that the decoder stays for the next preview
    state = engine.start(settled.request)
    while not state.done:
        engine.step(state)
        frames = engine.preview(state, latent_frames=1)  # the first frame needs no other
        write_image(folder / f"preview-{state.index}.png", frames[0].numpy(), {})
        print(f"preview-{state.index}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
