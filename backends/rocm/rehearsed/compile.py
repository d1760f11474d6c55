"""Compile every row of our kernels for every architecture that it names, and write docs/rocm-kernels.md:

    python -m rehearsed.compile [--arch ARCH ...] [--out FILE] [--seconds 240]

Exit code 1 where a kernel fails a gate; the page is written then, too, and says what failed. Each row is compiled in a
process of its own, which is killed after so many seconds: a compiler that ends the process is a failure by name. What
was compiled of these sources is kept in build/rehearse-rocm, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from . import page
from .calls import Case, cases_of
from .gates import PRODUCTS, faults
from .launched import Launched, launched

SECONDS = 240
KEPT = page.ROOT / "build" / "rehearse-rocm"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel, of the row and format that first launched it, and what is wrong with it."""

    case: str
    found: Launched
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """Of an architecture: its kernels, each once, how many rows in a format launch them, and what failed by name."""

    arch: str
    kernels: tuple[Kernel, ...]
    cases: int
    failed: tuple[str, ...]


def _compile(case: Case, pipe: Connection) -> None:
    try:
        pipe.send(launched(case.arch, case.call))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def compiled(case: Case, seconds: float) -> list[Launched] | str:
    """What the row launches, or why it could not be compiled."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(case, there))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(seconds) else f"took more than {seconds:g} s"
    except EOFError:
        found = "the compiler ended the process"
    process.kill()
    process.join()
    return found


class Kept:
    """A file with a line for every row in a format that was compiled for an architecture."""

    def __init__(self, arch: str):
        self.path = KEPT / page.digest()[:16] / f"{arch}.jsonl"
        self.found: dict[str, list[Launched] | str] = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            name, found = json.loads(line)
            self.found[name] = found if isinstance(found, str) else [Launched(**one) for one in found]

    def of(self, case: Case, seconds: float) -> list[Launched] | str:
        if case.name not in self.found:
            self.found[case.name] = found = compiled(case, seconds)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                json.dump([case.name, found if isinstance(found, str) else list(map(asdict, found))], file)
                file.write("\n")
            print(f"{case.arch} {case.name}: {found if isinstance(found, str) else len(found)}", flush=True)
        return self.found[case.name]


def results(arch: str, seconds: float) -> Result:
    """A kernel that several rows launch is listed once: what it is compiled of tells it from others."""
    kernels: dict[str, Kernel] = {}
    failed, cases, kept = [], 0, Kept(arch)
    for case in cases_of(arch):
        cases += 1
        found = kept.of(case, seconds)
        if isinstance(found, str):
            failed.append(f"{case.name}: {found}")
            continue
        for one in found:
            if one.key not in kernels:
                kernels[one.key] = Kernel(case.name, one, tuple(faults(one, arch, case.format)))
                failed += [f"{case.name}, {one.kernel}: it {fault}" for fault in kernels[one.key].faults]
    return Result(arch, tuple(kernels.values()), cases, tuple(failed))


def told(result: Result) -> Iterator[str]:
    for problem in result.failed:
        yield f"{result.arch}: {problem}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=tuple(PRODUCTS), default=tuple(PRODUCTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one row")
    parser.add_argument("--out", type=Path, default=page.PAGE)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # nothing is found compiled, so that every time is one of compiling
        found = [results(arch, args.seconds) for arch in args.arch]
    page.write(found, args.out)
    problems = [line for result in found for line in told(result)]
    print("\n".join(problems) or f"{args.out}: every kernel passes", flush=True)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
