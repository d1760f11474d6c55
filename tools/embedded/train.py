"""Train the embedded model from nothing, in one command on one GPU: all legs, one after the other, and the checkpoint.

    python -m tools.embedded.train legs

Leaves legs/embedded, a checkpoint that `cosmos3 evaluate --model legs/embedded` judges, and each leg's settings, losses
and measures as legs/NAME-N.json. The legs are those that the model in the package had. A leg whose legs/NAME-N.json is
there is not run again, so that the command goes on where it was stopped, on another machine too.
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


UNDER_WAY = "leg"
LEFT = ("safetensors", "json")
"""What a leg leaves, by how the names end."""


def words(part: str, options: dict[str, float], folder: Path, begun: bool) -> list[str]:
    """The command line of a leg that finds what it needs in `folder` and leaves its own in a folder there."""
    said = [f"--{name}={value:g}" for name, value in options.items()]
    said += [f"--codecs={folder}"] if part == "towers" else []
    said += [f"--from={folder}"] if begun else []
    return [sys.executable, "-m", f"{__package__}.train_{part}", f"--out={folder / UNDER_WAY}", *said]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of each leg's seconds")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and scenes, for a rehearsal")
    parser.add_argument("--most", type=int, default=len(LEGS), help="stop after so many legs")
    args = parser.parse_args(arguments)
    begun: list[str] = []
    for part, options in LEGS:
        record = args.folder / f"{part}-{begun.count(part) + 1}.json"
        if record.exists():
            begun.append(part)
            continue
        if not args.most:
            return
        # A process each: the towers' prompts are made by processes of its own, which there must be before the device.
        once = options | {"seconds": options["seconds"] * args.scale, "shrink": args.shrink}
        subprocess.run(words(part, once, args.folder, part in begun), check=True)
        # Only a whole leg's weights take the place of those of the leg before.
        for ending in LEFT:
            (args.folder / UNDER_WAY / f"{part}.{ending}").replace(args.folder / f"{part}.{ending}")
        shutil.copy(args.folder / f"{part}.json", record)
        begun.append(part)
        args.most -= 1
    assemble(args.folder, args.folder / "embedded")


if __name__ == "__main__":
    main()
