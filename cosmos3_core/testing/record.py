"""The result of a run of the kit, as JSON: on what it was found, and what became of every test."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ..contract import API, Device
from ..evidence.checks import kit_digest
from ..evidence.closure import Sources
from ..evidence.fingerprint import ROOT, row_facts, versions_of
from ..files.atomic import atomic
from ..files.checkout import build_version
from .faults import FAULT, fault_of, skipped_because
from .subject import Subject

LIBRARIES = ("torch", "pytest")
LEFT_OUT = "cosmos3_left_out"
"""Among what a process of several tells: how many tests it has collected and taken away again."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fingerprint(subject: Subject) -> dict[str, Any]:
    """What was found with what. `evidence.checks` says which of it has to be today's for the outcomes to hold."""
    backend, found, device = subject.backend, subject.found, subject.device
    return {
        "cosmos3": build_version(),
        "contract": API,
        "kit": kit_digest(Sources(ROOT)),
        "backend": {
            "name": backend.name,
            "package": found.package,
            "version": found.version,
            "api": backend.api,
            "torch_device": backend.torch_device,
            "sources": subject.sources(),
        },
        "rows": [row_facts(row) | {"notes": row.notes} for row in backend.kernels],
        "device": vars(device) | {"versions": dict(device.versions)} if isinstance(device, Device) else None,
        "unavailable": device if isinstance(device, str) else None,
        "versions": {"python": platform.python_version()} | versions_of(LIBRARIES),
        "platform": platform.platform(),
    }


class Record:
    """Listens to a pytest session over one backend and writes the file that --record names."""

    def __init__(self, file: str | None):
        self.file, self.started = file, _now()
        self.tests: dict[str, dict[str, Any]] = {}
        self.left_out = 0
        """Tests that were collected and taken away again."""
        self.subjects: dict[str, Subject] = {}

    def subject(self, name: str) -> Subject:
        """The backend of that name, which this session judges. Raises InputError, and pytest.UsageError for a second
        one in one record."""
        if name not in self.subjects:
            if self.file and self.subjects:
                raise pytest.UsageError(f"one record holds one backend, not {', '.join(self.subjects)} and {name}")
            self.subjects[name] = Subject(name)
        return self.subjects[name]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup" and report.passed:
            return  # of a test that has not ended nothing is known
        entry = self.tests.setdefault(report.nodeid.partition("::")[2], {"outcome": "passed"})
        if report.when == "call":
            entry["seconds"] = round(report.duration, 3)
        if measured := {name: value for name, value in report.user_properties if name != FAULT}:
            entry["measured"] = measured
        if hasattr(report, "wasxfail"):
            entry |= {"outcome": "xfailed" if report.skipped else "xpassed", "reason": report.wasxfail}
        elif report.failed:
            fault = fault_of(report)
            entry |= {"outcome": "failed", "reason": fault.said, "where": fault.where.removesuffix(": ")}
            entry |= {"rule": fault.rule, "again": fault.again}
        elif report.skipped:
            entry |= {"outcome": "skipped", "reason": skipped_because(report)}

    @pytest.hookimpl(optionalhook=True)  # of pytest-xdist: the processes that run tests tell the one that writes
    def pytest_testnodedown(self, node: Any) -> None:
        self.left_out = max(self.left_out, getattr(node, "workeroutput", {}).get(LEFT_OUT, 0))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[LEFT_OUT] = self.left_out
        if not (self.file and self.tests):
            return  # where no test ran, a record that is there stays
        (subject,) = self.subjects.values()
        option = session.config.getoption
        other = f"draw {option('cosmos3_draw')}" if option("cosmos3_draw") else ""
        parts = (option("keyword"), option("markexpr"), *(option("deselect") or ()), other)
        selected = ", ".join(part for part in parts if part)
        if self.left_out and not selected:
            selected = f"without {self.left_out} of its tests"
        written = {
            "fingerprint": fingerprint(subject),
            "depth": session.config.getoption("cosmos3_depth"),
            "selected": selected or None,
            "started": self.started,
            "finished": _now(),
            "exit_status": int(exitstatus),
            "tests": self.tests,
        }
        with atomic(Path(self.file)) as temporary:
            temporary.write_text(json.dumps(written, indent=1, default=list) + "\n", encoding="utf-8")
