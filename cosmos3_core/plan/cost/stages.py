"""A stage of a run: what its tensors come to, and what is held beyond them."""

from __future__ import annotations

from dataclasses import dataclass

from .units import GIB

WEIGHTS_OVERHEAD, OVERHEAD, APART_OVERHEAD, VAE_OVERHEAD = 0.04, 0.08, 0.55, 0.15
EXPANDABLE_OVERHEAD, EXPANDABLE_APART, EXPANDABLE_ROUNDING, EXPANDABLE_VAE = 0.12, 0.46, 0.36, 0.02
OVERHEAD_BYTES = GIB
"""What is taken beyond the tensors: a share by the allocator's blocks, and a constant by the device's context and
libraries. The share is one of what stays, weights, and another of what comes and goes: more where each product makes
copies of its own, of a weight in numbers or of rows in a format, which leave gaps of all sizes, and where convolutions
ask for workspaces. With these no peak that was reserved at Nano's size (benchmarks/results/memory-nano-h100.json,
e2e-*.json, quantized-nano*-h200.json) is above what is counted, and none of a run is more than 10 % below. Decoding
720p x 189 with the fused norm (benchmarks.vae) reserved 10.1 GB and allocated 7.5, where the eager norm makes 8.7 of
it, which are counted. Segments that grow leave less idle than the fused kernels save of what is counted, and products
with copies of their own idle more, by less where the copies of rounded activations are among what is counted: with
these shares, and without the constant, which no allocator holds, no peak of the media tower's jobs in
residency-*-h200.json and quantized-nano-*-h200.json is above what is counted, and none more than 10 % below."""


@dataclass(frozen=True)
class Stage:
    """What the device holds at the worst moment of one part of a run, in bytes; `kept` is what may be there of earlier
    requests, for the next one."""

    name: str
    weights: int
    text_kv: int
    latents: int
    activations: int
    overhead: float = OVERHEAD
    kept: int = 0

    @property
    def peak(self) -> int:
        """All of it, with what the allocator holds on top."""
        return self._with_overhead(self.text_kv + self.latents + self.activations + self.kept)

    @property
    def least(self) -> int:
        """What it takes whatever the size of the request."""
        return self._with_overhead(0)

    def _with_overhead(self, passing: int) -> int:
        return int(self.weights * (1 + WEIGHTS_OVERHEAD) + passing * (1 + self.overhead)) + OVERHEAD_BYTES
