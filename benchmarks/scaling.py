"""How a step and a decode scale over the devices of one host, layout by layout.

    python -m benchmarks.scaling --backend cuda --cards 1 2 4 8 --list
    python -m benchmarks.scaling --backend cuda --cards 1 2 4 8 --out scaling-h200.json

Each job runs on 1, 2, 4 and 8 cards: in the layout that the plan takes for so many, in the tracking table's own, and
with `--axes` along each axis by itself. `--list` names them, each with the seconds that the plan counts for it. What
FILE has already is not run again, and results are written as they come; a layout that fails is named at the end. All
processes of a run have the same random weights and time the same step twice; the slowest one's time counts. A third
step waits for every exchange by itself: its bytes and seconds are those of the exchanges, hidden ones as well. A whole
run is counted from a step and the decode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.contract import Backend, Comm, InputError, Pending, RunError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.engine.stages import Watch
from cosmos3_core.files.atomic import check_writable
from cosmos3_core.parallel.launch import launch, part
from cosmos3_core.parallel.launchers import started
from cosmos3_core.parallel.ranks import from_first
from cosmos3_core.plan import choose_backend
from cosmos3_core.plan.cost.units import ceiling_of
from cosmos3_core.plan.mesh import MOST
from cosmos3_core.runs.processes import Processes
from cosmos3_core.settle import Settled, Wish, settle

from .common import environment, report, seconds, waiting

TEXT = 512, 3500
"""Tokens of the prompt and of the negative one, as `cosmos3 plan` assumes them."""
FP8 = {"pack_linear": "fp8", "attention": "fp8"}
ROUNDS = 2
STARTING = 40
"""Seconds until the processes of a layout have met, and have weights and kernels."""
TABLE = {2: "cfg=2,hsdp=2", 4: "cfg=2,ulysses=2,hsdp=4", 8: "cfg=2,ulysses=4,hsdp=8"}
"""The tracking table's layouts by their number of cards."""
AXES = ("cfg", "ulysses", "ring", "tensor", "pipeline", "hsdp", "vae")

SENT: dict[str, Callable[[int], float]] = {
    "all_to_all": lambda count: (count - 1) / count,
    "all_gather": lambda count: count - 1,
    "reduce_scatter": lambda count: (count - 1) / count,
    "all_reduce": lambda count: 2 * (count - 1) / count,
    "broadcast": lambda count: 1,
    "exchange": lambda count: 1,
}
"""How many times its argument one of so many processes sends in a collective, in a ring."""


@dataclass(frozen=True)
class Job:
    """Of a `model` a picture or video, `work`, in these `formats`."""

    model: str
    work: str
    formats: dict[str, str] = field(default_factory=dict)
    steps: int = 35


JOBS = {
    "super-bf16": Job("super", "1280x720x189"),
    "super-fp8": Job("super", "1280x720x189", FP8),
    "nano-bf16": Job("nano", "1280x720x189"),
    "nano-fp8": Job("nano", "1280x720x189", FP8),
    "nano-t2i-bf16": Job("nano", "1024x1024x1", steps=50),
    "nano-t2i-fp8": Job("nano", "1024x1024x1", {"pack_linear": "fp8"}, 50),
    "embedded": Job("embedded", "64x64x5", steps=4),
}


