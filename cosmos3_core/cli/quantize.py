"""`cosmos3 quantize`: write a checkpoint with quantized weights."""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoint.quantize import Job
from ..checkpoint.writing import part_of
from ..evidence.quantizing.quantize import Asked, quantize
from .progress import Display
from .terminal import printable, remark, tell


def execute(asked: Asked, output: str, overwrite: bool, as_json: bool) -> None:
    """Quantize, and print the folder's name, or as JSON what is in it. Raises InputError and RunError."""
    path = Path(output)
    try:
        with Display() as display:
            said = quantize(asked, path, _remark, display.show, overwrite=overwrite)
    except KeyboardInterrupt:
        tell(f"finished files are kept in {part_of(path)}: the same command goes on with them")
        raise
    print(json.dumps(said, indent=2) if as_json else printable(path))


def _remark(job: Job) -> None:
    remark(
        f"{job.model.name}: {len(job.modules)} matrices in {job.format.name} ({job.row.dialect}), "
        f"{job.source_bytes / 1e9:.3g} GB become {job.bytes / 1e9:.3g} GB"
    )
