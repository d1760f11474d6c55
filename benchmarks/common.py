"""What every benchmark shares: timing, the environment's description, and the result file."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def seconds(function: Callable[[], Any], device: str) -> float:
    """Wall time of one call, the device idle before and after."""
    synchronize(device)
    begin = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - begin


def alternate(
    contestants: dict[str, Callable[[], Any]], device: str, repeats: int, warmups: int = 1
) -> dict[str, dict]:
    """Time all contestants in turn, round after round, so that a change in the machine's load meets all of them alike.

    Per contestant: the median and all rounds, in seconds.
    """
    for function in contestants.values():
        for _ in range(warmups):
            function()
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            rounds[name].append(seconds(function, device))
    return {name: {"median_s": statistics.median(times), "rounds_s": times} for name, times in rounds.items()}


def environment(device: str) -> dict[str, Any]:
    """Device, versions, commit and command: what a reader needs to run the same again."""
    name = _cpu_name() if device == "cpu" else torch.get_device_module(device).get_device_name()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return {
        "device": name,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("torch", "diffusers")},
        "commit": commit or None,
        "command": " ".join(["python", "-m", spec.name if spec else "benchmarks", *sys.argv[1:]]),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report(result: dict[str, Any], out: Path | None) -> None:
    """Print the result, and write it where `out` says."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
