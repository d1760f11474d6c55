"""What sound and actions cost at a published model's size, on random weights.

    python -m benchmarks.scenarios --backend cuda --format pack_linear=fp8,attention=fp8

`sound`: steps of a 720p clip of 189 frames without sound and with it, in turn, and the decode of the sound; `ratio` is
what a whole run of 35 steps costs with sound by these, times what it costs without. `policy`: from an observation to
its actions, by `cosmos3.Policy` on a resident model, with the droid preset at guidance 3 and 1 and a chunk of 16 at
256p; the share of each stage is in `stages`, and what lies outside them is "rest". The prompt is the same each time, as
in an episode: `first` are two calls that may read it and capture, `seconds` those after them. The tokenizer is the
embedded model's, which makes a token of a few bytes (in the results before 30 November 2026 of every byte): the prompt
is longer than a real one. `--only` takes one of the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos3 import Policy
from cosmos3.pipeline import Pipeline
from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.engine.engine import Engine
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.runs.processes import Processes
from cosmos3_core.sampling.state import State
from cosmos3_core.settle import Wish, settle
from cosmos3_core.settle.settle import ground_of

from .common import report_all
from .step import pairs

STEPS, RUN_STEPS = 3, 35
"""Steps of a run that is timed, the first of which is not, and of one whose cost is asked for."""
DROID, CHUNK = {"guidance 3": 3.0, "guidance 1": 1.0}, 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--format", default="pack_linear=fp8,attention=fp8", metavar="OP=FORMAT,...")
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--size", default="1280x720", help="of the clip with sound")
    parser.add_argument("--frames", type=int, default=189)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("policy", "sound"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def pipeline(args: argparse.Namespace) -> Pipeline:
    """As `cosmos3.load` makes one, with random weights."""
    wish = Wish(
        model=args.model, described=True, backend=args.backend, formats=pairs(args.format), given={}, resident=True
    )
    ground = ground_of(wish)
    weights = RandomWeights(ground.model, ground.plan.backend.torch_device)
    engine = Engine(ground.model, ground.plan, placement=ALL_RESIDENT, weights=weights)
    return Pipeline(wish, ground, engine, Processes())


def sound(pipe: Pipeline, args: argparse.Namespace) -> dict[str, Any]:
    engine = pipe._engine
    wish = pipe._wish
    states: dict[bool, State] = {}
    steps: dict[bool, list[float]] = {False: [], True: []}
    for with_sound in (False, True):
        given = {"prompt": "(random)", "task": "t2v", "size": args.size, "frames": args.frames, "steps": STEPS}
        settled = settle(
            Wish(
                model=args.model,
                described=True,
                backend=args.backend,
                formats=wish.formats,
                given=given | {"sound": with_sound, "seed": 0},
            )
        )
        states[with_sound] = engine.start(settled.request)
    memory, device = engine.target.ops.memory, torch.device(engine.device)
    for index in range(STEPS):
        for with_sound, state in states.items():
            memory.synchronize(device)
            begin = time.perf_counter()
            engine.step(state)
            memory.synchronize(device)
            if index:
                steps[with_sound].append(time.perf_counter() - begin)
    decodes = []
    for _ in range(3):
        begin = time.perf_counter()
        (waveform,) = engine.finish(states[True], "sound")
        decodes.append(time.perf_counter() - begin)
    plain, sounding = (statistics.median(steps[key]) for key in (False, True))
    decode = min(decodes)  # the first loads the codec
    return {
        "step": {"without": steps[False], "with": steps[True]},
        "decode_sound": decodes,
        "samples": waveform.shape[1],
        "ratio": (RUN_STEPS * sounding + decode) / (RUN_STEPS * plain),
    }


def observation(stream: np.random.Generator) -> dict[str, Any]:
    picture = stream.integers(0, 256, (540, 640, 3), dtype=np.uint8)
    joints, gripper = stream.uniform(-1, 1, 7), np.array([0.3])
    return {
        "prompt": "pick up the cup and put it on the plate",
        "observation/image": picture,
        "observation/joint_position": joints,
        "observation/gripper_position": gripper,
    }


def policies(pipe: Pipeline, repeats: int) -> dict[str, Any]:
    found = {}
    stream = np.random.default_rng(0)
    for name, guidance in DROID.items():
        policy = Policy(pipe, "droid", guidance=guidance)
        found[f"droid, {name}"] = _timed(lambda policy=policy: _acted(policy, stream), repeats)
    picture = stream.integers(0, 256, (256, 320, 3), dtype=np.uint8)

    def short() -> tuple[float, dict[str, float]]:
        begin = time.perf_counter()
        fields: dict[str, Any] = {
            "domain": "bridge_orig_lerobot",
            "chunk": CHUNK,
            "canvas": "256p",
            "steps": 30,
            "fps": 5.0,
        }
        run = pipe.start("pick up the cup", image=picture, guidance=1.0, seed=0, **fields)
        for _ in run:
            pass
        run.actions()
        return time.perf_counter() - begin, run._generation.lasted()

    found["17 frames at 256p, 30 steps"] = _timed(short, repeats)
    return found


def _acted(policy: Policy, stream: np.random.Generator) -> tuple[float, dict[str, float]]:
    policy.act(observation(stream))
    return policy.seconds["total"], policy.seconds


def _timed(act: Any, repeats: int) -> dict[str, Any]:
    first = [act()[0] for _ in range(2)]
    runs = [act() for _ in range(repeats)]
    total, stages = sorted(runs, key=lambda run: run[0])[repeats // 2]
    stages = {name: spent for name, spent in stages.items() if name != "total"}
    rest = round(total - sum(stages.values()), 4)
    seconds = [total for total, _ in runs]
    return {"first": first, "seconds": seconds, "median": total, "stages": stages | {"rest": rest}}


def main() -> None:
    args = arguments()
    pipe = pipeline(args)
    parts = {"policy": lambda: policies(pipe, args.repeats), "sound": lambda: sound(pipe, args)}
    found: dict[str, Any] = {}
    for name, measure in parts.items():
        if args.only in (None, name):
            found[name] = measure()
            print(found[name], flush=True)
    plan = pipe._ground.plan
    results = [found | {"formats": plan.formats, "kernels": plan.to_json(44160)["kernels"]}]
    report_all("scenarios", args, results, plan.backend.torch_device, plan.device)


if __name__ == "__main__":
    main()
