"""`cosmos3 backends`: what is installed, what each backend found here, and its kernels."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..contract import OPS, Unavailable
from ..plan import Want, resolve
from ..plan.choice import rows
from ..plan.cost.units import GIB
from ..plan.discovery import BUILT_IN, Found, Rejected, conflict, installed, load, probe
from ..plan.resolve import why_not
from ..plan.survey import sentence
from .terminal import printable

WANT = Want("bfloat16", heads=32, kv_heads=8, head_dim=128)
"""What the kernels are chosen for here: Cosmos3-Nano's attention."""
COLUMNS = ("op", "kernel", "dtypes", "formats", "notes, or why not")


def show(disabled: Collection[str], as_json: bool) -> None:
    """Print one block for every installed backend. Raises InputError for an unknown name in `disabled`."""
    enabled = installed(disabled)
    described = [_describe(found, found.name in enabled) for found in installed().values()]
    if as_json:
        print(json.dumps(described, indent=2, default=str))
    else:
        print("\n\n".join(_block(backend) for backend in described))
        print(f"\n* chosen for {WANT.dtype} and Cosmos3-Nano's attention")


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


def _block(report: dict[str, Any]) -> str:
    """One backend as text: a line on its state, the device, and a table of its rows."""
    reason = f": {report['reason']}" if "reason" in report else ""
    lines = [f"{report['name']}  {report['package']} {report['version']}  {report['state']}{reason}"]
    if "device" in report:
        lines.append(f"  {_device(report['device'])}")
    kernels = report.get("kernels", [])
    if not kernels:
        return "\n".join(map(printable, lines))
    table = [COLUMNS] + [
        (
            row["op"],
            row["name"] + ("*" if row["chosen"] else ""),
            " ".join(row["dtypes"]),
            " ".join(row["formats"]),
            f"refused: {row['refused']}" if row["refused"] else row["notes"],
        )
        for row in kernels
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        lines.append(f"    {padded}".rstrip())
    return "\n".join(map(printable, lines))


def _device(device: dict[str, Any]) -> str:
    memory = f"{device['memory'] / GIB:.1f} GiB" + (" shared with the host" if device["unified"] else "")
    versions = [f"{name} {version}" for name, version in device["versions"].items()]
    return ", ".join([f"{device['count']}x {device['name']} ({device['arch']})", memory, *versions])
