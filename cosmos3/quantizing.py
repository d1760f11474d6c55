"""Quantized checkpoints, and what to keep out of them, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos3_core.contract import InputError
from cosmos3_core.evidence.quantizing.quantize import Asked
from cosmos3_core.evidence.quantizing.quantize import quantize as written
from cosmos3_core.evidence.quantizing.sweep import Budget
from cosmos3_core.evidence.quantizing.sweep import sweep as measured
from cosmos3_core.spelling import shown

from .pipeline import MODEL, plainly
from .questions import as_json, check_switch, path_of
from .runs import Progress, check_callable
from .words import QUANTIZE, as_arguments, bound


@as_arguments(QUANTIZE)
@bound
@plainly
def quantize(
    model: str | os.PathLike[str] = MODEL,
    output: str | os.PathLike[str] | None = None,
    *,
    format: str,
    dialect: str | None = None,
    group: int | None = None,
    policy: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    method: str = "nearest",
    calibrate: str | os.PathLike[str] | Sequence[str] | None = None,
    sweep: str | os.PathLike[str] | None = None,
    keep_share: float | None = None,
    max_error: float | None = None,
    backend: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Write a checkpoint with quantized weights to the folder `output`, or a policy to the file `sweep`, as `cosmos3
    quantize` does: docs/quantization.md. Returns what that prints with --json.

    `format` is one that a `dialect` has; None is the first that has it. `group` input features share a scale. `policy`
    says which modules stay: a TOML file, or its keys. `method` "gptq" and the format "fp8_static" take `calibrate`: a
    list of prompts, a text file of them, one on each line, "world", or the statistics that an earlier call saved. The
    prompts run on `backend` with the request fields `fields`. A sweep keeps at most `keep_share` of the bytes, or what
    brings the velocity error below `max_error`. `progress` is told a stage, how many of its parts are done, and of how
    many. Stopped or killed, the same call goes on. Raises InputError before a weight is read, and RunError.
    """
    check_switch("overwrite", overwrite)
    check_callable("progress", progress, 3)
    if (output is None) == (sweep is None):
        found = "neither is given" if output is None else "both are given"
        raise InputError("`output` and `sweep`", found, "Give `output` for a checkpoint, or `sweep` for a policy")
    asked = Asked(
        model=path_of("model", model),
        format=_text("format", format),
        revision=revision,
        dialect=None if dialect is None else _text("dialect", dialect),
        group=_whole("group", group),
        policy=policy if policy is None or isinstance(policy, Mapping) else path_of("policy", policy),
        method=_text("method", method),
        calibrate=_calibrate(calibrate),
        given={name: value for name, value in fields.items() if value is not None},
        backend=backend,
    )
    budget = Budget(share=_number("keep_share", keep_share), error=_number("max_error", max_error))
    show = progress or (lambda stage, done, total: None)
    if sweep is not None:
        return as_json(measured(asked, budget, Path(path_of("sweep", sweep)), show, overwrite=overwrite))
    budget.check_none()
    path = Path(path_of("output", output))
    return as_json(written(asked, path, lambda job: None, show, overwrite=overwrite))


def _calibrate(value: Any) -> str | tuple[str, ...] | None:
    """Prompts, or the name of their file."""
    if value is None or not isinstance(value, list | tuple):
        return None if value is None else path_of("calibrate", value)
    if wrong := next((one for one in value if not isinstance(one, str)), None):
        found = f"{shown(wrong)} is no prompt"
        raise InputError("`calibrate`", found, "Give a list of texts", "calibrate")
    return tuple(value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise InputError(f"{name} = {shown(value)}", "it is not text", f"Pass {name} as a string", name)


def _whole(name: str, value: Any) -> int | None:
    if value is None or type(value) is int:
        return value
    raise InputError(f"{name} = {shown(value)}", "it is no whole number", f"Pass {name} as an int", name)


def _number(name: str, value: Any) -> float | None:
    if value is None or type(value) in (int, float):
        return value
    raise InputError(f"{name} = {shown(value)}", "it is no number", f"Pass {name} as a float", name)
