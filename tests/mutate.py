"""Every fault of the fake device, planted one at a time, and what of the kit catches it.

    python tests/mutate.py [--write] [--rest] [FAULT or KIND ...]

Each fault has a process of its own, a fork of one that has computed the truths already. In it the kit's tests run over
the faulty backend until one fails: first those of the op that is at fault ("right"), then those of a whole step of the
transformer ("elsewhere").
`--write` keeps the outcome in tests/goldens/mutants.json, `--rest` leaves out what has one there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_tests import NAMED
from installed import forget, install

from cosmos3_core.testing.plugin import RECORD
from cosmos3_core.testing.subject import Subject

ROOT = Path(__file__).parents[1]
ACME = ROOT / "tests" / "fake_device"
ACME_MODULE = "cosmos3_acme"
INI = ROOT / "cosmos3_core" / "testing" / "alone.ini"
GOLDEN = ROOT / "tests" / "goldens" / "mutants.json"
SECONDS = 400
"""Which a fault may take."""
WHOLE = {
    "fault of the probe": ("probe",),
    "fault of the import": ("import", "rows_are_well"),
    "nothing served": ("serve", "architectures", "rows", "refusals"),
}
"""Tests that are right for faults of no op."""
WRITTEN = {
    "imports_torch": "fault of the import",
    "prints": "fault of the import",
    "import_takes_5_s": "fault of the import",
    "unknown_dtype": "fault of the import",
    "delegates_nothing": "fault of the import",
    "probe_raises": "fault of the probe",
    "probe_seeds": "fault of the probe",
    "probe_takes_5_s": "fault of the probe",
    "probe_switches_onednn_off": "fault of the probe",
    "probe_takes_interrupts": "fault of the probe",
    "probe_talks": "fault of the probe",
    "probe_logs_everything": "fault of the probe",
    "probe_leaves_a_thread": "fault of the probe",
    "probe_hangs_forks": "fault of the probe",
    "probe_leaves_a_file": "fault of the probe",
    "refuses_everything": "nothing served",
    "refuses_gates": "nothing served",
    "refuses_a_dtype": "nothing served",
    "refuses_a_format": "nothing served",
    "refuses_published_models": "nothing served",
    "refuses_after_a_while": "nothing served",
    "arch_misspelt": "nothing served",
    "arch_of_one_misspelt": "nothing served",
    "needs_what_nobody_has": "nothing served",
}
"""Faults of the plugin module, by kind."""
UNTRIED = "not tried"
"""What stands for a fault that has no outcome yet."""
WATCHED = Subject.watched.func
"""`Subject.watched` as the kit has it, in a process that imports everything anew."""
Keep = Callable[[str, dict[str, str]], None]
REFUSING = {"refuses_without_reason": "attention", "refuse_raises": "attention"}


def faults() -> dict[str, tuple[str, str]]:
    """(kind, op) by name; faults of no op have none."""
    path = list(sys.path)
    forget(ACME_MODULE)
    sys.path.insert(0, str(ACME))
    try:
        written, kinds, collectives = (
            importlib.import_module(f"{ACME_MODULE}.{name}") for name in ("faults", "kinds", "plugin")
        )
    finally:  # another package of this name may be installed later
        sys.path[:] = path
        forget(ACME_MODULE)
    found = {name: ("written", op) for name, (op, _) in written.FAULTS.items()}
    found |= dict.fromkeys(collectives.COLLECTIVES, ("written", "comm"))
    found |= {name: ("written", op) for name, op in REFUSING.items()}
    found |= {name: (kinds.KINDS[name], op) for name, (op, _) in kinds.FAULTS.items()}
    return found | {name: (kind, "") for name, kind in WRITTEN.items()}


FIRST = {
    "size": ("sizes", "layouts"),
    "heads": ("layouts", "sizes"),
    "state": ("other_", "stay_after", "fresh", "by_itself"),
    "first call": ("parity",),
    "values": ("nearest", "format", "linear_parity", "sizes"),
    "near zero": ("near_zero",),
    "dtype": ("left_alone", "sizes", "parity"),
    "layout": ("views", "parity"),
    "leak": ("leaves_nothing", "leave_little", "grows", "returned_after"),
    "surroundings": ("global",),
}
"""Words in the names of the tests that are tried first, by kind: another order finds the same, later."""


LAST = "test_no_call_changes_anything_global"
"""It is about what the others have called."""


def said_in(report) -> str:
    """A failure's first words, without where this checkout lies, or objects in memory."""
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr).replace(str(ROOT), ".")
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", said).split())[:160]


