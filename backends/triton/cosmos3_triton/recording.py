"""contract.Capture where torch can record what a device is given: CUDA graphs, and what is made after them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cosmos3_core.contract import Capture


class CudaGraph:
    """The CUDAGraph of torch's module of the device, of which a capture that failed is over when `capture_end` has
    raised. Up to torch 2.11 the allocator goes on believing in it, and gives no memory back for as long as the process
    lives."""

    def __init__(self, runtime: ModuleType):
        self.runtime, self.graph, self.pool = runtime, runtime.CUDAGraph(), runtime.graph_pool_handle()

    def capture_begin(self, capture_error_mode: str) -> None:
        self.graph.capture_begin(pool=self.pool, capture_error_mode=capture_error_mode)

    def capture_end(self) -> None:
        try:
            self.graph.capture_end()
        except RuntimeError:
            with suppress(RuntimeError):  # it is over for the allocator, too
                device = self.runtime.current_device()
                torch._C._cuda_endAllocateToPool(device, self.pool)
                torch._C._cuda_releasePool(device, self.pool)
            raise

    def replay(self) -> None:
        self.graph.replay()


class Recording:
    """A function whose first call runs as it is, whose second is recorded, and whose later calls are replays.

    `runtime` is torch's module of the device, `graph` makes what records there, `begin` are keyword arguments of its
    capture_begin.

    Inputs are copied to buffers of its own, which the recorded kernels read. They, the results and all memory that the
    recorded kernels use belong to the recording and go with it.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        runtime: ModuleType,
        graph: Callable[[], Any],
        begin: dict[str, Any],
        stream: Any,
    ):
        self.function, self.runtime, self.new_graph, self.begin, self.stream = function, runtime, graph, begin, stream
        self.graph: Any = None
        self.warm = False

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if not self.warm:
            return self._run(tensors)
        if self.graph is None:
            self.graph = self._record(tensors)
        else:
            self._take(tensors)
        self.graph.replay()
        return list(self.results)

    def _run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """On the stream that records later: libraries allocate their workspaces per stream, and what they allocate
        while recording would keep the recording's memory alive."""
        here = self.runtime.current_stream()
        self.stream.wait_stream(here)
        with self.runtime.stream(self.stream):
            results = self.function(*tensors)
        here.wait_stream(self.stream)
        self.warm = True
        return results

    def _record(self, tensors: tuple[Tensor, ...]) -> Any:
        inputs = [tensor.clone() for tensor in tensors]
        graph = self.new_graph()
        self.runtime.synchronize()
        # The graph allocates from a pool of its own, and what is cached elsewhere lacks there.
        self.runtime.empty_cache()
        with self.runtime.stream(self.stream):
            graph.capture_begin(**self.begin)
            try:
                results = self.function(*inputs)
            except BaseException:
                with suppress(RuntimeError):  # a recording that has failed cannot be ended without another error
                    graph.capture_end()
                raise
            graph.capture_end()
        self.inputs, self.results = inputs, results
        return graph

    def _take(self, tensors: tuple[Tensor, ...]) -> None:
        for tensor, buffer in zip(tensors, self.inputs, strict=True):
            if tensor.shape != buffer.shape or tensor.dtype != buffer.dtype:
                raise ValueError(f"recorded for {buffer.dtype} {list(buffer.shape)}, called with {list(tensor.shape)}")
        torch._foreach_copy_(self.inputs, list(tensors))


def recorder(runtime: ModuleType, graph: Callable[[], Any], **begin: Any) -> Capture:
    """One stream serves all recordings: a library's workspace on it is then there once."""
    stream = runtime.Stream()

    def capture(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        return Recording(function, runtime, graph, begin, stream)

    return capture
