"""One measurement, in a process of its own: `python -m cosmos3_core.evidence.worker JOB.json`.

A full run, cold from the start of the process, and for the candidate a warm one; then the probes: the velocity of the
first and of the middle step from given latents, and a short trajectory, for the baseline twice. The exact baseline and
the one in the recipe's formats are probed only, and of several chunks the first. Or an evaluation of the embedded model
with the recipe's plan, which is judged by itself. Between runs the components are
dropped and loaded again, as `cosmos3 run` does, so that the peak is that of a user's run; the stages' seconds tell
loading from work.

A candidate on several devices starts a process for each, which all take the measurement; what the first one finds is
written, its memory and its seconds too. All else is measured on one device: several are held against that.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from ..checkpoint.repository import EMBEDDED
from ..checkpoint.tensors import tensor_digest
from ..contract import Cosmos3Error, RunError
from ..parallel.launchers import started
from ..reference.hosts import free_memory
from ..runs import generation
from ..runs.memory import counted, peak_device_memory, peak_host_memory
from ..runs.processes import ALONE, Processes
from ..settle import Wish
from . import recipe as recipes
from .embedded.measures import Depth, check_numbers
from .settle import BASELINE, CANDIDATE, EXACT, plan_of_embedded, settle
from .verdict import QUANTITIES, quantities

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint.model import Model
    from ..engine.engine import Engine
    from ..model.packing import Item
    from ..sampling.state import State
    from ..settle import Settled

SHORT = 4
"""Most steps of the short trajectory. In float32 a guided step of 93 frames of 832x480 takes an H100 9 s."""


@dataclass(frozen=True)
class Job:
    """What to measure. `middle` is a file with the latents before the middle step (None: this job is the first, and
    keeps its own); `out` the folder for tensors.safetensors and raw.json; `launched` the time in seconds since the
    epoch at which the process was started; `depth` is what to evaluate, of the role EVALUATION.
    `random_weights` stand for the checkpoint's."""

    recipe: str
    role: str
    random_weights: bool
    noise: str
    middle: str | None
    out: str
    launched: float
    depth: Depth | None = None

    @classmethod
    def read(cls, file: Path) -> Job:
        """As `launch` writes it."""
        values = json.loads(file.read_text())
        return cls(**values | {"depth": values["depth"] and Depth(**values["depth"])})


def are_random(model: Model, random_weights: bool) -> bool:
    """Whether the weights are: with `random_weights`, and those of a checkpoint that says so of its
    own."""
    return random_weights or model.facts.random


def measure(job: Job, say: Callable[[str], object] = lambda line: None, processes: Processes = ALONE) -> None:
    """Take the measurement and write both files; of an evaluation, of which `say` is told how far it is, the second."""
    if job.depth:
        _evaluate(job, job.depth, say)
    else:
        _measure(job, processes)


def _evaluate(job: Job, depth: Depth, say: Callable[[str], object]) -> None:
    from .embedded.evaluation import evaluate

    recipe = recipes.load(Path(job.recipe))
    plan = plan_of_embedded(settle(recipe, CANDIDATE, random_weights=job.random_weights).plan)
    steps = recipe.high_precision_steps
    wish = Wish(model=EMBEDDED, dtype=plan.dtype, formats=plan.formats, high_precision_steps=steps)
    found = evaluate(wish, depth, on=(plan.backend, plan.device), say=say)
    check_numbers(found["measures"])
    (Path(job.out) / "raw.json").write_text(json.dumps(found, allow_nan=False))


def _measure(job: Job, processes: Processes) -> None:
    import torch
    from safetensors.torch import save_file

    from ..checkpoint.random_weights import RandomWeights
    from ..engine.engine import Engine
    from ..scenarios.items import items_of

    recipe = recipes.load(Path(job.recipe))
    several: dict[str, Any] = {}
    if processes.count > 1:
        several = {"started": processes.count, "host_memory": processes.from_first(free_memory())}
    settled = settle(recipe, job.role, random_weights=job.random_weights, **several)
    model, plan, request = settled.model, settled.plan, settled.request.of_chunk(0)
    processes.take_device(plan)
    weights = RandomWeights(model, plan.backend.torch_device) if job.random_weights else None
    if job.role == EXACT:  # where torch or its environment would let TF32 stand for float32
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    engine = Engine(model, plan, placement=settled.placement, weights=weights)
    made = [item for item in items_of(request, model.config) if not item.control]
    noise = [_read(job.noise, item.modality) for item in made]
    inputs = engine.read_inputs(settled.request, noise)
    raw: dict[str, Any] = {"plan": plan.to_json(settled.execution.tokens)}
    if plan.layout.size > 1:
        raw["plan"]["parallel"] = str(plan.layout)
    tensors = {"middle": _read(job.middle, "middle")} if job.middle else {}
    if job.role in (BASELINE, CANDIDATE):
        found, raw["cold"] = _generate(engine, settled, noise, job.launched)
        tensors = found | tensors
        raw["memory"] = counted(peak_host_memory(), peak_device_memory(engine.target.ops.memory, engine.device))
    if job.role == CANDIDATE:
        _, raw["warm"] = _generate(engine, settled, noise, time.time())
    context = engine.prepare(request, inputs)
    if are_random(model, job.random_weights):  # see `verdict`
        request = replace(request, guidance=1.0, control_guidance=1.0)
    start = engine.begin(context, request)
    for suffix in ("",) if job.middle else ("", ".again"):
        probed = probe(engine, start, tensors["middle"])
        tensors |= {name + suffix: tensor for name, tensor in probed.items()}
    if not processes.writes:
        return
    raw["tensors"] = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    out = Path(job.out)
    save_file(tensors, out / "tensors.safetensors")
    (out / "raw.json").write_text(json.dumps(raw, allow_nan=False))


