"""Collectives, between processes that the kit starts: four, or as many as there are devices."""

from __future__ import annotations

import pytest

from ... import contract
from ..cases import OpCase
from ..peers import CHECKS
from .marks import over

COMM = OpCase(op="comm", protocol=contract.Comm)


@over("comm")
@pytest.mark.parametrize("what", CHECKS)
def test_comm_between_processes(subject, kernel, op, what):
    """What `peers` checks in each of them."""
    found = subject.peers(kernel)
    if isinstance(found, str):
        pytest.skip(found)
    wrong = [f"process {rank}: {told[what]}" for rank, told in enumerate(found) if told[what] != "right"]
    assert not wrong, "; ".join(wrong)
