"""Bytes of a value, rates of a device, and work that becomes seconds at such a rate."""

from __future__ import annotations

from dataclasses import dataclass

from ...contract import Backend, Ceiling, Device
from ...quant import FORMATS, Format, bytes_per_weight

GIB = 1 << 30
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
RATES = {"float16": "bfloat16"}
"""Dtypes that share another's rate, which is the one that `Ceiling`s list."""
UNPACKED_RATE = "float32"
"""What eager torch multiplies a weight in that it has unpacked."""
COMPUTE_EFFICIENCY = 0.55
"""Share of the dense peak rate, where a `Ceiling` knows no better: published runs of Cosmos3 reach 0.53 (Nano, B300)
and 0.5 (Super, 8 x H200) of a data sheet's, eager torch on an H100 0.60 to 0.67 of a GEMM's
(benchmarks/results/memory-nano-h100.json)."""
BANDWIDTH_EFFICIENCY = 0.7


LINK_RATE = 20e9
"""Bytes a second between the host and a device, or between two devices, unless its `Ceiling` knows them."""


def peers_of(ceiling: Ceiling) -> float:
    """Bytes a second that a device sends to others, or else by way of the host."""
    return BANDWIDTH_EFFICIENCY * (ceiling.peers or ceiling.link) or LINK_RATE


def gib(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / GIB:.1f} GiB"


def weight_bytes(dtype: str, format: Format | None, inputs: int) -> float:
    """Bytes of one weight of a matrix with so many inputs."""
    return WIDTH[dtype] if format is None else bytes_per_weight(format, inputs)


def rate_of(dtype: str, format: Format | None = None) -> str:
    """What a `Ceiling` calls the rate of products: where activations are quantized that of their format, or of the
    first built-in one whose elements and scales are of its kind: a device tells no groups apart."""
    inputs = format and format.of_inputs
    if inputs is None:
        return RATES.get(dtype, dtype)
    return next((name for name, other in FORMATS.items() if _kind(other) == _kind(inputs)), inputs.name)


def _kind(format: Format) -> tuple[str, str]:
    element = format.of_elements
    return "8-bit float" if element.bits == 8 and not element.integer else format.element, format.scale


@dataclass(frozen=True)
class Work:
    """Arithmetic (multiply-add = 2) at a ceiling's `rate`, of which it reaches the share `efficiency` (None: what the
    ceiling says, of an `op` that has one of its own, too), and bytes read or written once by kernels that fuse what is
    elementwise."""

    flops: float
    bytes: float
    rate: str
    efficiency: float | None = None
    op: str = ""

    def seconds(self, ceiling: Ceiling) -> float:
        """At the stated shares of the ceiling. Raises KeyError for a rate that the ceiling does not list."""
        share = self.efficiency or reached(ceiling, self.rate, self.op)
        compute = self.flops / (ceiling.tflops[self.rate] * 1e12 * share)
        return max(compute, self.bytes / (ceiling.bandwidth * BANDWIDTH_EFFICIENCY))


def reached(ceiling: Ceiling, rate: str, op: str = "") -> float:
    """The share of the rate that forward passes reach, in this op."""
    return ceiling.reached.get(f"{op} {rate}", ceiling.reached.get(rate, COMPUTE_EFFICIENCY))


def ceiling_of(backend: Backend, device: Device) -> Ceiling | None:
    """What this device can do at most: the entry whose key ends its name, else the one for its architecture.
    None where nothing is known; a relative's numbers would be a guess."""
    by_name = (ceiling for key, ceiling in backend.ceilings.items() if device.name.endswith(key))
    return next(by_name, backend.ceilings.get(device.arch))
