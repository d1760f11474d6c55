"""What a checkpoint of the embedded model shows of held-out prompts, through the engine that everybody runs.

    python -m tools.embedded.evaluate FOLDER --prompts 24 --steps 12 --guidance 2 --out FILE.json
    python -m tools.embedded.evaluate FOLDER --measure actions

Prompts are drawn from seeds that training never uses, and the generator's inverse reads what comes of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import cosmos3
from cosmos3_core.evidence.embedded.captions import sentence
from cosmos3_core.evidence.embedded.inverse import Verdict, agent_path, judge, onsets, see, turn
from cosmos3_core.evidence.embedded.render import draw
from cosmos3_core.evidence.embedded.world import PAINTS, PASSIVE, SIZE, Scenes, make

HELD_OUT, FRAMES = 90_004, 17
REACHED = 10.0
"""Pixels from its goal within which an agent has reached it: less than a ring's radius."""


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


def pixels_of(made: Any) -> torch.Tensor:
    """A run's clip or picture as [3, F, H, W] in [0, 1]."""
    frames = torch.from_numpy(np.ascontiguousarray(made.numpy)).reshape(-1, SIZE, SIZE, 3)
    return frames.permute(3, 0, 1, 2).float() / 255


def evaluate(model: str, count: int, frames: int = FRAMES, **fields: Any) -> dict[str, Any]:
    """Do clips, or pictures, show what is asked? Runs `count` prompts, number n with seed n; `fields` are the
    request's."""
    scenes, prompts = prompts_of(count, frames=frames)
    pipe, verdicts = cosmos3.load(model, backend="reference"), []
    for row, prompt in enumerate(prompts):
        fps = {"fps": float(scenes.fps[row])} if frames > 1 else {}
        made = pipe(prompt, size=f"{SIZE}x{SIZE}", frames=frames, seed=row, **fps, **fields)
        verdicts.append(judge(see(pixels_of(made)), scenes, row))
    return {"prompts": count, "frames": frames, "fields": fields} | summary(scenes, verdicts)


def evaluate_sound(model: str, count: int, **fields: Any) -> dict[str, Any]:
    """Does the first sound of an impact come within two frames of where the shape turns?"""
    scenes, stream = make(HELD_OUT + 1, count, FRAMES, {"bounce": 1.0, "collide": 1.0}), np.random.default_rng(HELD_OUT)
    pipe, near, heard = cosmos3.load(model, backend="reference"), [], []
    for row in range(count):
        fps = float(scenes.fps[row])
        made = pipe(
            sentence(scenes, row, stream), sound=True, size=f"{SIZE}x{SIZE}", frames=FRAMES, fps=fps, seed=row, **fields
        )
        path = see(pixels_of(made)).path.get(int(scenes.colour[row, scenes.subject[row]]))
        turned, begins = None if path is None else turn(path), onsets(np.asarray(made.sound))
        heard.append(bool(begins))
        near.append(bool(begins) and turned is not None and abs(begins[0] * fps - turned) <= 2)
    return {"prompts": count, "fields": fields, "heard": share(heard), "within_2_frames": share(near)}


def evaluate_actions(model: str, count: int, **fields: Any) -> dict[str, Any]:
    """Errors of inverse dynamics as shares of the action's range, of forward dynamics in pixels at the last frame, and
    whether a policy's agent ends within REACHED pixels of its goal."""
    from PIL import Image

    scenes, stream = make(HELD_OUT + 2, count, FRAMES, {"reach": 1.0, "push": 1.0}), np.random.default_rng(HELD_OUT)
    clips = ((draw(scenes) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    pipe, inverse, forward, reached = cosmos3.load(model, backend="reference"), [], [], []
    for row in range(count):
        frames, text = [Image.fromarray(frame) for frame in clips[row]], sentence(scenes, row, stream)
        how = dict(domain="pusht", fps=float(scenes.fps[row]), seed=row, **fields)
        end = scenes.path[row, agent_item(scenes, row), -1]
        acted = np.array(pipe(text, task="policy", image=frames[0], chunk=FRAMES - 1, **how).actions)
        reached.append(float(np.hypot(*((acted[-1] + 1) * SIZE / 2 - end))) <= REACHED)
        told = np.array(pipe(text, task="inverse-dynamics", video=frames, chunk=FRAMES - 1, **how).actions)
        inverse.append(float(np.abs(told - scenes.actions[row]).mean()) / 2)
        with TemporaryDirectory() as folder:
            np.save(file := Path(folder, "actions.npy"), scenes.actions[row])
            shown = pipe(text, task="forward-dynamics", image=frames[0], actions=file, **how)
        path = agent_path(see(pixels_of(shown)))
        gone = path is None or np.isnan(path[-1]).any()
        forward.append(float("inf") if gone else float(np.hypot(*(path[-1] - end))))
    return {
        "prompts": count,
        "fields": fields,
        "inverse_error": round(float(np.mean(inverse)), 4),
        "inverse_worst": round(max(inverse), 4),
        "forward_pixels": round(float(np.median(forward)), 2),
        "forward_within_5_percent": share([pixels <= 0.05 * SIZE for pixels in forward]),
        "policy_reached": share(reached),
    }


def agent_item(scenes: Scenes, row: int) -> int:
    """Which of a scene's objects is the agent: the white one."""
    return int(np.flatnonzero(scenes.colour[row] == PAINTS)[0])


MEASURES = {"clips": evaluate, "sound": evaluate_sound, "actions": evaluate_actions}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--measure", choices=("pictures", *MEASURES), default="clips")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    fields: dict[str, Any] = {"steps": args.steps, "shift": args.shift}
    fields |= {} if args.measure == "actions" else {"guidance": args.guidance}
    fields |= {"frames": 1} if args.measure == "pictures" else {}
    said = MEASURES.get(args.measure, evaluate)(str(args.model), args.prompts, **fields)
    print(json.dumps(said, indent=1))
    if args.out:
        args.out.write_text(json.dumps(said, indent=1) + "\n")
