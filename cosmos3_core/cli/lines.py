"""What `cosmos3 check` prints, as a plugin of pytest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from ..testing.subject import row_id
from .terminal import printable

LONGEST = 200
"""Characters of a failed test's reason; the record has it whole."""
OTHERS = "the whole backend"
"""In the place of a row, of tests that are about none."""


class Lines:
    """A plugin of pytest, in the place of its own reporter: a line for each test that failed, then one for each row."""

    def __init__(self, only_list: bool):
        self.only_list = only_list
        self.rows: dict[str, str] = {}
        self.counts: dict[str, Counter[str]] = {}

    @pytest.hookimpl(trylast=True)  # after it was registered
    def pytest_configure(self, config: Any) -> None:
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            print(printable(f"error {report.longrepr}"))

    def pytest_collection_finish(self, session: Any) -> None:
        for item in session.items:
            kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
            self.rows[item.nodeid] = row_id(kernel) if kernel else OTHERS
            if self.only_list:
                print(printable(item.name))

    def pytest_runtest_logreport(self, report: Any) -> None:
        expected = hasattr(report, "wasxfail")
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = " ".join(str(crash.message if crash else report.longrepr).split())
            print(f"failed {printable(report.nodeid.partition('::')[2])}: {printable(reason, LONGEST)}", flush=True)
        elif report.when != "call" and not report.skipped:
            return
        outcome = "xfailed" if expected and report.skipped else report.outcome
        self.counts.setdefault(self.rows[report.nodeid], Counter())[outcome] += 1

    def pytest_sessionfinish(self) -> None:
        for row, counts in sorted(self.counts.items()):
            print(f"{printable(row):<28} {_told(counts)}")
        if total := sum(self.counts.values(), Counter()):
            print(f"{'in all':<28} {_told(total)}")
        if total["failed"]:
            print("Tracebacks are shown by pytest on a test module that imports the kit: docs/writing-a-backend.md")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "xfailed", "skipped") if counts[name])
