"""`make test-parallel`: how 2 to 72 of each recorded kind of device share a video, as it was written down."""

from __future__ import annotations

import json

import pytest
from devices import DEVICES, LAYOUTS, layouts


@pytest.mark.parametrize("model", ["nano", "super"])
@pytest.mark.parametrize("device", DEVICES)
def test_several_of_a_device_share_a_video_as_recorded(device, model):
    assert layouts(device, model) == json.loads(LAYOUTS.read_text("utf-8"))[model][device]
