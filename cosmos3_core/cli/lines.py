"""What `cosmos3 check` prints, as a plugin of pytest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from ..testing.faults import fault_of, skipped_because
from ..testing.subject import row_of
from .terminal import printable

LONGEST = 200
"""Characters of a failed test's reason; the record has it whole."""
OTHERS = "the whole backend"
"""In the place of a row, of tests that are about none."""


class Lines:
    """A plugin of pytest, in the place of its own reporter: a line for each test that failed, then one for each row."""

    def __init__(self, only_list: bool, depth: str, jobs: int):
        self.only_list, self.depth, self.jobs = only_list, depth, jobs
        self.skips: Counter[str] = Counter()
        self.rows: dict[str, str] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.faults = set[str]()
        self.stopped, self.died = False, False

    @pytest.hookimpl(wrapper=True)  # before pytest-xdist reads them
    def pytest_cmdline_main(self, config: Any) -> Generator[None, Any, Any]:
        # The environment's options may ask for processes, which would not share whole rows.
        if self.jobs == 1 and hasattr(config.option, "numprocesses"):
            config.option.numprocesses, config.option.tx = None, []
        return (yield)

    @pytest.hookimpl(trylast=True)  # after it was registered
    def pytest_configure(self, config: Any) -> None:
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: Any) -> None:
        # Several processes have the same to say.
        if report.failed and (said := str(report.longrepr)) not in self.faults:
            self.faults.add(said)
            print(printable(f"error {said}"))

    def pytest_collection_finish(self, session: Any) -> None:
        for item in session.items:
            self.rows[item.nodeid] = row_of(item) or OTHERS
            if self.only_list:
                print(printable(item.name))

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        # Tests that cannot be collected end a session in this way, too.
        self.stopped = not isinstance(excinfo.value, pytest.Session.Interrupted)

    @pytest.hookimpl(optionalhook=True)  # of pytest-xdist
    def pytest_testnodedown(self, error: object) -> None:
        self.died = self.died or error is not None

    def pytest_runtest_logreport(self, report: Any) -> None:
        expected = hasattr(report, "wasxfail")
        if report.failed:
            fault = fault_of(report)
            reason = " ".join(fault.said.split())
            print(f"failed {printable(fault.test)}: {printable(fault.where)}{printable(reason, LONGEST)}")
            print(f"  {printable(fault.rule)} {printable(fault.again, 1000)}", flush=True)
        elif report.when != "call" and not report.skipped:
            return
        if report.skipped and not expected:
            self.skips[skipped_because(report)] += 1
        outcome = "xfailed" if expected and report.skipped else report.outcome
        self.counts.setdefault(self.rows[report.nodeid], Counter())[outcome] += 1

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.died = self.died and exitstatus != pytest.ExitCode.OK
        for row, counts in sorted(self.counts.items()):
            print(f"{printable(row):<28} {_told(counts)}")
        if total := sum(self.counts.values(), Counter()):
            print(f"{'in all':<28} {_told(total)}")
        for reason, count in self.skips.most_common():
            print(f"{count:>5} skipped: {printable(reason, LONGEST)}")
        if self.stopped or self.died:
            why = "It was stopped" if self.stopped else "A process died"
            print(f"{why}: what had not run yet is missing, and a record of it does not count")
        elif self.depth == "quick" and total and exitstatus == pytest.ExitCode.OK:
            print("Depth quick leaves the largest sizes out; type --depth full for a record that counts")
        if total["failed"]:
            print("Tracebacks are shown by pytest on a test module that imports the kit: docs/writing-a-backend.md")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "xfailed", "skipped") if counts[name])
