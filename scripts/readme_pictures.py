"""Make the pictures of the README and of docs/embedded.md with the model inside the package.

    python scripts/readme_pictures.py

docs/images/embedded.webp: clips from text. from_input.png: a picture and a clip, and frames of what goes on from them.
table.png: what a policy sees; reach.png: where its actions lead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import cosmos3
from cosmos3_core.evidence.embedded.cases import Case, cases_of, pictures
from cosmos3_core.evidence.embedded.world import SIZE

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PROMPTS = (
    "a red ball rolls to the left",
    "a blue ball bounces off the right edge",
    "three yellow triangles move up",
    "a green square and a purple ball collide",
    "a cyan box slides right behind a red circle",
    "a yellow ball bounces on the floor",
)
ACROSS, GAP, LINE, FPS = 3, 4, 14, 10
"""Of the grid: clips in a row, pixels between them and of a caption; and its rate."""
SHOWN = (0, 4, 8, 12, 16)


def grid(cells: list[Image.Image], captions: tuple[str, ...]) -> Image.Image:
    """Pictures in rows, with their captions below."""
    down = -(-len(cells) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * (SIZE + GAP) * 2 - GAP, down * (2 * SIZE + LINE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        x, y = number % ACROSS * (SIZE + GAP) * 2, number // ACROSS * (2 * SIZE + LINE + GAP)
        sheet.paste(cell.resize((2 * SIZE, 2 * SIZE), Image.Resampling.BICUBIC), (x, y))
        draw.text((x + 2, y + 2 * SIZE + 1), caption, fill="black")
    return sheet


def from_text(pipe: cosmos3.Pipeline) -> None:
    clips = [pipe(prompt, fps=FPS, seed=1).images for prompt in PROMPTS]
    sheets = [grid([clip[frame] for clip in clips], PROMPTS) for frame in range(len(clips[0]))]
    how: dict[str, Any] = {"duration": 1000 // FPS, "loop": 0, "quality": 70, "method": 6}
    sheets[0].save(IMAGES / "embedded.webp", save_all=True, append_images=sheets[1:], **how)


def from_input(pipe: cosmos3.Pipeline) -> None:
    """Rows of the input and what was made of it."""
    case = next(one for one in cases_of("i2v", 8) if one.kind == "bounce")
    seen = pictures(case.clip)
    made = (
        pipe(case.prompt, image=seen[0], fps=case.fps, seed=1).images,
        pipe(case.prompt, video=np.stack(seen[:5]), fps=case.fps, seed=1).images,
    )
    sheet = Image.new("RGB", ((SIZE + GAP) * (1 + len(SHOWN)) - GAP, 2 * SIZE + GAP), "white")
    for row, frames in enumerate(made):
        for column, picture in enumerate([Image.fromarray(seen[0]), *(frames[i] for i in SHOWN)]):
            sheet.paste(picture, (column * (SIZE + GAP), row * (SIZE + GAP)))
    sheet.quantize(128).save(IMAGES / "from_input.png", optimize=True)


def table() -> Case:
    """The scene that a policy is asked about in the Makefile's demo."""
    return next(one for one in cases_of("policy", 8) if one.kind == "reach")


def of_policy(pipe: cosmos3.Pipeline) -> None:
    """The agent's way by its actions, over the picture that they were made of."""
    case, scale = table(), 3
    picture = pictures(case.clip)[0]
    Image.fromarray(picture).save(IMAGES / "table.png", optimize=True)
    rows = pipe(case.prompt, task="policy", image=picture, domain="pusht", chunk=16, fps=case.fps, seed=1).actions
    sheet = Image.fromarray(picture).resize((scale * SIZE, scale * SIZE), Image.Resampling.BICUBIC)
    draw, way = ImageDraw.Draw(sheet), (rows + 1) * SIZE / 2 * scale
    draw.line([tuple(case.agent[0] * scale), *map(tuple, way)], fill="white", width=2)
    for x, y in way:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill="orange")
    draw.text((6, 6), f"{case.prompt}: {len(rows)} actions", fill="white")
    sheet.quantize(128).save(IMAGES / "reach.png", optimize=True)
    print(f"table.png asks: {case.prompt}")


def main() -> None:
    pipe = cosmos3.load("embedded")
    for make in (from_text, from_input, of_policy):
        make(pipe)
    for name in ("embedded.webp", "from_input.png", "table.png", "reach.png"):
        print(name, (IMAGES / name).stat().st_size)


if __name__ == "__main__":
    main()
