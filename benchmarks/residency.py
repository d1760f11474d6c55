"""What it costs that weights lie on the host: passes of a streamed media tower beside those of a resident one, peaks
beside the plan's, and prompts that are read again.

    python -m benchmarks.residency --backend cuda --job nano-bf16 --out residency-nano-h200.json

`--list` names the jobs, each with the GPU's seconds that it takes on an H200. `--recipe NAME` is a job as well: a
recipe's work, placed as in its device's memory and limited to that. A job that FILE has already is not run
again. Everything of a job runs in one process on random weights. First the placement alone, under the job's memory
limit: the prompts, a step, and the decode, each with the peak that the allocator reserved and the plan's. Then, without
the limit, the resident tower beside it: both predict the same step in turn, and their velocities have to be equal. A
whole run is counted from a step and the decode.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.contract import Memory
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.engine.limits import limited
from cosmos3_core.evidence.recipe import Recipe
from cosmos3_core.evidence.recipe import load as load_recipe
from cosmos3_core.plan.cost.fit import Estimate
from cosmos3_core.plan.cost.units import GIB, ceiling_of
from cosmos3_core.plan.discovery import load
from cosmos3_core.plan.placement import DISK, RESIDENT, STAGED, STREAMED, Placement
from cosmos3_core.sampling.state import Context
from cosmos3_core.settle import Settled, Wish, settle

from .common import alternate, environment, report, seconds, waiting

TEXT = 512, 3500
"""Tokens of the prompt and of the negative one, as `cosmos3 plan` assumes them."""
STREAMING = Placement(DISK, STREAMED, STAGED)
FP8 = {"pack_linear": "fp8", "attention": "fp8"}


@dataclass(frozen=True)
class Job:
    """Of a `model` a picture or video, `work`, in these `formats`, with the decode in tiles of so many pixels (None:
    whole frames), under a `limit` in GiB. `costs` seconds on an H200. `beside` the resident tower, in so many rounds;
    0: the job is the resident tower's alone."""

    model: str
    work: str
    costs: int
    formats: dict[str, str] = field(default_factory=dict)
    placement: Placement = STREAMING
    tile: int | None = None
    limit: float | None = None
    rounds: int = 2
    steps: int = 35


