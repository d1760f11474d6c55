"""`cosmos3 backends`: what is installed, what each backend found here, and its kernels."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ..plan.cost.units import GIB
from ..settle import questions
from ..settle.questions import WANT
from .terminal import printable

COLUMNS = ("op", "kernel", "dtypes", "formats", "notes, or why not")


def show(disabled: Collection[str], as_json: bool) -> None:
    """Print one block for every installed backend. Raises InputError for an unknown name in `disabled`."""
    described = questions.backends(disabled)
    if as_json:
        print(json.dumps(described, indent=2, default=str))
    else:
        print("\n\n".join(_block(backend) for backend in described))
        print(f"\n* chosen for {WANT.dtype} and Cosmos3-Nano's attention")


def _block(report: dict[str, Any]) -> str:
    """One backend as text: a line on its state, the device, and a table of its rows."""
    reason = f": {report['reason']}" if "reason" in report else ""
    lines = [f"{report['name']}  {report['package']} {report['version']}  {report['state']}{reason}"]
    if "device" in report:
        lines.append(f"  {_device(report['device'])}")
    if report.get("formats"):
        lines.append(f"  brings the formats {', '.join(report['formats'])}")
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
