"""What a test that failed says: on which row, dtype and format, which rule is broken, and what shows it again."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest

FAULT = "cosmos3_fault"
"""Among a report's properties: where the fault is, and the rule."""


class Fault(NamedTuple):
    """Of a failed test: its name, the row with dtype and format, what is measured and allowed, the rule in a sentence,
    and a line of Python that runs it again."""

    test: str
    where: str
    said: str
    rule: str
    again: str


def where_of(item: pytest.Item) -> tuple[str, str]:
    """(row, dtype and format as words, rule) of a test of the kit."""
    parameters = getattr(item, "callspec", None)
    given: dict[str, Any] = parameters.params if parameters else {}
    row, words = given.get("kernel"), []
    if row is not None:
        words.append(f"{row.op}={row.name}")
        words += [given[name] for name in ("dtype", "format") if given.get(name)]
    function = getattr(item, "function", None)
    rule = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    rule = rule or getattr(item, "originalname", item.name).removeprefix("test_").replace("_", " ")
    return " ".join(words), rule


def fault_place(item: pytest.Item, backend: str) -> tuple[str, ...]:
    """What `FAULT` stands for in the reports of a test."""
    return (*where_of(item), backend, item.config.getoption("cosmos3_depth", "quick"))


def fault_of(report: Any) -> Fault:
    """What a failed report says."""
    where, rule, backend, depth = dict(report.user_properties).get(FAULT, ("", "", "", "quick"))
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr).removeprefix("AssertionError: ")
    test = report.nodeid.partition("::")[2]
    deep = "" if depth == "quick" else f", {depth!r}"
    line = f'python -c "from cosmos3_core.testing.plugin import again; again({backend!r}, {test!r}{deep})"'
    return Fault(test, f"{where}: " if where else "", said, rule, line)


def skipped_because(report: Any) -> str:
    """The reason of a skipped report."""
    _, _, reason = report.longrepr
    return str(reason).removeprefix("Skipped: ")
