"""Devices as their backends' probes report them, and the plan of each for Cosmos3-Nano in bfloat16.

Put together from the vendors' documentation: the memory is nominal and the versions are examples, until somebody sends
what a probe says. After a change of rows write the plans anew and read what `git diff tests/goldens` says:

    python tests/devices.py --write
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import Backend, Device
from cosmos3_core.plan import Plan, Want, resolve
from cosmos3_core.plan.cost.units import GIB

ROOT = Path(__file__).parents[1]
PACKAGES = {path.parent.name: path.parent for path in sorted((ROOT / "backends").glob("*/pyproject.toml"))}
"""The folders of the in-tree backends, and of the kernels that they share, by name. They are put on the path here and
need not be installed."""
sys.path += [str(folder) for folder in PACKAGES.values() if str(folder) not in sys.path]

GOLDENS = ROOT / "tests" / "goldens"
CUDA = {"driver": "580.159.04", "torch": "2.11.0+cu130", "cuda": "13.0", "cudnn": "9.19.0"}
MEASURED = {"kernel launches": "NVIDIA H100 80GB HBM3, triton 3.6.0"}
DEFAULTS = {"kernel launches": "not measured"}
ROCM = {"torch": "2.11.0+rocm7.2", "hip": "7.2.53150"} | DEFAULTS
NPU = {"driver": "25.5.0", "torch": "2.13.0+cpu", "torch-npu": "2.13.0", "cann": "8.5.0"}
XPU = {"driver": "1.6.33578+38", "torch": "2.11.0+xpu", "oneapi": "20250303"} | DEFAULTS


def _device(arch: str, name: str, memory: int, versions: dict[str, str], unified: bool = False) -> Device:
    return Device(arch=arch, name=name, count=1, memory=memory, unified=unified, versions=versions)


DEVICES: dict[str, tuple[str, Device]] = {
    "h100": ("cuda", _device("sm_90", "NVIDIA H100 80GB HBM3", 80 * GIB, CUDA | MEASURED)),
    "rtx5090": ("cuda", _device("sm_120", "NVIDIA GeForce RTX 5090", 32 * GIB, CUDA | DEFAULTS)),
    "gb10": ("cuda", _device("sm_121", "NVIDIA GB10", 128 * 10**9, CUDA | DEFAULTS, unified=True)),
    "mi300x": ("rocm", _device("gfx942", "AMD Instinct MI300X", 192 * GIB, ROCM)),
    "mi350x": ("rocm", _device("gfx950", "AMD Instinct MI350X", 288 * 10**9, ROCM)),
    "gfx1151": ("rocm", _device("gfx1151", "Radeon 8060S Graphics", 96 * GIB, ROCM, unified=True)),
    "rx9070": ("rocm", _device("gfx1201", "AMD Radeon RX 9070", 16 * GIB, ROCM)),
    "ascend910b": ("npu", _device("Ascend910B", "Ascend910B3", 64 * GIB, NPU)),
    "ascend910c": ("npu", _device("Ascend910C", "Ascend910_9391", 64 * GIB, NPU)),
    "ascend950": ("npu", _device("Ascend950", "Ascend950PR_9589", 128 * 10**9, NPU)),
    "b580": ("xpu", _device("bmg-g21", "Intel(R) Arc(TM) B580 Graphics", 12 * GIB, XPU)),
    "b60": ("xpu", _device("bmg-g21", "Intel(R) Arc(TM) Pro B60 Graphics", 24 * GIB, XPU)),
    "cpu": ("reference", _device("x86_64", "CPU", 64 * GIB, {}, unified=True)),
}
"""Name of a device: its backend and what `probe()` says on a machine with one."""


def backend(name: str) -> Backend:
    return reference.BACKEND if name == "reference" else import_module(f"cosmos3_{name}.plugin").cosmos3_backend()


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


def golden(device: str) -> Path:
    return GOLDENS / f"plan-{device}.json"


def text_of(plan: Plan) -> str:
    return json.dumps(plan.to_json(), indent=2) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("type python tests/devices.py --write")
    for device in DEVICES:
        golden(device).write_text(text_of(plan_of(device)), "utf-8")
