"""XPU graphs: a function's launches are recorded once and replayed with one call of the host."""

from __future__ import annotations

import torch
from cosmos3_triton.recording import recorder

from cosmos3_core.contract import Capture


def build_capture() -> Capture:
    return recorder(torch.xpu, torch.xpu.XPUGraph)
