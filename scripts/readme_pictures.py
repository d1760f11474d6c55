"""Make docs/images/from_input.png: a picture and a clip, and frames of the videos that the tiny model makes of them.

python scripts/readme_pictures.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import av
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE = (224, 128)
FRAMES = (0, 4, 8, 12)

sys.path.insert(0, str(ROOT / "tests"))
from inputs import clip, photograph  # noqa: E402


def frames(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def main() -> None:
    sheet = Image.new("RGB", ((SIZE[0] + 4) * (1 + len(FRAMES)) - 4, 2 * SIZE[1] + 4), "white")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photograph(640, 360).save(folder / "picture.png")
        clip(folder / "clip.mp4")
        for row, (option, source) in enumerate((("--image", "picture.png"), ("--video", "clip.mp4"))):
            arguments = ["--model", "tiny", "--size", "224x128", "--frames", "13", "--steps", "12", "--seed", "1"]
            command = [sys.executable, "-m", "cosmos3", "run", "the cup is lifted", option, source, *arguments]
            subprocess.run([*command, "-o", f"{row}.mp4"], cwd=folder, check=True)
            first = Image.open(folder / source) if row == 0 else frames(folder / source)[0]
            made = frames(folder / f"{row}.mp4")
            for column, picture in enumerate([first, *(made[i] for i in FRAMES)]):
                sheet.paste(picture.convert("RGB").resize(SIZE), (column * (SIZE[0] + 4), row * (SIZE[1] + 4)))
    target = ROOT / "docs" / "images" / "from_input.png"
    sheet.quantize(128).save(target, optimize=True)
    print(target.relative_to(ROOT), target.stat().st_size)


if __name__ == "__main__":
    main()