def number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of cards. Type 1 to {MOST}")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--cards", type=number, nargs="+", default=[1, 2, 4, 8], help="how many, one after another")
    parser.add_argument("--job", action="append", choices=JOBS, default=[], help="may be repeated; all but embedded")
    parser.add_argument("--axes", action="store_true", help="each axis by itself as well")
    parser.add_argument("--list", action="store_true", help="name the runs and what they cost, and run nothing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # what one process of a layout is told
    return parser.parse_args()


def settled_of(job: Job, backend: str, **shared: Any) -> Settled:
    width, height, frames = job.work.split("x")
    given = {"prompt": "(random)", "size": f"{width}x{height}", "frames": int(frames), "steps": job.steps}
    wish = Wish(model=job.model, described=True, backend=backend, formats=job.formats, given=given, **shared)
    return settle(wish).with_texts(*TEXT)


def layouts(job: Job, backend: str, cards: int, axes: bool) -> Iterator[str]:
    """Those of so many cards in which this job can be, as `parallel` has them."""
    if cards == 1:
        yield "cfg=1"
        return
    asked: list[dict[str, Any]] = [{"devices": cards}]
    asked += [{"parallel": TABLE[cards]}] if cards in TABLE else []
    asked += [{"parallel": f"{axis}={cards}"} for axis in AXES if axes]
    found = dict.fromkeys(str(one.plan.layout) for shared in asked if (one := possible(job, backend, shared)))
    yield from found


def possible(job: Job, backend: str, shared: dict[str, Any]) -> Settled | None:
    try:
        return settled_of(job, backend, **shared)
    except InputError as error:
        print(f"{job.model} {job.work}, {shared}: {error}", file=sys.stderr)
        return None


class Counted:
    """contract.Comm, each exchange of which is waited for while `counting`: `bytes` that this process sent, and the
    `seconds` that it took."""

    def __init__(self, comm: Comm, wait: Any):
        self._comm, self._wait = comm, wait
        self.counting, self.bytes, self.seconds = False, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._comm, name)
        return partial(self._counted, call, SENT[name]) if self.counting and name in SENT else call

    def _counted(self, call: Any, times: Callable[[int], float], x: Tensor, *given: Any, **options: Any) -> Pending:
        group = next((one for one in given if isinstance(one, dist.ProcessGroup)), None)
        found = list[Tensor]()
        self.bytes += x.nbytes * times(dist.get_world_size(group))
        self.seconds += seconds(lambda: found.append(call(x, *given, **options).wait()), self._wait)
        return Arrived(found[0])


@dataclass(frozen=True)
class Arrived:
    result: Tensor

    def wait(self) -> Tensor:
        return self.result


@torch.inference_mode()
def measure(job: Job, settled: Settled, rank: int) -> dict[str, Any]:
    """One layout's numbers, as this process finds them."""
    plan, request, estimate = settled.plan, settled.request, settled.estimate
    weights = RandomWeights(settled.model, plan.backend.torch_device)
    engine = Engine(settled.model, plan, placement=settled.placement, weights=weights)
    memory, device = engine.ops.memory, torch.device(engine.device)
    wait = waiting(memory, device)
    comm = engine._others._comm = Counted(engine.ops.comm, wait)
    stream = torch.Generator().manual_seed(1)
    prompts = [torch.randint(settled.model.config.vocab_size, (count,), generator=stream).tolist() for count in TEXT]
    context = engine.prepare(request, Inputs(prompts[0], prompts[1]))
    # Processes of a pipeline decide between passes whether to stop, and so all are asked.
    state = engine.begin(context, request, Watch(cancel=lambda: bool(from_first(False))))
    engine.predict([state])  # loads, and compiles
    dist.barrier()
    memory.peak(device, reset=True)
    rounds = [seconds(lambda: engine.predict([state]), wait) for _ in range(ROUNDS)]
    found: dict[str, Any] = {"rounds_s": rounds, "step_peak": memory.peak(device)._asdict()}
    comm.counting = True
    found["finite"] = bool(torch.isfinite(engine.predict([state])[0]).all())
    comm.counting = False
    found |= {"sent_bytes": comm.bytes, "exchanging_s": comm.seconds}
    state.index, state.watch = state.steps, None  # who decodes decides alone
    dist.barrier()
    memory.peak(device, reset=True)
    if rank < max(1, plan.layout.vae):
        found["decode_s"] = seconds(lambda: sum(len(group) for group in engine.finish(state)), wait)
    return found | {"decode_peak": memory.peak(device)._asdict(), "estimated_peak": estimate.peak}


def together(job: Job, settled: Settled, each: list[dict[str, Any]]) -> dict[str, Any]:
    """What all processes found, beside what the plan counts."""
    rounds = [max(times) for times in zip(*(one["rounds_s"] for one in each), strict=True)]
    step, decode = statistics.median(rounds), max(one.get("decode_s", 0.0) for one in each)
    exchange = settled.estimate.exchange(guided=settled.estimate.job.guided_steps > 0)
    found: dict[str, Any] = {
        "model": job.model,
        "work": job.work,
        "formats": job.formats,
        "cards": len(each),
        "step_s": {"median_s": step, "rounds_s": rounds},
        "decode_s": decode,
        "counted_run_s": job.steps * step + decode,
        "exchanging_s": [one["exchanging_s"] for one in each],
        "sent_bytes": [one["sent_bytes"] for one in each],
        "step_peaks": [one["step_peak"] for one in each],
        "decode_peaks": [one["decode_peak"] for one in each],
        "finite": all(one["finite"] for one in each),
        "estimated": {"peak": settled.estimate.peak, "waited_bytes": exchange.waited, "beside_bytes": exchange.beside},
    }
    if ceiling := ceiling_of(settled.plan.backend, settled.plan.device):
        found["estimated"]["seconds"] = settled.estimate.seconds(ceiling)
    return found


