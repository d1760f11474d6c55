"""What `cosmos3 quantize` and `cosmos3.quantize` do, from what was asked to the new folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoint.choosing import NEAREST
from ...checkpoint.model import open_model
from ...checkpoint.policy import Policy, policy_of, read_policy
from ...checkpoint.quantize import Job, prepare, with_defaults
from ...checkpoint.statistics import is_statistics, read_statistics
from ...checkpoint.writing import Show, check_calibrated, check_folder, check_output, write
from ...contract import InputError
from ...plan.execution import kept_layers_of
from .collect import ENDING, beside, collected
from .prompts import prompts_of
from .session import Session


@dataclass(frozen=True, kw_only=True)
class Asked:
    """As somebody asked for it. `calibrate` is a file of prompts, "world", a file of statistics, or the prompts; they
    run on `backend` with the request fields `given`. `policy` is a file or its keys."""

    model: str
    format: str
    revision: str | None = None
    dialect: str | None = None
    group: int | None = None
    policy: str | Mapping[str, Any] | None = None
    method: str = NEAREST
    calibrate: str | Sequence[str] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    backend: str | None = None

    @property
    def statistics(self) -> Path | None:
        """The file of statistics, where one is given."""
        given = self.calibrate
        return Path(given) if isinstance(given, str) and is_statistics(Path(given)) else None

    def prompts(self) -> list[str] | None:
        """The prompts, where there are any. Raises InputError for a file that has none."""
        return None if self.calibrate is None or self.statistics else prompts_of(self.calibrate)


def job_of(asked: Asked) -> Job:
    """What it comes to, without statistics. Raises InputError as `prepare`."""
    policy = Policy()
    if isinstance(asked.policy, Mapping):
        policy = policy_of(asked.policy, "`policy`")
    elif asked.policy is not None:
        policy = read_policy(Path(asked.policy))
    model = open_model(asked.model, asked.revision)
    return prepare(
        model,
        format=asked.format,
        dialect=asked.dialect,
        group=asked.group,
        policy=with_defaults(policy, kept_layers_of(model.config, asked.format)),
        method=asked.method,
    )


def _check_runs(asked: Asked, job: Job) -> None:
    """Raises InputError for prompts that nothing depends on, for none where something does, and for what says how they
    run where none do."""
    runs = asked.calibrate is not None and not asked.statistics
    if asked.calibrate is None:
        check_calibrated(job)
    elif not job.choosing.calibrates:
        found = f"{asked.format} with `method` {asked.method} depends on no prompts"
        raise InputError("`calibrate`", found, "Leave it out, or choose `method` gptq")
    for name in () if runs else (*asked.given, *(("backend",) if asked.backend is not None else ())):
        raise InputError(f"`{name}`", "nothing is run", "Leave it out, or pass prompts as `calibrate`", name)


def with_statistics(asked: Asked, job: Job, saved: Path, show: Show) -> Job:
    """The job with the statistics that it needs: those of a file, or of prompts, which `saved` has then. Raises
    InputError as `collected`."""
    if asked.statistics:
        return job.calibrated(read_statistics(asked.statistics))
    if (prompts := asked.prompts()) is None:
        return job
    session = Session.of(asked.model, asked.revision, asked.backend, prompts, asked.given)
    return job.calibrated(collected(job, session, prompts, saved, show))


def quantize(
    asked: Asked, output: Path, begun: Callable[[Job], object], show: Show, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write the checkpoint; `begun` is told what is being written. Returns what is in it, as JSON. Raises InputError
    before a weight is read, and RunError."""
    check_folder(output, (ENDING,))
    job, saved = job_of(asked), beside(output)
    _check_runs(asked, job)
    if asked.calibrate is not None and not asked.statistics and not saved.exists():
        check_output(job, output, overwrite=overwrite)  # before prompts run for hours
    job = with_statistics(asked, job, saved, show)
    check_output(job, output, overwrite=overwrite)
    begun(job)
    write(job, output, show, overwrite=overwrite)
    return {
        "output": str(output),
        **job.description,
        "quantized": list(job.modules),
        "source_bytes": job.source_bytes,
        "bytes": job.bytes,
    }
