"""Devices as their backends know them, the plan of each for Cosmos3-Nano in bfloat16, and how several of them share a
video.

After a change of rows write the plans anew and read what `git diff tests/goldens` says:

python tests/devices.py --write
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import Backend, Device
from cosmos3_core.plan import Plan, Want, resolve
from cosmos3_core.plan.cost.units import GIB, ceiling_of
from cosmos3_core.plan.known import known_device
from cosmos3_core.settle import Wish, settle

ROOT = Path(__file__).parents[1]
PACKAGES = {path.parent.name: path.parent for path in sorted((ROOT / "backends").glob("*/pyproject.toml"))}
"""The folders of the in-tree backends, and of the kernels that they share, by name. They are put on the path here and
need not be installed."""
sys.path += [str(folder) for folder in PACKAGES.values() if str(folder) not in sys.path]

GOLDENS = ROOT / "tests" / "goldens"
NAMED = {
    "h100": ("cuda", "H100"),
    "rtx5090": ("cuda", "RTX 5090"),
    "gb10": ("cuda", "GB10"),
    "mi300x": ("rocm", "MI300X"),
    "mi350x": ("rocm", "MI350X"),
    "gfx1151": ("rocm", "gfx1151"),
    "rx9070": ("rocm", "RX 9070"),
    "ascend910b": ("npu", "Ascend 910B"),
    "ascend910c": ("npu", "Ascend 910C"),
    "ascend950": ("npu", "Ascend 950"),
    "b580": ("xpu", "Arc B580"),
    "b60": ("xpu", "Arc B60"),
}
"""Name of a device here: its backend, and its everyday name among those that the backend knows."""
HOST = Device(arch="x86_64", name="CPU", count=1, memory=64 * GIB, unified=True, versions={})


def backend(name: str) -> Backend:
    return reference.BACKEND if name == "reference" else import_module(f"cosmos3_{name}.plugin").cosmos3_backend()


def known(name: str, asked: str) -> Device:
    """Of a backend, by what one types behind --device. Raises InputError."""
    with patch("cosmos3_core.plan.known.load", lambda name, disabled: backend(name)):
        return known_device(asked, name, ())[1]


DEVICES = {key: (name, known(name, asked)) for key, (name, asked) in NAMED.items()} | {"cpu": ("reference", HOST)}
"""Name of a device: its backend and what `probe()` says on a machine with one."""


def plan_of(device: str) -> Plan:
    """The plan on a machine of that device with torch, what its build for that device brings, and no other kernel
    library, whatever is installed here."""
    want = Want.of(describe("nano").config, "bfloat16")
    name, found = DEVICES[device]
    brought = ("triton",) if name in ("cuda", "rocm", "xpu") else ()
    with (
        patch("importlib.util.find_spec", lambda package: package if package in brought else None),
        patch.dict(os.environ, clear=True),
    ):
        return resolve(want, backend(name), found)


COUNTS = 2, 4, 8, 16, 72
LAYOUTS = GOLDENS / "layouts.json"


def layouts(device: str, model: str) -> dict[str, str]:
    """How so many of a device share a video of 720p x 189 frames in the least time, where the parts of the model lie,
    and the seconds and the GiB that it takes, by their number."""
    name, one = DEVICES[device]
    found = {}
    for count in COUNTS:
        wish = Wish(model=model, described=True, partial=True, given={"task": "t2v"}, chooses=True)
        wish = replace(wish, devices=count, memory=one.memory, host_memory=count * 256 * GIB)
        with patch("importlib.util.find_spec", lambda package: None), patch.dict(os.environ, clear=True):
            settled = settle(wish, (backend(name), replace(one, count=count)))
        seconds = settled.estimate.seconds(ceiling_of(settled.plan.backend, settled.plan.device))
        time = f"{seconds['total']:.3g} s" if seconds else "unknown time"
        fits = "" if settled.fits else ", does not fit"
        peak = f"{settled.estimate.peak / GIB:.1f} GiB{fits}"
        found[str(count)] = f"{settled.plan.layout}; {settled.placement}; {time}, {peak}"
    return found


def golden(device: str) -> Path:
    return GOLDENS / f"plan-{device}.json"


def text_of(plan: Plan) -> str:
    return json.dumps(plan.to_json(), indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("type python tests/devices.py --write")
    for device in DEVICES:
        golden(device).write_text(text_of(plan_of(device)), "utf-8")
    shared = {model: {device: layouts(device, model) for device in DEVICES} for model in ("nano", "super")}
    LAYOUTS.write_text(json.dumps(shared, indent=2) + "\n", "utf-8")
