"""Is the evaluation a detector? The pipeline with one fault planted at a time, each evaluated.

    python -m tools.embedded.faults [--model FOLDER] [--only NAME ...] [--jobs N] [--out tools/embedded/faults.json]

A fault is found where a bound is not met that is met without it. The pipeline without a fault comes first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.checkpoint.repository import EMBEDDED
from cosmos3_core.engine import engine, inputs, passes, prompts
from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import depths
from cosmos3_core.files.audio import Sound
from cosmos3_core.model import packing
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.runs.generation import Generation
from cosmos3_core.sampling.state import State
from cosmos3_core.scenarios.branches import NEGATIVE, PROMPT
from cosmos3_core.settle import Wish

NONE = "no fault"
OUT = Path(__file__).with_name("faults.json")


def around(owner: Any, name: str, change: Callable[..., Any]) -> Any:
    """The function `name` of a module or class with a fault: `change` is called with the right one, then with what that
    is called with."""
    right = getattr(owner, name)
    return patch.object(owner, name, lambda *given, **more: change(right, *given, **more))


def _other_branches(right: Callable, velocities: dict[str, Tensor], *given: Any) -> Tensor:
    swapped = {NEGATIVE: velocities[PROMPT], PROMPT: velocities[NEGATIVE]} if NEGATIVE in velocities else {}
    return right(velocities | swapped, *given)


def _half_the_time(right: Callable, forward: Any, x: Tensor, timestep: Tensor) -> list[Tensor]:
    return right(forward, x, timestep / 2)


def _scaled(scale: float, right: Callable, *given: Any) -> list[Tensor]:
    return [scale * one for one in right(*given)]


def _late(right: Callable, made: Generation) -> Sound | None:
    """By three frames."""
    if (sound := right(made)) is None:
        return None
    late = round(3 / made.request.fps * sound.rate)
    moved = np.pad(sound.samples, ((0, 0), (late, 0)))[:, : sound.samples.shape[1]]
    return Sound(moved, sound.rate)


def _frozen(right: Callable, *given: Any, origin: float, **more: Any) -> Tensor:
    positions = right(*given, origin=origin, **more)
    return torch.cat([torch.full_like(positions[:1], origin), positions[1:]])


def _turned(right: Callable, *given: Any, **more: Any) -> Tensor:
    return right(*given, **more)[[0, 2, 1]]


def _late_actions(right: Callable, made: Generation) -> tuple[np.ndarray, dict[str, Any]]:
    rows, facts = right(made)
    return np.concatenate([rows[:1], rows[:1], rows[:1], rows[:-3]]), facts


def _drawn(right: Callable, weights: Weights, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Every matrix of the towers drawn anew, at its own scale."""
    stream = torch.Generator().manual_seed(0)
    for name, tensor in right(weights, names):
        noise = torch.randn(tensor.shape, generator=stream).to(tensor) * tensor.float().std().to(tensor)
        yield name, noise if tensor.ndim > 1 else tensor


class _Before:
    """The prompt of the request before in the place of each one's own."""

    def __init__(self) -> None:
        self.texts: Any = None

    def __call__(self, right: Callable, made: Any, asked: Any) -> Any:
        texts, self.texts = self.texts, right(made, asked)
        return texts if texts and len(texts) == len(self.texts) else self.texts


FAULTS: dict[str, Callable[[], Any]] = {
    "a model that has learned nothing": lambda: around(Weights, "_read", _drawn),
    "the prompt dropped": lambda: around(inputs, "positive_text", lambda right, request: ""),
    "the prompt of the request before": lambda: around(prompts.Prompts, "read", _Before()),
    "the guidance branches swapped": lambda: around(passes, "combined", _other_branches),
    "the timestep at half its scale": lambda: around(passes.Forward, "__call__", _half_the_time),
    "the initial noise at half its scale": lambda: around(engine, "initial_noise", partial(_scaled, 0.5)),
    "the initial noise at twice its scale": lambda: around(engine, "initial_noise", partial(_scaled, 2.0)),
    "all frames at one moment for the attention": lambda: around(packing, "grid_positions", _frozen),
    "rows and columns swapped for the attention": lambda: around(packing, "grid_positions", _turned),
    "the given frames not kept": lambda: patch.object(State, "pin", lambda state: None),
    "the latents scaled before the decode": lambda: around(
        VideoVAE, "decode", lambda right, vae, z, *given, **more: right(vae, z * 1.5, *given, **more)
    ),
    "red and blue swapped": lambda: around(
        Generation, "frames", lambda right, made: (frame[..., ::-1].copy() for frame in right(made))
    ),
    "the frames in reverse": lambda: around(Generation, "frames", lambda right, made: reversed(list(right(made)))),
    "the sound three frames late": lambda: around(Generation, "sound", _late),
    "the actions negated": lambda: around(Generation, "actions", lambda right, made: (-right(made)[0], right(made)[1])),
    "the actions three frames late": lambda: around(Generation, "actions", _late_actions),
}
GIVEN: dict[str, dict[str, Any]] = {"the shift a thirtieth": {"shift": 0.1}, "the shift ten times": {"shift": 30.0}}
"""Faults that are a wrong value of a request."""
HARMLESS = ("the initial noise at half its scale",)
"""What is made of it is as good as without the fault, so that a measure of quality has nothing to find."""


@contextmanager
def planted(name: str) -> Iterator[dict[str, Any]]:
    """The pipeline with a fault; yields the fields of every request that belong to it."""
    if name in FAULTS:
        with FAULTS[name]():
            yield {}
    else:
        yield GIVEN.get(name, {})


def missed(values: dict[str, float], depth: str) -> list[str]:
    """Of values by "TASK MEASURE" those that do not meet their bounds at a depth."""
    return [name for name, value in values.items() if not depths()[depth].judged(*name.split(" "), value, 0).met]


def evaluated(name: str, model: str, backend: str | None, depth: str) -> tuple[str | None, dict[str, float]]:
    """The identity of the weights, and what the evaluation finds of the pipeline with a fault, by "TASK MEASURE"."""
    with planted(name) as given:
        found = evaluate(Wish(model=model, backend=backend), depths()[depth], given=given)
    return found["weights"], {f"{one['task']} {one['measure']}": one["value"] for one in found["measures"]}


def main() -> None:
    every = [NONE, *FAULTS, *GIVEN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--backend")
    parser.add_argument("--depth", default="quick", choices=tuple(depths()))
    parser.add_argument("--only", nargs="+", default=every, choices=every, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="evaluations at once, each in a process of one thread")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = json.loads(args.out.read_text())["found"] if args.out.exists() else {}
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(evaluated, name, args.model, args.backend, args.depth): name for name in args.only}
        for future in as_completed(futures):
            weights, found[futures[future]] = future.result()
            told = {
                "weights": weights,
                "depth": args.depth,
                "found": {name: found[name] for name in every if name in found},
            }
            args.out.write_text(json.dumps(told, indent=1) + "\n")
            wrong = missed(found[futures[future]], args.depth)
            print(f"{futures[future]}: {', '.join(wrong) or 'every bound is met'}", flush=True)
    right, planned = missed(found.get(NONE, {}), args.depth), [name for name in args.only if name != NONE]
    unseen = [name for name in planned if not set(missed(found[name], args.depth)) - set(right)]
    print(f"{len(planned) - len(unseen)} of {len(planned)} faults found")
    if unseen:
        print(f"not found: {', '.join(unseen)}")
    raise SystemExit(1 if right or set(unseen) - set(HARMLESS) else 0)


if __name__ == "__main__":
    main()
