"""Run by `make rehearse-npu`, once for each chip: python -m rehearsal CHIP pytest backends/npu/rehearsal/tests.

A whole run compares which operators were called with `exercised.json`; with REHEARSED_WRITE it writes that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch_npu
from cosmos3_npu.plugin import family
from rehearsal import exercised
from rehearsal.device import Launches
from rehearsal.inside import LAUNCHES

CHIP = family(os.environ["REHEARSED_SOC"])
FORMATS = {
    "Ascend910B": ("int8", "w4a16", "w4a16_asym", "int8a16"),
    "Ascend910C": ("int8", "w4a16", "w4a16_asym", "int8a16"),
    "Ascend950": ("int8", "mxfp8", "mxfp4", "mxfp4a8", "mxfp4_dual"),
}[CHIP]
"""What the chip has rows for."""
assert torch_npu.npu.is_available() and torch.npu.get_device_name(0) == os.environ["REHEARSED_SOC"]


NAME = CHIP.removeprefix("Ascend")
FOUND: dict[str, str] = {}
"""The first test that called an operator of the vendor."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    LAUNCHES.clear()
    yield
    for name, count in LAUNCHES.counts.items():
        namespace, operator = name.split("::")
        if namespace == "npu" and count and not operator.startswith("_"):
            FOUND.setdefault(operator, f"{item.path.name}::{item.originalname}")  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    parts = session.config.args, session.config.option.keyword, session.config.option.markexpr
    whole = all(Path(part).is_dir() for part in parts[0]) and not any(parts[1:])
    if not whole or exitstatus:
        return
    if "REHEARSED_WRITE" in os.environ:
        exercised.write(NAME, FOUND)
    known = {operator: tests[NAME] for operator, tests in exercised.kept().items() if NAME in tests}
    if known != FOUND:
        changed = sorted(operator for operator in {*known, *FOUND} if known.get(operator) != FOUND.get(operator))
        print(f"\nexercised.json is of other operators: {', '.join(changed)}. Set REHEARSED_WRITE=1 to write it")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def launches() -> Iterator[Launches]:
    """What the device is asked for from here on."""
    LAUNCHES.clear()
    yield LAUNCHES
