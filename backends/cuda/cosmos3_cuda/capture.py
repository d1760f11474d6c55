"""CUDA graphs: a function's launches are recorded once and replayed with one call of the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from cosmos3_core.contract import Capture


class Recording:
    """A function whose first call runs as it is, whose second is recorded, and whose later calls are replays.

    Inputs are copied to buffers of its own, which the recorded kernels read. They, the results and all memory that the
    recorded kernels use belong to the recording and go with it.
    """

    def __init__(self, function: Callable[..., list[Tensor]], stream: torch.cuda.Stream):
        self.function, self.stream = function, stream
        self.graph: torch.cuda.CUDAGraph | None = None
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
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            results = self.function(*tensors)
        here.wait_stream(self.stream)
        self.warm = True
        return results

    def _record(self, tensors: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        inputs = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph allocates from a pool of its own, and what is cached elsewhere lacks there
        with torch.cuda.stream(self.stream):
            graph.capture_begin(capture_error_mode="thread_local")  # other threads go on allocating and copying
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


def build_capture() -> Capture:
    """One stream serves all recordings: a library's workspace on it is then there once."""
    stream = torch.cuda.Stream()

    def capture(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        return Recording(function, stream)

    return capture
