"""What is asked of a row when all else has been."""

from __future__ import annotations

import pytest

from ..subject import row_id


def test_no_call_changes_anything_global(subject, kernel, op):
    """Whatever the tests before this one have called the row with, at every size: torch's and Python's settings, random
    streams, signals and threads stay as they were."""
    changed = subject.changed.get(row_id(kernel))
    if changed is None:
        pytest.skip("no other test of the row was run before it")
    assert not changed, f"calls of this row changed {'; '.join(changed)}"
