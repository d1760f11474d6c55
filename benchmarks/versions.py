"""This checkout and an older one: the same benchmark, run by each in turn, in processes of its own.

    python -m benchmarks.versions --old ../old step --peer diffusers --backend cuda --model nano --work 1280x720x189

What follows the benchmark's name are its own options, which both understand. Every checkout has its `.venv`. The
benchmark compares each with its peer before it times it. Errors that are equal to the last digit speak for equal bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .common import report

HERE = Path(__file__).parents[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="the older checkout")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each")
    parser.add_argument("--out", type=Path)
    parser.add_argument("benchmark", choices=["step", "vae"])
    parser.add_argument("options", nargs=argparse.REMAINDER)
    return parser.parse_args()


def run(checkout: Path, python: str | Path, args: argparse.Namespace) -> dict[str, Any]:
    """The benchmark's result."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [python, "-m", f"benchmarks.{args.benchmark}", *args.options, "--out", out]
        subprocess.run(command, cwd=checkout, check=True)
        return json.loads(out.read_text())


def works(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What was timed: a benchmark with one work has no list of them."""
    return result.get("results", [result])


def compared(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, Any]:
    """One work in all rounds."""
    sides = {"old": old, "new": new}
    rounds = {
        side: [t for one in found for t in one["seconds"]["cosmos3"]["rounds_s"]] for side, found in sides.items()
    }
    times = {side: {"median_s": statistics.median(all_s), "rounds_s": all_s} for side, all_s in rounds.items()}
    shared: dict[str, Any] = {key: new[0][key] for key in ("work", "formats", "tokens") if key in new[0]}
    errors = [key for key in new[0] if key.startswith("relative_error")]
    return {
        **shared,
        "kernels": {side: found[0]["kernels"] for side, found in sides.items()},
        **{key: {side: [one[key] for one in found] for side, found in sides.items()} for key in errors},
        "seconds": times,
        "ratio": times["new"]["median_s"] / times["old"]["median_s"],
    }


def in_turn(rounds: int) -> Iterable[str]:
    """New, old, old, new, ...: a drift of the device meets both alike."""
    for number in range(rounds):
        yield from ("new", "old") if number % 2 == 0 else ("old", "new")


def main() -> None:
    args = arguments()
    places = {"old": (args.old, args.old.resolve() / ".venv" / "bin" / "python"), "new": (HERE, sys.executable)}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in places}
    for side in in_turn(args.rounds):
        found[side].append(run(*places[side], args))
    by_work = [
        compared([works(one)[i] for one in found["old"]], [works(one)[i] for one in found["new"]])
        for i in range(len(works(found["new"][0])))
    ]
    for one in by_work:
        print(
            one.get("work", args.benchmark), one.get("formats", ""), f"{one['ratio']:.3f} of the old time", flush=True
        )
    settings = {"measures": args.benchmark, **found["new"][0]["settings"]}
    environment = found["new"][0]["environment"] | {"old": found["old"][0]["environment"]}
    report({"benchmark": "versions", "settings": settings, "results": by_work, "environment": environment}, args.out)


if __name__ == "__main__":
    main()
