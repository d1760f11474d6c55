"""How a test says which rows and which cases it is about."""

from __future__ import annotations

import pytest


def over(*ops: str):
    """The test is about rows of this op, or of these."""

    def mark(test):
        test.ops = ops
        return test

    return mark


def each(*values):
    """Parametrise `case` over cases with an id."""
    return pytest.mark.parametrize("case", values, ids=lambda case: case.id)
