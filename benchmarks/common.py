"""What every benchmark shares: timing, the environment's description, and the result file."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from cosmos3_core.checkpoint.model import Model, Weights
from cosmos3_core.checkpoint.tensors import TensorFiles
from cosmos3_core.contract import Backend, Device, Memory
from cosmos3_core.files.atomic import atomic
from cosmos3_core.files.digests import sha256_files, sha256_json
from cosmos3_core.quant import FORMATS
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.defaults import PROFILES

Name = TypeVar("Name")


def request_of(model: Model, work: str, **given: Any) -> requests.Request:
    """A picture or a video of WIDTHxHEIGHTxFRAMES from text; what is not `given` is the first profile's."""
    width, height, frames = work.split("x")
    task = "t2i" if frames == "1" else "t2v"
    given |= {"task": task, "prompt": "(random)", "size": f"{width}x{height}", "frames": int(frames)}
    return requests.resolve(given, PROFILES[0], model.facts, pick_seed=lambda: 0)[0]


def served(backend: Backend, arch: str) -> list[str]:
    """The formats of linear weights that kernels of a backend have on an architecture."""
    rows = [row for row in backend.kernels if row.op == "pack_linear" and arch in row.arch]
    names = dict.fromkeys(name for row in rows for name in row.formats)
    return [name for name in names if name in FORMATS]


class TransformerWeights(Weights):
    """As `Weights`, of a transformer alone: `files` has its `tensors` by canonical name and can `read` them."""

    def __init__(self, model: Model, files: Any):
        self.model, self.transformer = model, files
        self.vae_files = TensorFiles(model.repository, "vae", {})
        self.raw_names = {name: name for name in files.tensors}


def waiting(memory: Memory, device: torch.device | str) -> Callable[[], None]:
    """What waits until the device has done everything it was given."""
    return partial(memory.synchronize, torch.device(device))


def seconds(function: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Wall time of one call, the device idle before and after: `wait` sees to that."""
    wait()
    begin = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - begin


def alternate(
    contestants: dict[Name, Callable[[], Any]], wait: Callable[[], None], repeats: int
) -> dict[Name, dict[str, Any]]:
    """Time all contestants in turn, round after round, so that a change in the machine's load meets all of them alike.

    The caller has warmed them up; `wait` as of `seconds`. Per contestant: the median and all rounds, in seconds.
    """
    rounds: dict[Name, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            rounds[name].append(seconds(function, wait))
    return {name: {"median_s": statistics.median(times), "rounds_s": times} for name, times in rounds.items()}


def environment(torch_device: str, found: Device) -> dict[str, Any]:
    """Device, versions, sources and command: what a reader needs to run the same again."""
    name = _cpu_name() if torch_device == "cpu" else torch.get_device_module(torch_device).get_device_name()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    versions = {"python": platform.python_version(), "torch": version("torch")}
    if find_spec("diffusers"):
        versions["diffusers"] = version("diffusers")
    return {
        "device": name,
        "threads": torch.get_num_threads() if torch_device == "cpu" else None,
        "versions": versions | dict(found.versions),
        "sources_sha256": sources(),
        "command": " ".join(["python", "-m", spec.name if spec else "benchmarks", *_without_out(sys.argv[1:])]),
    }


def _without_out(arguments: list[str]) -> list[str]:
    """Where the result went is the machine's business."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


def sources() -> str:
    """Of core, backends and benchmarks, launch tables included: a lent machine has the working tree and no history."""
    root = Path(__file__).parents[1]
    folders = ("cosmos3_core", *(f"backends/{path.name}" for path in root.glob("backends/*")), "benchmarks")
    files = {file for folder in folders for kind in ("py", "toml") for file in (root / folder).rglob(f"*.{kind}")}
    return sha256_json(sha256_files(files, root))


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report(result: dict[str, Any], out: Path | None, *, quiet: bool = False) -> None:
    """Print the result, unless `quiet`, and write it where `out` says."""
    text = json.dumps(result, indent=2)
    if not quiet:
        print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic(out) as half:  # who is stopped while writing leaves the results that were there
            half.write_text(text + "\n")


def report_all(
    benchmark: str, args: argparse.Namespace, results: list[dict[str, Any]], torch_device: str, found: Device
) -> None:
    """`report` of several results under one command's settings."""
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    made_with = environment(torch_device, found)
    report({"benchmark": benchmark, "settings": settings, "results": results, "environment": made_with}, args.out)
