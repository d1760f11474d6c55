"""Train the embedded model from nothing, in one command on one GPU: all legs, one after the other, and the checkpoint.

    python -m tools.embedded.train legs

Leaves legs/embedded, a checkpoint that `cosmos3 evaluate --model legs/embedded` judges, and each leg's settings, losses
and measures as legs/NAME-N.json. The legs are those that the model in the package had.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .assemble import assemble

LEGS: tuple[tuple[str, dict[str, float]], ...] = (
    ("vae", {"seconds": 290}),
    ("sound", {"seconds": 45}),
    ("towers", {"seconds": 455, "seed": 10}),
    ("towers", {"seconds": 480, "seed": 40}),
    ("towers", {"seconds": 340, "seed": 50}),
)
"""(what is trained, the options of its program). A part that comes again goes on from where it was, on other scenes."""


def words(part: str, options: dict[str, float], folder: Path, begun: bool) -> list[str]:
    """The command line of a leg that finds what it needs in `folder` and leaves its own there."""
    said = [f"--{name}={value:g}" for name, value in options.items()]
    said += [f"--codecs={folder}"] if part == "towers" else []
    said += [f"--from={folder}"] if begun else []
    return [sys.executable, "-m", f"{__package__}.train_{part}", f"--out={folder}", *said]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of each leg's seconds")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and scenes, for a rehearsal")
    args = parser.parse_args(arguments)
    begun: list[str] = []
    for part, options in LEGS:
        # A process each: the towers' prompts are made by processes of its own, which there must be before the device.
        once = options | {"seconds": options["seconds"] * args.scale, "shrink": args.shrink}
        subprocess.run(words(part, once, args.folder, part in begun), check=True)
        begun.append(part)
        shutil.copy(args.folder / f"{part}.json", args.folder / f"{part}-{begun.count(part)}.json")
    assemble(args.folder, args.folder / "embedded")


if __name__ == "__main__":
    main()
