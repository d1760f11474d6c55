"""A whole run at a published model's size: prompts, steps, decode and the file, on random weights.

    python -m benchmarks.e2e --backend cuda --work 1280x720x189 --steps 35 --format pack_linear=fp8,attention=fp8

The engine is the one that `cosmos3 run` uses. What is left out is reading weights from a disk: they are made on the
device, and the seconds of loading are told apart. Random weights paint noise, which takes a codec several times as long
as any film: for each frame that is decoded one of a smooth moving picture is written. Every run is preceded by a short
one of the same shapes, which loads and compiles; `cold` is what that took. Peaks are of one run: both towers in turn,
or with --resident all components.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.files.images import write_image
from cosmos3_core.files.video import write_video
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED
from cosmos3_core.runs.memory import peak_device_memory
from cosmos3_core.scenarios.request import Request
from cosmos3_core.settle import Settled, Wish, settle

from .common import report_all
from .step import pairs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--kernel", action="append", default=[], metavar="OP=NAME")
    parser.add_argument("--format", action="append", default=[], metavar="OP=FORMAT,...", help='"" is none; repeatable')
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--work", default="1280x720x189", metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument(
        "--cold-steps", type=int, default=3, help="of the run before; a small pass is captured at its 2nd"
    )
    parser.add_argument("--text", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def settled_of(args: argparse.Namespace, format: str) -> Settled:
    width, height, frames = args.work.split("x")
    given = {"prompt": "(random)", "size": f"{width}x{height}", "frames": int(frames), "steps": args.steps}
    kernels, formats = pairs(",".join(args.kernel)), pairs(format)
    place = {"model": args.model, "described": True, "backend": args.backend}
    return settle(Wish(**place, given=given, kernels=kernels, formats=formats))


def moving_picture(request: Request) -> list[np.ndarray]:
    """Frames of uint8 [H, W, 3]: a window that moves over soft colours, with a little grain."""
    height, width, frames = request.height, request.width, request.frames
    stream = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 40 + 2, (width + 2 * frames) // 40 + 2, generator=stream)
    wide = F.interpolate(coarse, size=(height, width + 2 * frames), mode="bicubic")[0].permute(1, 2, 0) * 255
    grain = 2 * torch.randn(height, width, 3, generator=stream)
    pictures = ((wide[:, 2 * i : 2 * i + width] + grain).clamp(0, 255).byte() for i in range(frames))
    return [picture.contiguous().numpy() for picture in pictures]


def run(engine: Engine, request: Request, text: int, folder: Path, seed: int) -> dict[str, Any]:
    """One run: seconds by stage and in all, peaks, and what was written. Another `seed` is another prompt, which an
    engine that keeps those it has read does not know."""
    pictures = iter(moving_picture(request))
    memory, device = engine.target.ops.memory, torch.device(engine.device)
    memory.synchronize(device)
    memory.empty(device)
    memory.peak(device, reset=True)
    before, begin = dict(engine.seconds), time.perf_counter()
    tokens = torch.randint(engine.model.config.vocab_size, (2, text), generator=torch.Generator().manual_seed(seed))
    state = engine.start(request, Inputs(tokens[0].tolist(), tokens[1, 3:].tolist()))
    while not state.done:
        engine.step(state)
    frames = (next(pictures) for group in engine.finish(state) for _ in group)
    if request.is_video:
        written = vars(write_video(folder / "out.mp4", frames, request.fps, {}))
    else:
        write_image(folder / "out.png", next(frames), {})
        written = {"frames": 1}
    total = time.perf_counter() - begin
    stages = {name: seconds - before.get(name, 0.0) for name, seconds in engine.seconds.items()}
    loading = sum(seconds for name, seconds in stages.items() if name.startswith("load "))
    return {
        "seconds": total - loading,
        "loading": loading,
        "stages": {name: round(seconds, 4) for name, seconds in stages.items()},
        **(peak_device_memory(memory, device) or {}),
        "written": written,
    }


def main() -> None:
    args = arguments()
    results = []
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as folder:
        for format in args.format or [""]:
            settled = settled_of(args, format)
            model, request, plan = settled.model, settled.request, settled.plan
            weights = RandomWeights(model, plan.backend.torch_device)
            engine = Engine(model, plan, placement=ALL_RESIDENT if args.resident else ALL_STAGED, weights=weights)
            cold = run(engine, replace(request, steps=args.cold_steps), args.text, Path(folder), 0)
            timed = run(engine, request, args.text, Path(folder), 1)
            results.append(
                {
                    "formats": plan.formats,
                    "kernels": plan.to_json(settled.execution.tokens)["kernels"],
                    "cold": cold,
                    "run": timed,
                }
            )
            print(format or plan.dtype, timed, flush=True)
            del engine
    report_all("e2e", args, results, plan.backend.torch_device, plan.device)


if __name__ == "__main__":
    main()
