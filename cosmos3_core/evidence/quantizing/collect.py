"""Statistics of what a model's matrices are multiplied by, measured in runs of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...checkpoint.quantize import Job
from ...checkpoint.statistics import LARGEST, MOMENT, SCHEMA, Statistics, read_statistics, write_statistics
from ...checkpoint.tensors import Spec
from ...checkpoint.writing import Show
from ...contract import InputError, RunError
from ...files.digests import sha256_json
from ...spelling import shown
from .session import OURS, Session

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS_AT_ONCE = 4 << 30
"""Bytes of second moments that one pass over the prompts sums up; more of them take more passes."""
STAGE = "calibration"
ENDING = ".calibration.safetensors"
"""Behind the name of an output that statistics are for."""


def beside(output: Path) -> Path:
    """Where the statistics for an output are saved."""
    return output.with_name(output.name + ENDING)


def collected(job: Job, session: Session, prompts: Sequence[str], path: Path, show: Show) -> Statistics:
    """The statistics that a job needs, from `path` where the same command left them, else measured and written there.
    Raises InputError for a file of another calibration, and RunError where the model's own numbers are not finite."""
    import torch

    moments, facts = job.choosing.with_moments(job.modules), _facts(session, prompts)
    if path.exists():
        found = read_statistics(path)
        if found.facts != facts or not found.moments.issuperset(moments):
            differs = next((key for key, value in facts.items() if found.facts.get(key) != value), "choice of modules")
            asked = f"writing {path}"
            raise InputError(asked, f"it is there, and of another {differs}", "Delete it, or pass it as `calibrate`")
        return found
    unread = job.choosing.unread
    widths = _widths(job, [name for module, name in job.choosing.inputs.items() if module not in unread])
    names = list(widths)
    specs = {f"{name}.{LARGEST}": Spec((width,), torch.float32) for name, width in widths.items()}
    specs |= {f"{name}.{MOMENT}": Spec((widths[name], widths[name]), torch.float32) for name in moments}
    write_statistics(path, facts, specs, _measured(session, names, _passes(moments, widths), show))
    return read_statistics(path)


def _facts(session: Session, prompts: Sequence[str]) -> dict[str, Any]:
    """What statistics say of themselves, as JSON has it: all that decides them."""
    plan = session.ground.plan
    facts = {
        "schema": SCHEMA,
        "cosmos3": __version__,
        "model": session.ground.model.name,
        "identity": session.seam.identity,
        "prompts": len(prompts),
        "prompts_sha256": sha256_json(list(prompts)),
        "request": {name: value for name, value in session.requests[0].to_json().items() if name not in OURS},
        "steps": session.steps,
        "backend": plan.backend.name,
        "device": plan.device.name,
        "dtype": plan.dtype,
    }
    return dict(json.loads(json.dumps(facts)))


def _widths(job: Job, names: Sequence[str]) -> dict[str, int]:
    """The input features of matrices."""
    from ...model.weights import shapes

    known = shapes(job.model.config)
    return {name: known[f"{name}.weight"][1] for name in names}


def _passes(moments: Sequence[str], widths: Mapping[str, int]) -> list[list[str]]:
    """Of which matrices each pass sums up the moments; one pass at least."""
    passes: list[list[str]] = [[]]
    size = 0
    for name in moments:
        nbytes = 4 * widths[name] ** 2
        if passes[-1] and size + nbytes > MOMENTS_AT_ONCE:
            passes.append([])
            size = 0
        passes[-1].append(name)
        size += nbytes
    return passes


@dataclass
class Sums:
    """Of what matrices are multiplied by, by name: the largest magnitudes, and of those that are `wanted` the moments,
    summed over as many rows as were seen."""

    wanted: frozenset[str]
    rows: dict[str, int] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)
    moment: dict[str, Tensor] = field(default_factory=dict)

    def see(self, name: str, x_MI: Tensor) -> None:
        import torch

        x = x_MI.reshape(-1, x_MI.shape[-1]).float()
        largest, first = x.abs().amax(0), name not in self.rows
        self.rows[name] = len(x) + (0 if first else self.rows[name])
        self.largest[name] = largest if first else torch.maximum(self.largest[name], largest)
        if name in self.wanted:
            if first:
                self.moment[name] = x.T @ x
            else:
                self.moment[name].addmm_(x.T, x)


def _tell(show: Show, done: int, total: int, steps: int) -> None:
    show(STAGE, done + steps, total)


def _measured(
    session: Session, names: Sequence[str], passes: Sequence[Sequence[str]], show: Show
) -> Iterator[tuple[str, Tensor]]:
    """The statistics by their names in the file, pass by pass."""
    total = len(passes) * session.steps
    for number, wanted in enumerate(passes):
        sums, done = Sums(frozenset(wanted)), number * session.steps
        session.seam.watch = sums.see
        try:
            for _ in session.runs(partial(_tell, show, done, total)):
                pass
        finally:
            session.seam.watch = None
        for name in names if not number else ():
            if not sums.largest[name].isfinite().all():
                found = f"what {shown(name)} is multiplied by is not finite in these runs"
                raise RunError("calibrating", found, "Run one of the prompts with cosmos3 run to see what it makes")
            yield f"{name}.{LARGEST}", sums.largest[name].cpu().clone()
        for name in wanted:
            yield f"{name}.{MOMENT}", (sums.moment.pop(name) / sums.rows[name]).cpu()
