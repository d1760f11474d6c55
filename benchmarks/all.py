"""Every measurement of one device anew, the most valuable first.

    python -m benchmarks.all --backend cuda --list
    python -m benchmarks.all --backend cuda --resume --seconds 500

Each job is a command of its own, whose result lies in --results (benchmarks/results) under the job's name and the
device's. `--list` prints the jobs, each with the seconds that it takes on an H200 and whether its result is of today's
sources. `--resume` leaves those out that are. With `--seconds` no job begins that would not end in time. A job that
fails is named at the end, its last line beside it, and keeps its old result; the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cosmos3_core.plan import choose_backend

from .common import sources

RESULTS = Path(__file__).parent / "results"
STEP = "benchmarks.step --peer diffusers --model nano --dtype bfloat16 --tolerance 0.1 --backend {backend}"
QUANTIZED, RESIDENCY = "benchmarks.quantized --backend {backend}", "benchmarks.residency --backend {backend} --job"
FIRST, MORE, REST, LAST, STATIC = (
    " ".join(f"--format {name}" for name in names.split())
    for names in (
        "fp8 w4a16 int8 mxfp8 nvfp4a16 fp8_block mxfp4a16 w4a16_asym",
        "nf4 w4a8 nvfp4 int8a16 fp8a16 mxfp4 w4afp8 fp8_tensor q4_0 q8_0",
        "mxfp4a8",
        "fp8_e5m2",
        "fp8_static int8_static",
    )
)
FP8 = "pack_linear=fp8,attention=fp8"
WRITTEN = "# Written by scripts/card_recipes.py."
CARDS = Path(__file__).parents[1] / "backends" / "cuda" / "cosmos3_cuda" / "recipes"


def cards(pattern: str) -> str:
    """Those of scripts/card_recipes.py's recipes that fit their cards, each in its card's memory on this device."""
    texts = {path.stem: path.read_text("utf-8") for path in sorted(CARDS.glob(pattern))}
    names = (name for name, text in texts.items() if WRITTEN in text and 'state = "unsupported"' not in text)
    return f"benchmarks.residency --backend {{backend}} {' '.join(f'--recipe {name}' for name in names)}"


@dataclass(frozen=True)
class Job:
    """`command` is a module with its arguments, in which {backend} is the backend's name; `costs` seconds on an H200,
    loading and compiling included."""

    name: str
    costs: int
    command: str

    def file(self, results: Path, device: str) -> Path:
        return results / f"{self.name}-{device}.json"

    def fresh(self, results: Path, device: str, today: str) -> bool:
        """Whether its result is of these sources."""
        file = self.file(results, device)
        return file.exists() and json.loads(file.read_text())["environment"]["sources_sha256"] == today


JOBS = (
    Job("step-nano-t2i-1024", 45, f"{STEP} --work 1024x1024x1 --repeats 9 --format pack_linear=fp8"),
    Job(
        "step-nano-video",
        120,
        f"{STEP} --work 1280x720x189 --work 832x480x93 --guidance 1 --repeats 2 --format {FP8}",
    ),
    Job("vae-720p189", 60, "benchmarks.vae --backend {backend} --size 1280x720 --frames 189 --repeats 2"),
    Job("memory-nano", 60, "benchmarks.memory --backend {backend} --job 832x480x93 --job 1280x720x189"),
    Job("attention-nano", 60, "benchmarks.attention --backend {backend}"),
    Job("gemm-nano", 60, "benchmarks.gemm --backend {backend}"),
    Job("formats-nano-outliers", 25, "benchmarks.formats --backend {backend}"),
    Job(
        "gemm-nano-packed",
        45,
        "benchmarks.gemm --backend {backend} --rows 1 64 4096 30000 --repeats 3 "
        "--formats fp8 fp8_static w4a16 w4a16_asym nvfp4a16 mxfp8 int8a16",
    ),
    Job("e2e-nano-720p189-fp8", 170, f"benchmarks.e2e --backend {{backend}} --cold-steps 1 --format {FP8}"),
    Job("scenarios-policy-nano-fp8", 60, "benchmarks.scenarios --backend {backend} --only policy --repeats 15"),
    Job("scenarios-sound-nano-fp8", 60, "benchmarks.scenarios --backend {backend} --only sound"),
    Job("quantized-nano", 370, f"{QUANTIZED} {FIRST}"),
    Job("quantized-nano-more", 520, f"{QUANTIZED} {MORE}"),
    Job("quantized-nano-rest", 150, f"{QUANTIZED} {REST}"),
    Job("quantized-nano-last", 150, f"{QUANTIZED} {LAST}"),
    Job("quantized-nano-static", 200, f"{QUANTIZED} {STATIC}"),
    Job("residency-nano-bf16", 75, f"{RESIDENCY} nano-bf16"),
    Job("residency-nano-fp8", 60, f"{RESIDENCY} nano-fp8"),
    Job("residency-nano-fp8-8gib", 35, f"{RESIDENCY} nano-fp8-8gib"),
    Job("residency-super-t2i-fp8-80gib", 45, f"{RESIDENCY} super-t2i-fp8-80gib"),
    Job("residency-super-fp8-24gib", 190, f"{RESIDENCY} super-fp8-24gib"),
    Job("residency-cards-nano", 160, cards("nano-*-rtx*.toml")),
    Job("residency-cards-super-t2i", 80, cards("super-t2i-*-rtx*.toml")),
    Job("residency-cards-super-480p", 90, cards("super-t2v-832x480-*-rtx*.toml")),
    Job("residency-cards-super-720p", 210, cards("super-t2v-1280x720-*-rtx*.toml")),
    Job(
        "accuracy-nano-outliers",
        200,
        "benchmarks.accuracy --backend {backend} --work 832x480x93 --steps 8 --outliers --sweep "
        f"--format pack_linear=fp8 --format attention=fp8 --format {FP8} --format pack_linear=fp8_block",
    ),
    Job("e2e-nano-720p189", 230, "benchmarks.e2e --backend {backend} --cold-steps 1"),
)
"""In the order of what their results are worth: what the README says comes first."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS], default=[], help="only these")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--resume", action="store_true", help="leave out what is of today's sources")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing that would take longer")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def slug(device: str) -> str:
    """A device's name in a file's: "NVIDIA H200" is h200, "NVIDIA H100 80GB HBM3" h100."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    named = [word for word in words if re.search(r"\d", word) and not word.endswith("gb")]
    return named[0] if named else "-".join(words)


def run(job: Job, backend: str, file: Path) -> str:
    """Why it failed, or "". The file is replaced by a whole result alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    command = [sys.executable, "-m", *job.command.format(backend=backend).split(), "--out", str(new)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        new.unlink(missing_ok=True)
        return ([f"exit code {done.returncode}", *done.stderr.strip().splitlines()])[-1]
    new.replace(file)
    return ""


def chosen(jobs: Iterable[Job], left: float) -> list[Job]:
    """Those that fit into the time that is left, one after another."""
    found = []
    for job in jobs:
        if job.costs <= left:
            found.append(job)
            left -= job.costs
    return found


def main() -> None:
    args, begun = arguments(), time.monotonic()
    _, found, _ = choose_backend(args.backend)
    device, today = slug(found.name), sources()
    asked = [job for job in JOBS if not args.job or job.name in args.job]
    fresh = {job for job in asked if job.fresh(args.results, device, today)}
    waiting = [job for job in asked if job not in fresh or not args.resume]
    picked = chosen(waiting, args.seconds)
    for job in asked:
        state = "of today's sources" if job in fresh else "to be measured"
        print(f"{job.name:<26} {job.costs:>4} s  {state}{'' if job in picked else ', not now'}", flush=True)
    print(f"{sum(job.costs for job in picked)} s in all on {found.name}", flush=True)
    failed = {}
    for job in () if args.list else picked:
        if job.costs > args.seconds - (time.monotonic() - begun):
            print(f"{job.name}: no time is left for it", flush=True)
            continue
        started = time.monotonic()
        if why := run(job, args.backend, job.file(args.results, device)):
            failed[job.name] = why
        print(f"{job.name}: {why or 'done'}, {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        raise SystemExit("\n".join(f"{name} failed: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    main()
