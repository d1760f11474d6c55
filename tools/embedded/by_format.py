"""The evaluation of the embedded model in every format that a backend's kernels have on this device.

    python -m tools.embedded.by_format --backend cuda --jobs 8 [--depth full] [--out tools/embedded/by_format.json]

Each format is a `cosmos3 evaluate` of its own, several at once, quantized while loading; those with a stored scale of
their inputs are checkpoints that are calibrated and written first. Beside the measures it has how far the velocity's
error lies beyond that in bf16: the mean over the same clips, noise and noise levels. What failed is in the file with
its last line. The page shows every tools/embedded/by_format*.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import served
from cosmos3_core.plan import choose_backend

from .stored import STORED, stored

OUT = Path(__file__).with_name("by_format.json")
NONE = "none"
"""The model as it is."""
VELOCITY = "velocity", "error"


def evaluated(format: str, backend: str, depth: str, checkpoint: Path | None) -> dict[str, Any]:
    """What `cosmos3 evaluate --json` printed, or the last line of what it said."""
    asked = ["--model", str(checkpoint)] if checkpoint else ["--format", format] if format != NONE else []
    main = "from cosmos3_core.cli import main; main()"
    command = [sys.executable, "-c", main, "evaluate", "--backend", backend, "--depth", depth, "--json", *asked]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{format}: exit code {done.returncode}, {time.monotonic() - begun:.0f} s", flush=True)
    if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
        return {"format": format, "failed": (done.stderr.strip() or "no output").splitlines()[-1]}
    found = json.loads(done.stdout)
    del found["cases"]  # megabytes, with every clip
    return {"format": format} | found | ({"model": checkpoint.name} if checkpoint else {})


def error_of(result: dict[str, Any]) -> float:
    """The velocity's, of one evaluation."""
    (found,) = (one["value"] for one in result["measures"] if (one["task"], one["measure"]) == VELOCITY)
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--format", action="append", default=[], help="all of them")
    parser.add_argument("--depth", choices=["quick", "full"], default="full")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    backend, device, _ = choose_backend(args.backend)
    formats = args.format or served(backend, device.arch)
    results: list[dict[str, Any]] = []

    def add(format: str) -> None:
        results.append(evaluated(format, args.backend, args.depth, checkpoints.get(format)))
        args.out.write_text(json.dumps({"depth": args.depth, "formats": results}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        checkpoints = stored(Path(folder), args.backend) if STORED.intersection(formats) else {}
        list(pool.map(add, [NONE, *formats]))


if __name__ == "__main__":
    main()
