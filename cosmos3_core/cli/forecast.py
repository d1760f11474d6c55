"""What `cosmos3 plan --device all` prints: a line for every device that an installed package knows."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any, NoReturn

from ..contract import InputError
from ..plan.cost.units import GIB, ceiling_of
from ..plan.placement import PARTS
from ..settle import Settled, Wish
from ..settle.forecasts import Forecast, forecasts
from .plan import FORECAST, in_options
from .terminal import printable

COLUMNS = (
    "device",
    "backend",
    "GiB",
    "peak",
    "fits",
    "s a step",
    "s in all",
    "towers, codecs",
    "or",
)


def show_all(wish: Wish, *, as_json: bool) -> NoReturn:
    """Print the forecasts and exit: 0 where it fits on a device, 1 where on none. Raises InputError."""
    reports = [_report(one) for one in forecasts(wish)]
    if as_json:
        print(json.dumps(reports, indent=2))
    else:
        rows = [COLUMNS, *map(_row, reports)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"forecast: {FORECAST}")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print(printable("  ".join(cells).rstrip()))
    sys.exit(0 if any(report["fits"] for report in reports) else 1)


def _report(one: Forecast) -> dict[str, Any]:
    """As JSON. Where it cannot run, `refused` says why, and numbers are None."""
    device, found = one.device, one.settled
    report = {"forecast": True, "device": device.name, "arch": device.arch, "backend": one.backend.name}
    report |= {
        "memory": device.memory,
        "fits": False,
        "peak": None,
        "seconds": None,
        "kernels": None,
        "placement": None,
    }
    report |= {"refused": None, "nearest": []}
    if isinstance(found, InputError):
        return report | {"refused": f"{found.asked}: {found.found}"}
    return report | _numbers(found)


def _numbers(settled: Settled) -> dict[str, Any]:
    plan = settled.plan
    return {
        "memory": plan.device.memory,
        "fits": settled.fits,
        "peak": settled.estimate.peak,
        "seconds": settled.estimate.seconds(ceiling_of(plan.backend, plan.device)),
        "kernels": plan.to_json(settled.execution.tokens)["kernels"],
        "placement": asdict(settled.placement) | {"host_bytes": settled.estimate.host},
        "nearest": [in_options(change) for change in settled.nearest()],
    }


def _row(report: dict[str, Any]) -> tuple[str, ...]:
    seconds = report["seconds"] or {}
    times = [f"{seconds[name]:.3g}" if name in seconds else "unknown" for name in ("step", "total")]
    head = (report["device"], report["backend"], f"{report['memory'] / GIB:.1f}")
    if report["refused"]:
        return *head, "", "no", "", "", "", report["refused"]
    nearest = report["nearest"][0] if report["nearest"] else "" if report["fits"] else "nothing smaller fits"
    placed = ", ".join(report["placement"][part] for part in PARTS)
    return *head, f"{report['peak'] / GIB:.1f}", "yes" if report["fits"] else "no", *times, placed, nearest
