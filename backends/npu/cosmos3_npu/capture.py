"""NPU graphs: a function's launches are recorded once and replayed with one call of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from cosmos3_triton.recording import recorder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos3_core.contract import Capture, Device, RunError

UNTAKEN = {"npu::npu_fusion_attention": "npu_fusion_attention, which torch_npu documents as none that a graph takes"}
"""Operators that cannot be recorded, and why."""
COLLECTIVE = "a collective, which runs on a stream of HCCL's own"


class Watch(TorchDispatchMode):
    """Raises RunError for what no graph takes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if reason := COLLECTIVE if name.startswith("c10d::") else UNTAKEN.get(name):
            raise RunError("capture=npu-graph", f"what it records calls {reason}", "Add --kernel capture=eager")
        return func(*args, **(kwargs or {}))


def build_capture(device: Device) -> Capture:
    """See contract.ops.Capture. A recorded function is watched in both calls that run it."""
    npu: Any = torch.get_device_module("npu")
    # Other threads go on allocating and copying.
    record = recorder(npu, npu.NPUGraph, capture_error_mode="thread_local")

    def capture(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        def watched(*tensors: Tensor) -> list[Tensor]:
            with Watch():
                return function(*tensors)

        return record(watched)

    return capture
