"""Run by `make rehearse-npu`, once for each chip: python -m rehearsal CHIP pytest backends/npu/rehearsal/tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch_npu
from cosmos3_npu.plugin import family
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


@pytest.fixture
def launches() -> Iterator[Launches]:
    """What the device is asked for from here on."""
    LAUNCHES.clear()
    yield LAUNCHES
