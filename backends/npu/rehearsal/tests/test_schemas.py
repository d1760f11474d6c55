"""The wheel that is here, and a newer one, register what is called as it was when SCHEMAS was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch_npu
from rehearsal import schemas


def test_the_wheel_that_is_here_has_the_kept_schemas():
    found = schemas.registered(Path(torch_npu.__file__).parents[1])
    assert not schemas.changed(found, schemas.kept())


def test_a_newer_wheel_has_the_kept_schemas():
    if "REHEARSED_NEWER" not in os.environ:
        pytest.skip("make rehearse-npu names one")
    (wheel,) = Path(os.environ["REHEARSED_NEWER"]).glob("torch_npu-*.whl")
    found = schemas.registered(wheel)
    assert not schemas.changed(found, schemas.kept())