def _read(file: str, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _generate(
    engine: Engine, settled: Settled, noise: list[Tensor], begin: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a user's run makes, on the host: `frames` uint8 [F, H, W, 3], and if there are some `sound` fp32 [2, N] and
    `actions` fp64 [T, D], with the flat latents before the `middle` step of the first chunk; and the seconds since
    `begin`, in all and by stage. Each of several chunks draws noise of its own."""
    import numpy as np
    import torch

    before, request = dict(engine.seconds), settled.request
    run = generation.prepare(engine, settled, noise=noise if request.chunks.count == 1 else None)
    made: dict[str, Tensor] = {}
    while not run.done:
        if run.index == request.steps // 2:
            made["middle"] = run.begun.x.cpu().clone()
        run.step()
    if sound := run.sound():
        made["sound"] = torch.from_numpy(sound.samples).contiguous()
    if request.predicts_actions:
        made["actions"] = torch.from_numpy(run.actions()[0]).contiguous()
    made["frames"] = torch.from_numpy(np.stack(list(run.frames())))
    stages = {name: round(total - before.get(name, 0.0), 4) for name, total in engine.seconds.items()}
    return made, {"seconds": round(time.time() - begin, 4), "stages": stages}


def _parts(x: Tensor, items: tuple[Item, ...]) -> dict[str, Tensor]:
    """Of what flat latents or velocities hold, that which a run makes, by modality: flat fp32 on the host."""
    from ..sampling.state import views

    parts = zip(items, views(x, items), strict=True)
    made = [(item, part) for item, part in parts if not item.control and len(item.clean) < item.frames]
    return {item.modality: part.flatten().cpu().clone() for item, part in made}


def probe(engine: Engine, start: State, middle: Tensor) -> dict[str, Tensor]:
    """The two velocities and the short trajectory's final latents, as the verdict calls them. All on the context of one
    state before step 0, which stays as it is and holds the media tower from one probe to the next."""
    request = start.request
    short = engine.begin(start.context, replace(request, steps=min(SHORT, request.steps)))
    while not short.done:
        engine.step(short)
    (first,) = engine.predict([start])
    halfway = engine.begin(start.context, request)
    halfway.x, halfway.index = middle.to(engine.device), start.steps // 2
    (second,) = engine.predict([halfway])
    found: dict[str, Tensor] = {}
    for name, flat in zip(QUANTITIES, (first, second, short.x), strict=True):
        parts = _parts(flat, start.items)
        found |= {quantities((modality,))[QUANTITIES.index(name)]: part for modality, part in parts.items()}
    return found


def launch(job: Job, say: Callable[[str], object]) -> None:
    """Take a measurement in a fresh process; `say` is told what it prints. Raises RunError with what the process said
    last if it fails."""
    file, said = Path(job.out) / "job.json", Path(job.out) / "stderr"
    file.write_text(json.dumps(asdict(job)))
    alive, own = os.pipe()  # the second end is closed with this process, however that ends
    program = [sys.executable, "-m", __name__, str(file)]
    streams: dict[str, Any] = {"stdin": alive, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    try:
        with said.open("wb") as stderr, subprocess.Popen(program, stderr=stderr, **streams) as process:
            try:
                for line in process.stdout or ():
                    say(line.rstrip())
            except BaseException:
                process.kill()
                raise
    finally:
        os.close(alive)
        os.close(own)
    if process.returncode:
        lines = said.read_text("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        next_step = "Try cosmos3 recipes run first"
        if job.depth:
            next_step = "A row that does not serve the embedded model says so in its `refuse`"
        raise RunError(f"measuring the {job.role}", lines[0].removeprefix("error: "), next_step)


def _end_with_parent() -> None:
    """Wait until the process that launched this one is gone, and end this one."""
    os.read(0, 1)
    os._exit(1)


def _measure_among(job: Job) -> None:
    """As one of the processes of a recipe's layout, or start them."""
    recipe = recipes.load(Path(job.recipe)) if job.role == CANDIDATE else None
    if recipe is None or recipe.parallel is None:
        return measure(job, partial(print, flush=True))
    from ..parallel import launch

    if (one := started()) is None:
        return launch.launch(recipe.device["count"], [sys.executable, "-m", __spec__.name, sys.argv[1]])
    try:
        measure(job, processes=Processes.of(one))
        launch.part()
    except Cosmos3Error as error:
        launch.tell(error)
        sys.exit(error.exit_code)


def main() -> None:
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        _measure_among(Job.read(Path(sys.argv[1])))
    except Cosmos3Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
