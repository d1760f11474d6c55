"""`make stops`: runs of the tiny model that are stopped at random, and killed, in processes of their own.

200 by one to three signals out of SIGINT, SIGTERM and SIGHUP, at any time of the run, its saving and its decode
included, and 100 by SIGKILL. Each is gone on with, and has to end in the latents of a run that nobody disturbed. A run
is a fork of this process, which has torch and the weights in its memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_model import TINY_MODEL

from cosmos3_core import cli
from cosmos3_core.runs import keeping
from cosmos3_core.runs.generation import Generation

STEPS = 40
REQUEST = f"--model {TINY_MODEL} --size 512x320 --frames 5 --steps {STEPS} --seed 4 --backend reference".split()
STATE = "cup.mp4.state.safetensors"
EVERY = 0.1
"""Seconds between two savings here, where a run takes less than one; and what a saving may take of the time."""
SHARE = 0.5
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SEEN = struct.Struct("i6d")
LEEWAY = 0.02
"""Seconds between a step's end and the look whether it is time to save, on a machine that does other things, too."""


@dataclass
class Seen:
    """What a run writes down as it goes, for the process that stops it: the steps that are done and when the last was,
    how long the longest took, the seconds from one saving to the next, when the step of the last saving was done, and
    when the one under way began (0: none is)."""

    index: int = 0
    at: float = 0.0
    longest: float = 0.0
    interval: float = EVERY
    saved: float = 0.0
    began: float = 0.0
    last: float = 0.0
    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, SEEN.size))

    def note(self, **values: float) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        fields = (self.index, self.at, self.longest, self.interval, self.saved, self.began, self.last)
        self.memory[:] = SEEN.pack(*fields)

    def read(self) -> Seen:
        return Seen(*SEEN.unpack(self.memory[:]))


def watched(seen: Seen) -> None:
    """From now on runs of this process write down where they are."""
    step, save = Generation.step, keeping.Keeper._save
    done_at: dict[int, float] = {}

    def stepped(self):
        before = time.monotonic()
        done = step(self)
        done_at[done] = time.monotonic()
        longest = max(seen.longest, done_at[done] - before)
        seen.note(index=done, at=done_at[done], longest=longest, saved=seen.saved or before)
        return done

    def saving(self, path, kept, numbers, began):
        seen.note(began=began)
        save(self, path, kept, numbers, began)
        seen.note(began=0.0, interval=self.interval, saved=done_at[numbers["index"]])

    Generation.step, keeping.Keeper._save = stepped, saving


