"""`cosmos3 quantize`: write a checkpoint with quantized weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.model import open_model
from ..checkpoint.policy import Policy, read_policy
from ..checkpoint.quantize import prepare, with_defaults
from ..checkpoint.writing import check_output, part_of, write
from ..plan.execution import kept_layers_of
from .progress import Display
from .terminal import printable, remark, tell


@dataclass(frozen=True, kw_only=True)
class Options:
    """As typed."""

    model: str
    revision: str | None
    format: str
    dialect: str | None
    group: int | None
    policy: str | None
    output: str
    overwrite: bool


def execute(options: Options, as_json: bool) -> None:
    """Quantize, and print the folder's name, or as JSON what is in it. Raises InputError."""
    policy = read_policy(Path(options.policy)) if options.policy is not None else Policy()
    model, output = open_model(options.model, options.revision), Path(options.output)
    job = prepare(
        model,
        format=options.format,
        dialect=options.dialect,
        group=options.group,
        policy=with_defaults(policy, kept_layers_of(model.config, options.format)),
    )
    check_output(job, output, overwrite=options.overwrite)
    said = {
        "output": str(output),
        **job.description,
        "quantized": list(job.modules),
        "source_bytes": job.source_bytes,
        "bytes": job.bytes,
    }
    remark(
        f"{model.name}: {len(job.modules)} matrices in {job.format.name} ({job.row.dialect}), "
        f"{job.source_bytes / 1e9:.3g} GB become {job.bytes / 1e9:.3g} GB"
    )
    try:
        with Display() as display:
            write(job, output, display.show, overwrite=options.overwrite)
    except KeyboardInterrupt:
        tell(f"finished files are kept in {part_of(output)}: the same command goes on with them")
        raise
    print(json.dumps(said, indent=2) if as_json else printable(output))
