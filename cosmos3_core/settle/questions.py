"""What can be asked without a request: which backends are here, and what a model takes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ..checkpoint.model import describe
from ..contract import FORMATTED, OPS, Unavailable
from ..plan import Want, resolve
from ..plan import formats as registry
from ..plan.choice import rows
from ..plan.discovery import BUILT_IN, Found, Rejected, conflict, installed, load, probe
from ..plan.resolve import DTYPES, why_not
from ..plan.survey import sentence
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
        "formats": {"ops": list(FORMATTED)} | formats(),
    }


def formats() -> dict[str, Any]:
    """Every quantization format as JSON: the `names`, who brings each (`by`), what each is (`described`), and what is
    wrong with packages (`faults`). Imports the plugins of the installed backends, and the packages that bring
    formats."""
    backends = []
    for name in installed():
        with suppress(Rejected):  # `backends` tells what is wrong with it
            backends.append(load(name))
    listed, faults = registry.listed(backends)
    return {
        "names": list(listed),
        "by": {name: one.by for name, one in listed.items()},
        "described": {name: asdict(one.format) for name, one in listed.items()},
        "faults": [str(fault) for fault in faults],
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
    report["formats"] = [format.name for format in backend.formats]
    report["kernels"] = [
        {key: getattr(row, key) for key in ("op", "name", "arch", "dtypes", "formats", "needs", "notes")}
        | {"chosen": row == chosen.get(op), "refused": refused.get(row)}
        for op in OPS
        for row in rows(backend, op)
    ]
    return report
