"""CUDA graphs: a function's launches are recorded once and replayed with one call of the host."""

from __future__ import annotations

from functools import partial

import torch
from cosmos3_triton.recording import CudaGraph, recorder

from cosmos3_core.contract import Capture


def build_capture() -> Capture:
    # Other threads go on allocating and copying.
    return recorder(torch.cuda, partial(CudaGraph, torch.cuda), capture_error_mode="thread_local")