class Session:
    """A plugin of pytest that runs no test itself: for each fault a fork runs tests of the items that were collected,
    until one fails."""

    def __init__(self, chosen: dict[str, tuple[str, str]], keep: Keep, workers: int):
        self.chosen, self.keep, self.workers, self.done = chosen, keep, workers, False
        self.failed: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed.append((report.nodeid.partition("::")[2], said_in(report)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session) -> bool:
        swept = {op for kind, op in self.chosen.values() if "sizes" in FIRST.get(kind, ())}
        if failed := self._first(
            [item for item in session.items if "sizes" in item.name and op_of(item) in swept], session
        ):
            raise pytest.UsageError(f"without a fault {failed} fails")
        with ThreadPoolExecutor(self.workers) as pool:
            for name, one in zip(
                self.chosen, pool.map(lambda name: self._mutant(name, session), self.chosen), strict=True
            ):
                self.keep(name, one)
        self.done = True
        return True

    def _mutant(self, name: str, session) -> dict[str, str]:
        """What became of one fault."""
        kind, op = self.chosen[name]

        def run() -> dict[str, str]:
            gc.freeze()  # tests that count what is alive look at what is made from here on
            plant(name)
            os.environ["COSMOS3_ACME_OP"] = op
            for subject in session.config.stash[RECORD].subjects.values():
                subject._reasons.clear()
                subject.changed.clear()
                subject.environment["COSMOS3_ACME_FAULT"] = name
                if op == "gate":  # what building changes is seen by whoever has not built yet
                    subject.__dict__["watched"] = watched_here(subject)
            own = [item for item in session.items if op_of(item) == op]
            others = [item for item in session.items if not op_of(item) and "step_parity" in item.name]
            words = FIRST.get(kind, ())
            own.sort(key=lambda item: (item.name != NAMED.get(name), not any(word in item.name for word in words)))
            own.sort(key=lambda item: item.originalname == LAST)
            for caught, items in (("right", own), ("elsewhere", others)):
                if failed := self._first(items, session):
                    return {"caught": caught, "by": failed[0], "said": failed[1]}
            return {"caught": "missed"}

        return {"kind": kind} | forked(run)

    def _first(self, items: list, session) -> tuple[str, str] | None:
        """The first of these that fails, and what it says."""
        self.failed.clear()
        for item in items:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failed:
                return self.failed[0]
        return None


def op_of(item) -> str:
    kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
    return kernel.op if kernel else ""


def plant(name: str) -> None:
    """In this process: the rows that are built from now on have the fault."""
    os.environ["COSMOS3_ACME_FAULT"] = name
    importlib.import_module("cosmos3_acme.plugin").FAULT = name


class First:
    """A plugin of pytest that leaves out what is not about a fault of no op, or what is, and keeps what fails first."""

    def __init__(self, kind: str, op: str, others: bool):
        self.kind, self.op, self.others = kind, op, others
        self.failed: tuple[str, str] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list) -> None:
        def own(item) -> bool:
            return op_of(item) == self.op if self.op else any(word in item.name for word in WHOLE[self.kind])

        items[:] = [item for item in items if own(item) != self.others]

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid.partition("::")[2], said_in(report)


def watched_here(subject) -> dict:
    """`Subject.watched` in a fork, which needs not import torch again."""
    from cosmos3_core.testing import watch

    def look() -> dict:
        import torch

        assert sys.__stdout__ is not None
        with torch.inference_mode(), contextlib.redirect_stdout(sys.__stdout__):  # what it prints is part of it
            return watch.watch(subject.name, (os.environ["COSMOS3_ACME_OP"],))

    return forked(look)