JOBS = {
    "nano-bf16": Job("nano", "1280x720x189", 75),
    "nano-fp8": Job("nano", "1280x720x189", 60, FP8),
    "nano-fp8-8gib": Job("nano", "1280x720x189", 35, FP8, tile=256, limit=8, rounds=0),
    "super-fp8-24gib": Job("super", "1280x720x189", 170, FP8, limit=24),
    "super-t2i-fp8-80gib": Job(
        "super", "1024x1024x1", 45, FP8, Placement(DISK, STAGED, STAGED), limit=80, rounds=0, steps=50
    ),
    "embedded": Job("embedded", "64x64x5", 0),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--job", action="append", choices=JOBS, default=[], help="may be repeated")
    parser.add_argument("--recipe", action="append", default=[], help="of the backend's, in its device's memory")
    parser.add_argument("--list", action="store_true", help="name the jobs and what they cost")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def job_of(recipe: Recipe) -> Job:
    """A recipe's work on a device that is limited to the memory of the recipe's, as that is planned for so much."""
    run = recipe.run
    work, limit = f"{run['size']}x{run.get('frames', 1)}", recipe.device["memory_gib"]
    job = Job(run["model"], work, 0, recipe.formats, limit=limit, rounds=0, steps=run["steps"])
    settled = settled_of(job, run["backend"], memory_limit=int(limit * GIB), chooses=True)
    return replace(job, placement=settled.placement, tile=settled.request.tile)


def settled_of(job: Job, backend: str, **placed: Any) -> Settled:
    width, height, frames = job.work.split("x")
    given: dict[str, Any] = {"prompt": "(random)", "size": f"{width}x{height}", "frames": int(frames)}
    given |= {"steps": job.steps} | ({"tile": job.tile} if job.tile else {})
    wish = Wish(model=job.model, described=True, backend=backend, formats=job.formats, given=given, **placed)
    return settle(wish).with_texts(*TEXT)


def said(job: Job) -> dict[str, Any]:
    """What the result says of it."""
    return {
        "model": job.model.rpartition("Cosmos3-")[2].lower(),
        "work": job.work,
        "formats": job.formats,
        "generation": job.placement.generation,
        "tile": job.tile,
        "limit_gib": job.limit,
    }


class Peaks:
    """Seconds, and peaks beside the plan's, by stage."""

    def __init__(self, engine: Engine, estimate: Estimate):
        self.memory, self.device = engine.ops.memory, torch.device(engine.device)
        self.estimate, self.found = estimate, dict[str, dict[str, Any]]()

    def __call__(self, stage: str, function: Any) -> Any:
        """What the function returns."""
        results: list[Any] = []
        self.memory.peak(self.device, reset=True)
        took = seconds(lambda: results.append(function()), waiting(self.memory, self.device))
        peak = self.memory.peak(self.device)
        self.found[stage] = {"seconds": took, **peak._asdict(), "estimated_peak": self.estimate.stage(stage).peak}
        return results[0]


@torch.inference_mode()
def run(job: Job, settled: Settled) -> dict[str, Any]:
    """One job's numbers."""
    model, plan, request = settled.model, settled.plan, settled.request
    weights = RandomWeights(model, plan.backend.torch_device)
    estimate = replace(settled.estimate, placement=job.placement)
    engine = Engine(model, plan, placement=job.placement, weights=weights)
    memory, device = engine.ops.memory, torch.device(engine.device)
    gc.collect()
    memory.empty(device)  # of the job before
    limit = limited(memory, device, None if job.limit is None else int(job.limit * GIB))
    measure, stream = Peaks(engine, estimate), torch.Generator().manual_seed(1)
    prompts = [torch.randint(model.config.vocab_size, (count,), generator=stream).tolist() for count in TEXT]
    context = measure("read prompts", lambda: engine.prepare(request, Inputs(prompts[0], prompts[1])))
    again = seconds(lambda: engine.prepare(request, Inputs(prompts[0], prompts[1])), waiting(memory, device))
    state = engine.begin(context, request)
    loading = seconds(lambda: engine.step(state), waiting(memory, device))  # and what is compiled
    for _ in range(2 if engine.execution(request).captured else 0):  # the first of them captures
        engine.step(state)
    measure("steps", lambda: engine.step(state))
    link = crossing(engine, estimate)
    latents = state.x.clone()
    state.index = state.steps
    frames = measure("decode", lambda: sum(len(group) for group in engine.finish(state)))
    found = {"stages": measure.found, "first_step_with_loading_s": loading, "prompts_again_s": again, "frames": frames}
    found |= {
        "link_bytes_per_s": link,
        "finite": bool(torch.isfinite(latents).all()),
        "host_bytes": estimate.host,
    }
    found |= {"limit_enforced": None if limit.size is None else refuses(memory, device, limit.size)}
    limit.lift()
    if job.rounds:
        found |= beside(job, engine, context, settled)
    step, decode = measure.found["steps"]["seconds"], measure.found["decode"]["seconds"]
    total = measure.found["read prompts"]["seconds"] + request.steps * step + decode
    found["counted_run_s"] = total
    if ceiling := ceiling_of(plan.backend, plan.device):
        found["estimated_seconds"] = estimate.seconds(ceiling)
    return found


def refuses(memory: Memory, device: torch.device, size: int) -> bool:
    """Whether nothing more can be allocated that would exceed a limit of so many bytes."""
    memory.empty(device)
    held = memory.used(device).reserved or 0
    try:
        torch.empty(size - held, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return True
    return False


def crossing(engine: Engine, estimate: Estimate) -> float | None:
    """Bytes a second of layers that pass through the device, and of which nothing is computed; None of others."""
    if "generation" not in estimate.layers:
        return None
    layers, wait = engine._pool.lease("generation").layers, waiting(engine.ops.memory, engine.device)
    took = seconds(lambda: [layers[i] for i in range(len(layers))], wait)
    return estimate.layers["generation"] / took


def beside(job: Job, engine: Engine, context: Context, settled: Settled) -> dict[str, Any]:
    """One prediction of the streamed tower and of the resident one in turn."""
    model, plan, request = settled.model, settled.plan, settled.request
    weights = RandomWeights(model, plan.backend.torch_device)
    other = Engine(model, plan, placement=Placement(DISK, RESIDENT, STAGED), weights=weights)
    sides = {"streamed": engine, "resident": other}
    states = {name: one.begin(context, request) for name, one in sides.items()}
    warm = {name: one.predict([states[name]])[0] for name, one in sides.items()}
    wait = waiting(engine.ops.memory, engine.device)
    timed = alternate({n: lambda n=n: sides[n].predict([states[n]]) for n in sides}, wait, job.rounds)  # type: ignore[misc]
    ratio = timed["streamed"]["median_s"] / timed["resident"]["median_s"]
    counted = timed["resident"]["median_s"] * request.steps
    equal = torch.equal(*warm.values())
    return {"predicted": timed, "streamed_over_resident": ratio, "equal": equal, "resident_steps_counted_s": counted}


def main() -> None:
    args = arguments()
    if args.list:
        for name, job in JOBS.items():
            print(f"{name:<22} {job.costs:>4} s  {job.model} {job.work} {job.placement}")
        return
    known = json.loads(args.out.read_text())["jobs"] if args.out and args.out.exists() else {}
    folder = load(args.backend, ()).recipes
    jobs = {name: JOBS[name] for name in args.job}
    jobs |= {name: job_of(load_recipe(folder / f"{name}.toml")) for name in args.recipe if folder}
    for name, job in jobs.items():
        if name in known:
            print(f"{name}: there already", flush=True)
            continue
        settled = settled_of(job, args.backend)
        print(f"{name}: about {job.costs} s of an H200" if job.costs else name, flush=True)
        known[name] = {"job": said(job), "kernels": settled.plan.to_json(settled.execution.tokens)["kernels"]}
        known[name] |= run(job, settled)
        print(json.dumps(known[name], indent=1), flush=True)
        made_with = environment(settled.plan.backend.torch_device, settled.plan.device)
        report({"benchmark": "residency", "jobs": known, "environment": made_with}, args.out, quiet=True)


if __name__ == "__main__":
    main()
