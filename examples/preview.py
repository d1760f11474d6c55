"""A preview after every step: the first frame of what the step foresees, decoded beside the run.

python examples/preview.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cosmos3


def main(folder: Path) -> None:
    pipe = cosmos3.load("embedded", backend="reference")
    run = pipe.start("a cup", frames=9, size="64x64", steps=4, seed=7)
    for step in run:
        print(run.preview().save(folder / f"preview-{step}.png").name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
