"""HIP graphs, which torch calls CUDA graphs: a function's launches are recorded once and replayed with one call of the
host."""

from __future__ import annotations

from functools import partial

import torch
from cosmos3_triton.recording import CudaGraph, recorder

from cosmos3_core.contract import Capture, Device


def build_capture(device: Device) -> Capture:
    # Other threads go on allocating and copying.
    return recorder(torch.cuda, partial(CudaGraph, torch.cuda), capture_error_mode="thread_local")