def fork(arguments: list[str], seen: Seen | None = None) -> int:
    """The process of `cosmos3 run ARGUMENTS`; what it says goes to the file `said`."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)  # OpenMP's threads are not there after a fork, and it would wait for them
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["cosmos3", "run", *arguments]
    code = 0
    try:
        if seen:
            watched(seen)
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def index_of(state: Path) -> int:
    """The steps that a stopped run has."""
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["cosmos3.state"])["numbers"]["index"]


class Stops:
    """`seconds` is how long an undisturbed run takes, and `truth` its latents."""

    def __init__(self, seed: int):
        self.random, self.counts, self.faults, self.late = random.Random(seed), Counter(), [], []
        sys.argv = ["cosmos3", "run", "a cup", *REQUEST, "-o", "warm.mp4"]
        cli.main()  # here, so that a fork has all modules and caches in memory
        seconds = []
        for _ in range(5):
            begin = time.monotonic()
            run = ["a cup", *REQUEST, "-o", "whole.mp4", "--save-latents", "whole.st", "--overwrite"]
            assert ended(fork(run)) == 0, said()
            seconds.append(time.monotonic() - begin)
        self.seconds, self.truth = sorted(seconds)[2], load_file("whole.st")["final.vision"]
        for name in os.listdir():
            os.unlink(name)

    def one(self, kind: str) -> None:
        """A run of this kind, stopped and gone on with, in an empty folder with the state of an earlier run."""
        Path(STATE).write_bytes(b"of an earlier run")
        seen = Seen()
        seen.note()
        child = fork(["a cup", *REQUEST, "-o", "cup.mp4"], seen)
        time.sleep(self.random.uniform(0.05, 1.05) * self.seconds)
        numbers = [signal.SIGKILL]
        if kind == "signals":
            numbers = [self.random.choice(STOPS) for _ in range(self.random.randint(1, 3))]
        for number in numbers:
            os.kill(child, number)
            if number is not numbers[-1]:
                time.sleep(self.random.choice([0.0, 0.001, 0.012, 0.05]))
        code, seen = ended(child), seen.read()
        state = Path(STATE.replace("state", "state-2"))
        kept = index_of(state) if state.exists() else 0
        self._judge(kind, numbers, code, seen, kept)
        self._go_on(kind, state)

    def _judge(self, kind: str, numbers: list[int], code: int, seen: Seen, kept: int) -> None:
        whole = Path("cup.mp4").exists()
        outcome = "finished before" if whole else f"stopped after {'some' if seen.index else 'no'} steps"
        self.counts[f"{kind}: {outcome}"] += 1
        names = [signal.Signals(number).name for number in numbers]
        if Path(STATE).read_bytes() != b"of an earlier run":
            self.faults.append(f"{names}: the state of an earlier run is gone")
        if kind == "killed" and not whole:
            lost = seen.at - seen.saved if seen.index > kept else 0.0
            allowed = seen.interval + seen.longest + (max(seen.at - seen.began, 0.0) if seen.began else 0.0)
            self.late.append((lost, seen.index - kept, allowed))
            if lost > allowed + LEEWAY:
                self.faults.append(f"{names}: lost {lost:.3f} s where {allowed:.3f} s are allowed: {seen}")
        if kind == "signals":
            if not whole and kept < seen.index:
                self.faults.append(f"{names}: {seen.index} steps were done and {kept} are kept: {said()}")
            if "Traceback" in said():
                self.faults.append(f"{names}: {said()}")
            if hidden := [name for name in os.listdir() if name.startswith(".")]:
                self.faults.append(f"{names}: left {hidden}, exit code {code}")

    def _go_on(self, kind: str, state: Path) -> None:
        """What is left is whole: the output, or a state that leads to it; afterwards nothing else is there."""
        if not Path("cup.mp4").exists() or not Path("cup.mp4.json").exists() or state.exists():
            resume = ["--resume", str(state)] if state.exists() else ["a cup", *REQUEST]
            code = ended(fork([*resume, "-o", "cup.mp4", "--save-latents", "cup.st", "--overwrite"]))
            if code or not torch.equal(load_file("cup.st")["final.vision"], self.truth):
                self.faults.append(f"{kind}: going on ended with {code}, and other latents: {said()}")
            else:
                self.counts[f"{kind}: gone on with, bit-equal"] += 1
        left = set(os.listdir()) - {"cup.mp4", "cup.mp4.json", "cup.st", STATE, "said"}
        if left:
            self.faults.append(f"{kind}: {sorted(left)} are left")
        for name in os.listdir():
            os.unlink(name)


def said() -> str:
    return Path("said").read_text() if Path("said").exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--killed", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keeping.EVERY, keeping.SHARE = EVERY, SHARE
    folder = tempfile.mkdtemp(prefix="cosmos3-stops-")
    os.chdir(folder)
    try:
        stops = Stops(asked.seed)
        begin = time.monotonic()
        for kind, count in (("signals", asked.signals), ("killed", asked.killed)):
            for _ in range(count):
                stops.one(kind)
        print(f"an undisturbed run takes {stops.seconds:.2f} s; all took {time.monotonic() - begin:.0f} s")
        for what, count in sorted(stops.counts.items()):
            print(f"{what}: {count}")
        if stops.late:
            seconds, steps, allowed = max(stops.late)
            print(f"most that a SIGKILL lost: {seconds:.3f} s of steps ({steps} steps; {allowed:.3f} s were allowed)")
            print(f"mean that a SIGKILL lost: {sum(steps for _, steps, _ in stops.late) / len(stops.late):.1f} steps")
        print("\n".join(stops.faults) or "no fault")
        sys.exit(bool(stops.faults))
    finally:
        os.chdir("/")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