def forked(function, seconds: int = SECONDS):
    """What a function returns in a fork of this process, as JSON. RuntimeError if it ends otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        child = os.fork()
        if not child:
            try:
                signal.alarm(seconds)
                os.chdir(folder)  # faults leave files
                file.write_text(json.dumps(function()))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return json.loads(file.read_text()) if file.exists() else {"caught": "missed", "said": "it was stopped"}


def options() -> list[str]:
    from cosmos3_core.testing import suite

    alone = [
        "-c",
        str(INI),
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:unraisableexception",
        "-q",
        "--tb=line",
    ]
    return [suite.__file__, *alone, "-p", "cosmos3_core.testing.plugin", "--backend", "acme"]


def anew(name: str, kind: str, op: str) -> dict[str, str]:
    """What became of a fault that changes what is collected."""

    def run() -> dict[str, str]:
        os.environ |= {"COSMOS3_ACME_FAULT": name, "COSMOS3_ACME_OP": op}
        if not op:  # a second probe changes nothing that the first one has changed
            Subject.watched.func = WATCHED
        for module in [module for module in sys.modules if module.partition(".")[0] == "cosmos3_acme"]:
            del sys.modules[module]
        for caught, others in (("right", False), ("elsewhere", True)):
            first = First(kind, op, others)
            with contextlib.redirect_stdout(io.StringIO()):
                pytest.main([*options(), "-x"], plugins=[first])
            if first.failed:
                return {"caught": caught, "by": first.failed[0], "said": first.failed[1]}
        return {"caught": "missed"}

    return {"kind": kind} | forked(run)


def tried(chosen: dict[str, tuple[str, str]], keep: Keep, workers: int = 2) -> None:
    """Plant each of these faults, (kind, op) by name, and `keep(name, what became of it)`."""
    here = {name: about for name, about in chosen.items() if about[0] not in WHOLE and about[1] != "comm"}
    session = Session(here, keep, workers)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pytest.main(options(), plugins=[session])
    if here and not session.done:
        raise RuntimeError(said.getvalue())
    for name, about in chosen.items():
        if name not in here:
            keep(name, anew(name, *about))


def prepared() -> None:
    """The fake device is installed, the truths are computed, and subjects are watched in forks."""
    site = tempfile.mkdtemp(prefix="cosmos3-mutants-")
    install(ACME, Path(site))
    sys.path[:0] = [site, str(ACME)]
    os.environ["PYTHONPATH"] = os.pathsep.join([site, str(ACME), str(ROOT)])
    os.environ.pop("COSMOS3_ACME_FAULT", None)
    Subject.watched.func = watched_here
    gc.freeze()


def tables(found: dict[str, dict[str, str]]) -> dict[str, Counter]:
    """Counts of each outcome by kind."""
    counts: dict[str, Counter] = {}
    for one in found.values():
        counts.setdefault(one["kind"], Counter())[one["caught"]] += 1
    return counts


def main(names: list[str], write: bool, rest: bool) -> int:
    known = faults()
    prepared()
    kept = json.loads(GOLDEN.read_text("utf-8")) if write and GOLDEN.exists() and (names or rest) else {}
    kept = {name: kept.get(name, {"caught": UNTRIED}) | {"kind": kind} for name, (kind, _) in known.items()}
    chosen = [name for name, (kind, _) in known.items() if not names or name in names or kind in names]
    chosen = [name for name in chosen if not rest or kept[name]["caught"] == UNTRIED]

    def keep(name: str, one: dict[str, str]) -> None:
        kept[name] = one
        sys.stderr.write(f"{one['caught']:<9} {name}: {one.get('by', '')} {one.get('said', '')}\n")
        if write:
            GOLDEN.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")

    tried({name: known[name] for name in chosen}, keep)
    for kind, counts in tables(kept).items():
        print(kind, ", ".join(f"{count} {caught}" for caught, count in sorted(counts.items())), sep=": ")
    return int(any(one["caught"] == "missed" for one in kept.values()))


if __name__ == "__main__":
    given = sys.argv[1:]
    names = [name for name in given if not name.startswith("--")]
    sys.exit(main(names, "--write" in given, "--rest" in given))
