"""One measurement, in a process of its own: `python -m cosmos3_core.evidence.worker JOB.json`.

Two full runs (the first cold, from the start of the process), then twice the velocity of the first and of the middle
step from given latents, and a short trajectory. Between runs the components are dropped and loaded again, as
`cosmos3 run` does, so that the peak is that of a user's run; the stages' seconds tell loading from work.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import Cosmos3Error
from . import recipe as recipes
from .settle import peaks, settle

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.engine import Engine, Inputs
    from ..sampling.state import State
    from ..scenarios.request import Request

SHORT = 8
"""Most steps of the short trajectory."""
REPEATS = 2


@dataclass(frozen=True)
class Job:
    """What to measure. `middle` is a file with the latents before the middle step (None: this job is the baseline, and
    keeps its own); `out` the folder for tensors.safetensors and raw.json; `launched` the time in seconds since the
    epoch at which the process was started."""

    recipe: str
    role: str
    noise: str
    middle: str | None
    out: str
    launched: float


def measure(job: Job) -> None:
    """Take the measurement and write both files."""
    from safetensors.torch import save_file

    from ..engine.engine import Engine, items_of

    settled = settle(recipes.load(Path(job.recipe)), job.role)
    engine, request = Engine(settled.model, settled.plan), settled.request
    noise = [_read(job.noise, item.modality) for item in items_of(request, settled.model)]
    inputs = engine.read_inputs(request, noise)
    tensors: dict[str, Tensor] = {}
    runs = []
    for repeat in range(REPEATS):
        begin, before = time.time() if repeat else job.launched, dict(engine.seconds)
        frames, middle = _generate(engine, request, inputs)
        stages = {name: round(total - before.get(name, 0.0), 4) for name, total in engine.seconds.items()}
        runs.append({"seconds": round(time.time() - begin, 4), "stages": stages})
        if repeat == 0:
            memory = peaks(settled.plan)
            tensors["middle"] = _read(job.middle, "middle") if job.middle else middle
        tensors[f"frames.{repeat}"] = frames
    for repeat in range(REPEATS):
        probed = _probe(engine, request, inputs, tensors["middle"])
        tensors |= {f"{name}.{repeat}": tensor for name, tensor in probed.items()}
    raw = {"plan": settled.plan.to_json(), "cold": runs[0], "warm": runs[1], "memory": memory}
    raw["sha256"] = {name: _digest(tensor) for name, tensor in tensors.items()}
    out = Path(job.out)
    save_file(tensors, out / "tensors.safetensors")
    (out / "raw.json").write_text(json.dumps(raw, allow_nan=False))


def _read(file: str, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _generate(engine: Engine, request: Request, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(frames uint8 [F, H, W, 3], flat latents before the middle step), on the host."""
    import torch

    state = engine.start(request, inputs)
    while not state.done:
        if state.index == state.steps // 2:
            middle = state.x.cpu().clone()
        engine.step(state)
    return torch.cat(list(engine.finish(state))), middle


def _probe(engine: Engine, request: Request, inputs: Inputs, middle: Tensor) -> dict[str, Tensor]:
    """The two velocities and the short trajectory's final latents, flat fp32 on the host."""
    state = engine.start(request, inputs)
    found = {"velocity_first": _velocity(engine, state, state.x, 0)}
    found["velocity_middle"] = _velocity(engine, state, middle, state.steps // 2)
    del state
    short = engine.start(replace(request, steps=min(SHORT, request.steps)), inputs)
    while not short.done:
        engine.step(short)
    return found | {"short_trajectory": short.x.cpu()}


def _velocity(engine: Engine, state: State, x: Tensor, index: int) -> Tensor:
    """The velocity that the solver is handed at step `index` from latents x. The solver itself does not move."""
    kept = []

    def keep(velocity: Tensor, x: Tensor, *_: Any) -> Tensor:
        kept.append(velocity)
        return x

    state.solver.step, state.x, state.index = keep, x.to(state.x.device), index
    engine.step(state)
    return kept[0].cpu()


def _digest(tensor: Tensor) -> str:
    import torch

    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def launch(job: Job) -> None:
    """Take a measurement in a fresh process. Raises RunError with what the process said if it fails."""
    import subprocess

    from ..contract import RunError

    file = Path(job.out) / "job.json"
    file.write_text(json.dumps(asdict(job)))
    done = subprocess.run([sys.executable, "-m", __name__, str(file)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RunError(f"measuring the {job.role}", said[0].removeprefix("error: "), "Try cosmos3 recipes run first")


def main() -> None:
    try:
        measure(Job(**json.loads(Path(sys.argv[1]).read_text())))
    except Cosmos3Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
