"""How several processes share the kit's tests, by pytest-xdist: each has all tests of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .faults import FAULT, fault_place
from .subject import row_of

SHARED = "cosmos3_shared"
"""Among what a process is told: it has a part of the tests, on a device that is there."""


class Shares:
    """A plugin for two sessions of pytest: the first one collects, and of the second one the tests are shared as that
    has found them."""

    def __init__(self, backend: str):
        self.backend = backend
        self.rows: dict[str, str] = {}
        self.places: dict[str, tuple[str, ...]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.rows[item.nodeid] = row_of(item) or item.nodeid
            self.places[item.nodeid] = fault_place(item, self.backend)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[SHARED] = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        return scheduler(self.rows, config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        report.user_properties = [(FAULT, self.places[crashitem])]


def scheduler(rows: Mapping[str, str], config: pytest.Config, log: Any) -> Any:
    """That of pytest-xdist which gives whole groups to processes, a group being a row's tests: the last of them asks
    what the others have changed."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRow(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return rows[nodeid]

        def remove_node(self, node: Any) -> str | None:
            """The test that the process died of. Another one would die of it, too, so its row ends here; rows that
            the process had not begun go to others."""
            waiting = {row: tests for row, tests in self.assigned_work.pop(node).items() if not all(tests.values())}
            if not waiting:
                return None
            row, *_ = waiting
            (died, *_) = (test for test, done in waiting.pop(row).items() if not done)
            self.workqueue.update(waiting)
            for other in self.assigned_work:
                self._reschedule(other)
            return died

    return ByRow(config, log)