def work(name: str, layout: str, args: argparse.Namespace) -> None:
    """One process of a layout; the first one writes what all found."""
    processes = Processes.of(started())
    job = JOBS[name]
    settled = settled_of(job, args.backend, parallel=layout)
    processes.take_device(settled.plan)
    each: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(each, measure(job, settled, processes.rank))
    if processes.writes:
        add(args.out, name, layout, together(job, settled, each), settled)
    part()


def add(out: Path, name: str, layout: str, row: dict[str, Any], settled: Settled) -> None:
    """One more result; each is beside one card's of the same job, where that is there."""
    known = held(out)
    known[f"{name} {layout}"] = row
    for key, one in known.items():
        if base := known.get(f"{key.split()[0]} cfg=1"):
            one["speedup"] = base["step_s"]["median_s"] / one["step_s"]["median_s"]
            one["decode_speedup"] = base["decode_s"] / one["decode_s"]
    made_with = environment(settled.plan.backend.torch_device, settled.plan.device)
    report({"benchmark": "scaling", "runs": known, "environment": made_with}, out, quiet=True)


def held(out: Path) -> dict[str, Any]:
    """What FILE has. Ends the program where that is no result of this one."""
    try:
        return dict(json.loads(out.read_text("utf-8"))["runs"]) if out.exists() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"--out {out}: it has no results to go on with ({error!r}). Name another file") from None


def costs(job: Job, backend: Backend, found: Any, settled: Settled) -> float | None:
    """Seconds of one layout's run by the plan; None where it counts none."""
    ceiling = ceiling_of(backend, found)
    counted = settled.estimate.seconds(ceiling) if ceiling else None
    if counted is None:
        return None
    return STARTING + counted["read prompts"] + (ROUNDS + 2) * counted["step"] + counted["decode"]


def line(key: str, row: dict[str, Any]) -> str:
    peak = max(one["reserved"] or 0 for one in (*row["step_peaks"], *row["decode_peaks"])) / 2**30
    said = f"{key}: a step {row['step_s']['median_s']:.3f} s, decode {row['decode_s']:.2f} s, peak {peak:.1f} GiB"
    beside = f", {row['speedup']:.2f} times one card's step" if "speedup" in row else ""
    return f"{said}, {max(row['sent_bytes']) / 2**20:.0f} MiB in {max(row['exchanging_s']):.3f} s{beside}"


def main() -> None:
    args = arguments()
    if args.only:
        name, layout = args.only.split()
        return work(name, layout, args)
    if not args.out and not args.list:
        raise SystemExit("results are written as they come: add --out FILE, or --list")
    try:
        backend, found, _ = choose_backend(args.backend)
        if args.out and not args.list:  # before an hour of devices, not behind it
            args.out.parent.mkdir(parents=True, exist_ok=True)
            check_writable(args.out)
    except (InputError, OSError) as error:
        raise SystemExit(str(error)) from None
    known, failed = held(args.out) if args.out else {}, list[str]()
    for name in args.job or [name for name in JOBS if name != "embedded"]:
        for cards in args.cards:
            for layout in layouts(JOBS[name], args.backend, cards, args.axes):
                key = f"{name} {layout}"
                if args.list:
                    cost = costs(JOBS[name], backend, found, settled_of(JOBS[name], args.backend, parallel=layout))
                    print(f"{key:<50} {f'{cost:>5.0f} s' if cost else '':>7} {'there already' * (key in known)}")
                    continue
                if key not in known:
                    command = [sys.executable, "-m", "benchmarks.scaling", "--backend", args.backend]
                    try:
                        launch(cards, [*command, "--only", key, "--out", str(args.out)])
                    except KeyboardInterrupt:
                        print(f"stopped in {key}; the same command goes on", file=sys.stderr)
                        sys.exit(130)
                    except RunError as error:  # such as a layout that takes more memory than a card has
                        failed.append(f"{key}: {error}")
                        continue
                print(line(key, held(args.out)[key]), flush=True)
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
