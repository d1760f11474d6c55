"""What a checkpoint of the embedded model shows of held-out prompts, through the engine that everybody runs.

    python -m tools.embedded.evaluate FOLDER --prompts 24 --steps 12 --guidance 2 --out FILE.json

Prompts are drawn from seeds that training never uses. Each becomes a clip of 17 frames, which the generator's inverse
reads: are its colours, shapes, number of things and direction those of the prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cosmos3

from .captions import sentence
from .inverse import Verdict, judge, see
from .world import PASSIVE, SIZE, Scenes, make

HELD_OUT, FRAMES = 90_004, 17


def prompts_of(count: int, seed: int = HELD_OUT, frames: int = FRAMES) -> tuple[Scenes, list[str]]:
    """Scenes and what is asked for each: moving ones, or pictures of things at rest."""
    kinds = PASSIVE if frames > 1 else ("still", "pair")
    scenes, stream = make(seed, count, frames, dict.fromkeys(kinds, 1.0)), np.random.default_rng(seed)
    return scenes, [sentence(scenes, row, stream) for row in range(count)]


def share(values: list[Any]) -> float | None:
    """Of those that are asked for."""
    known = [bool(value) for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def summary(scenes: Scenes, verdicts: list[Verdict]) -> dict[str, Any]:
    """Shares that are right: of each measure, and of all but the direction by what happens."""
    said: dict[str, Any] = {name: share([getattr(v, name) for v in verdicts]) for name in vars(verdicts[0])}
    whole = [v.colour and v.shape and v.count for v in verdicts]
    said["by_kind"] = {
        str(kind): share([right for right, k in zip(whole, scenes.kind, strict=True) if k == kind])
        for kind in np.unique(scenes.kind)
    }
    return said


def evaluate(model: str, count: int, frames: int = FRAMES, **fields: Any) -> dict[str, Any]:
    """Run `count` prompts, number n with seed n; `fields` are the request's."""
    scenes, prompts = prompts_of(count, frames=frames)
    pipe, verdicts = cosmos3.load(model, backend="reference"), []
    for row, prompt in enumerate(prompts):
        fps = {"fps": float(scenes.fps[row])} if frames > 1 else {}
        made = pipe(prompt, size=f"{SIZE}x{SIZE}", frames=frames, seed=row, **fps, **fields)
        pixels = torch.from_numpy(np.ascontiguousarray(made.numpy)).reshape(-1, SIZE, SIZE, 3)
        verdicts.append(judge(see(pixels.permute(3, 0, 1, 2).float() / 255), scenes, row))
        print(prompt, vars(verdicts[-1]), flush=True)
    return {"prompts": count, "frames": frames, "fields": fields} | summary(scenes, verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--frames", type=int, default=FRAMES, choices=(1, 17, 33))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    fields = {"steps": args.steps, "guidance": args.guidance, "shift": args.shift}
    said = evaluate(str(args.model), args.prompts, args.frames, **fields)
    print(json.dumps(said, indent=1))
    if args.out:
        args.out.write_text(json.dumps(said, indent=1) + "\n")
