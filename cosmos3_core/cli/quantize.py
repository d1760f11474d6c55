"""`cosmos3 quantize`: write a checkpoint with quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..checkpoint.quantize import Job
from ..checkpoint.writing import part_of
from ..evidence.quantizing.quantize import Asked, quantize
from ..evidence.quantizing.sweep import Budget, sweep
from .progress import Display
from .terminal import printable, remark, tell


def execute(asked: Asked, output: str, overwrite: bool, as_json: bool) -> None:
    """Quantize, and print the folder's name, or as JSON what is in it. Raises InputError and RunError."""
    path = Path(output)
    try:
        with Display() as display:
            said = quantize(asked, path, _remark, display.show, overwrite=overwrite)
    except KeyboardInterrupt:
        if part_of(path).exists():
            tell(f"finished files are kept in {part_of(path)}: the same command goes on with them")
        raise
    print(json.dumps(said, indent=2) if as_json else printable(path))


def measure(asked: Asked, budget: Budget, policy: str, overwrite: bool, as_json: bool) -> None:
    """Measure what each group costs, write the policy, and print the groups. Raises InputError and RunError."""
    with Display() as display:
        said = sweep(asked, budget, Path(policy), display.show, overwrite=overwrite)
    print(json.dumps(said, indent=2) if as_json else table(said))


def table(said: dict[str, Any]) -> str:
    """The groups of a sweep, a line for each, and what the policy comes to."""
    total = sum(group["bytes"] for group in said["groups"])
    lines = [f"{'quantized alone':<30}{'of bytes':>9}{'velocity error':>16}"]
    for group in said["groups"]:
        kept = "  kept" if group["kept"] else ""
        lines.append(f"{group['name']:<30}{group['bytes'] / total:>9.1%}{group['error']:>16.5f}{kept}")
    lines += [f"{'all':<30}{1:>9.1%}{said['error_of_all']:>16.5f}"]
    lines += [f"{'all but what is kept':<30}{1 - said['kept_share']:>9.1%}{said['error']:>16.5f}"]
    return "\n".join([*lines, printable(said["policy"])])


def _remark(job: Job) -> None:
    remark(
        f"{job.model.name}: {len(job.modules)} matrices in {job.format.name} ({job.row.dialect}), "
        f"{job.source_bytes / 1e9:.3g} GB become {job.bytes / 1e9:.3g} GB"
    )
