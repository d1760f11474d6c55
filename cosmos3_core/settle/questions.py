"""What can be asked without a request: which backends are here, and what a model takes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..checkpoint.model import describe
from ..contract import FORMATTED, OPS, Unavailable
from ..plan import Want, resolve
from ..plan.choice import rows
from ..plan.discovery import BUILT_IN, Found, Rejected, conflict, installed, load, probe
from ..plan.resolve import DTYPES, why_not
from ..plan.survey import sentence
from ..quant import FORMATS
from ..scenarios import capabilities as of_requests

WANT = Want("bfloat16", heads=32, kv_heads=8, head_dim=128)
"""What the kernels are chosen for here: Cosmos3-Nano's attention."""


def backends(disabled: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every installed backend as JSON. Raises InputError for an unknown name in `disabled`."""
    enabled = installed(disabled)
    return [_describe(found, found.name in enabled) for found in installed().values()]


def capabilities(model: str, profile: str) -> dict[str, Any]:
    """What can be asked of a model, and in which dtypes and formats there may be kernels for it. Raises InputError."""
    found = describe(model)
    return of_requests.capabilities(found.facts, profile, found.config.action_dim) | {
        "dtypes": {"checkpoint": found.dtype, "names": list(DTYPES)},
        "formats": {"ops": list(FORMATTED), "names": list(FORMATS)},
    }


def _describe(found: Found, enabled: bool) -> dict[str, Any]:
    """One backend as JSON. Whatever is wrong with a package becomes its state, so that it hides no other."""
    report: dict[str, Any] = {"name": found.name, "package": found.package, "version": found.version}
    if not enabled:
        return report | {"state": "disabled", "reason": "COSMOS3_DISABLE_BACKENDS names it"}
    try:
        backend = load(found.name)
    except Rejected as error:
        return report | {"state": error.state, "reason": str(error)}
    report |= {"state": "available"}
    if found.name == BUILT_IN and (double := conflict(found)):
        report["reason"] = str(double)
    chosen, refused = {}, {}
    try:
        device = probe(backend)
        report["device"] = vars(device) | {"versions": dict(device.versions)}
        plan = resolve(WANT, backend, device)
        chosen = {choice.op: choice.kernel for choice in plan.choices}
        refused = {row: why_not(row, WANT, device) for op in OPS for row in rows(backend, op)}
    except Unavailable as error:
        report |= {"state": "unavailable", "reason": sentence(error)}
    except Rejected as error:
        report |= {"state": error.state, "reason": str(error)}
    report["kernels"] = [
        {key: getattr(row, key) for key in ("op", "name", "arch", "dtypes", "formats", "needs", "notes")}
        | {"chosen": row is chosen.get(op), "refused": refused.get(row)}
        for op in OPS
        for row in rows(backend, op)
    ]
    return report
