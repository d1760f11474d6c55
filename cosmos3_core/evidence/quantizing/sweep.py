"""Which matrices cost most when they are quantized: measured group by group, and made a policy that keeps the worst."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...checkpoint.policy import Policy
from ...checkpoint.quantize import Job
from ...checkpoint.writing import Show
from ...contract import InputError, RunError
from ...files.atomic import atomic, check_writable
from .collect import beside, collected
from .errors import Errors
from .quantize import Asked, job_of
from .seam import places
from .session import Session

THIRDS = ("first", "middle", "last")
"""Parts of a tower's layers."""
PARTS = 1000
"""Of the bytes of all groups, in which a budget is counted."""
RUNS, STAGE = "steps", "groups"
"""What is told of: the model as it is, and group after group."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may stay in the model's dtype: a `share` of the bytes of all matrices that could be quantized, or as few as
    bring the velocity `error` below a bound."""

    share: float | None = None
    error: float | None = None

    def check(self) -> None:
        """Raises InputError unless it says one of both, a number between 0 and 1."""
        said = {"keep_share": self.share, "max_error": self.error}
        given = {name: value for name, value in said.items() if value is not None}
        if len(given) != 1:
            found = "both a share and an error are given" if given else "nothing says how much may stay"
            raise InputError("`sweep`", found, "Say `keep_share`, such as 0.1, or `max_error`, such as 0.05")
        ((name, value),) = given.items()
        if not 0 < value < 1:
            raise InputError(f"`{name}` {value}", "it is a share", "Choose a number between 0 and 1", name)

    def check_none(self) -> None:
        """Raises InputError where it says something and there is no sweep."""
        for name, value in (("keep_share", self.share), ("max_error", self.error)):
            if value is not None:
                raise InputError(f"`{name}` {value}", "nothing is measured", "Add `sweep`, or leave it out", name)


@dataclass(frozen=True)
class Group:
    """Matrices of one kind in a part of a tower's layers: their modules, the bytes that these take as they are, and the
    velocity error when nothing else is quantized."""

    name: str
    modules: tuple[str, ...]
    bytes: int
    error: float = 0.0

    @property
    def worth(self) -> float:
        """What a byte that stays buys. Errors of groups add up like those of independent causes: by their squares."""
        return self.error**2 / self.bytes


def groups_of(job: Job) -> list[Group]:
    """The modules that a job quantizes, by tower, kind and third of the layers; empty ones left out."""
    config, wanted = job.model.config, set(job.modules)
    tensors, raw = job.weights.transformer.tensors, job.weights.raw_names
    found: dict[str, list[str]] = {}
    for place in places(config):
        third = THIRDS[place.layer * len(THIRDS) // config.num_hidden_layers]
        name = f"{'media' if place.media else 'text'} {place.key}, {third} layers"
        found.setdefault(name, []).extend(module for module in place.modules if module in wanted)

    def size(module: str) -> int:
        info = tensors[raw[f"{module}.weight"]]
        return math.prod(info.shape) * info.dtype.itemsize

    return [Group(name, tuple(modules), sum(map(size, modules))) for name, modules in found.items() if modules]


def sweep(asked: Asked, budget: Budget, path: Path, show: Show, *, overwrite: bool = False) -> dict[str, Any]:
    """Measure every group that a quantization as `asked` would have, and write the policy that keeps the worst of them
    within the budget to `path`. Returns what was measured, as JSON: groups in the order in which they are kept. Raises
    InputError before a weight is read, and RunError where no policy meets the bound."""
    budget.check()
    check_writable(path, overwrite=overwrite)
    if (prompts := asked.prompts()) is None:
        raise InputError("`sweep`", "it compares runs of prompts, and there are none", "Pass them as `calibrate`")
    if isinstance(file := asked.calibrate, str) and path.exists() and Path(file).exists() and path.samefile(file):
        raise InputError(f"writing {path}", "it is the file of the prompts", "Choose another name")
    job = job_of(asked)
    session = Session.widest(asked.model, asked.revision, asked.backend, prompts, asked.given)
    if job.choosing.calibrates:
        job = job.calibrated(collected(job, session, prompts, beside(path), show))
    errors = Errors.of(session, lambda steps: show(RUNS, steps, session.steps))
    groups = sorted(_measured(errors, job, show), key=lambda group: (-group.worth, group.name))
    every = errors.error(job.choosing, job.modules)
    kept = _within(groups, budget.share) if budget.share is not None else []
    error = _error(errors, job, kept) if kept else every
    while budget.error is not None and error > budget.error:
        if len(kept) == len(groups) - 1:
            found = f"with all but {groups[-1].name} kept, the error is {error:.4f}"
            raise RunError(f"`max_error` {budget.error}", found, "Allow more, or choose a format of more bits")
        kept.append(groups[len(kept)])
        error = _error(errors, job, kept)
    said = {
        "policy": str(path),
        **{key: value for key, value in job.description.items() if key not in ("policy", "shards")},
        "prompts": len(prompts),
        "groups": [{**asdict(group), "kept": group in kept} for group in groups],
        "error_of_all": every,
        "error": error,
        "kept_share": sum(group.bytes for group in kept) / sum(group.bytes for group in groups),
    }
    with atomic(path, overwrite=overwrite) as temp:
        temp.write_text(_text(job.policy, said, [module for group in kept for module in group.modules]), "utf-8")
    return said


def _measured(errors: Errors, job: Job, show: Show) -> Iterator[Group]:
    """Every group with its error."""
    groups = groups_of(job)
    for number, group in enumerate(groups):
        show(STAGE, number, len(groups))
        yield replace(group, error=errors.error(job.choosing, group.modules))
    show(STAGE, len(groups), len(groups))


def _within(groups: Sequence[Group], share: float) -> list[Group]:
    """In their order those that together take at most this share of the bytes of all, to a thousandth, and have the
    largest sum of squared errors."""
    total, room = sum(group.bytes for group in groups), math.floor(share * PARTS)
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (room + 1)
    for number, group in enumerate(groups):
        parts = math.ceil(group.bytes * PARTS / total)
        for left in range(room, parts - 1, -1):
            value, chosen = best[left - parts]
            if (value := value + group.error**2) > best[left][0]:
                best[left] = value, (*chosen, number)
    return [groups[number] for number in best[room][1]]


def _error(errors: Errors, job: Job, kept: Sequence[Group]) -> float:
    """Of all modules but those that are kept."""
    stay = {module for group in kept for module in group.modules}
    return errors.error(job.choosing, [module for module in job.modules if module not in stay])


def _text(policy: Policy, said: Mapping[str, Any], modules: Sequence[str]) -> str:
    """The policy's file, with what it was made of."""
    group = f", groups of {said['group']}" if said["group"] else ""
    lines = [
        f"# Made by a sweep of cosmos3 {said['cosmos3']}: {said['format']}{group}, {said['method']},",
        f"# of {json.dumps(said['source'])}, {said['identity']}, with {said['prompts']} prompts.",
        f"# Velocity error {said['error']:.4f}, with all quantized {said['error_of_all']:.4f}.",
        "",
        f"keep_understanding = {str(policy.keep_understanding).lower()}",
        f"keep_first_layers = {policy.keep_first_layers or 0}",
        "keep = [",
        *(f"    {json.dumps(name)}," for name in (*policy.keep, *modules)),
        "]",
    ]
    return "\n".join(lines) + "\n"
