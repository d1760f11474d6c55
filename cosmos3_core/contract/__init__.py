"""What a device package and the core say to each other. A vendor reads this package and nothing else.

A backend is data: a name, the torch device type its tensors live on, a probe, and rows of kernels. A kernel row says
which op it implements and where it can serve; the plan, the messages and the documentation are loops over the rows.
Nothing here imports torch or the rest of the core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import Cosmos3Error, InputError, RunError, Unavailable
from .hooks import GROUP, hookimpl
from .ops import Attention, Capture, Gate, Linear, NormRope, NormSilu, Ops, PackLinear, PatchEmbed, Quantized, RmsNorm

API = 1
"""Version of this contract. A backend states the one it was written for."""

OPS: tuple[str, ...] = tuple(field.name for field in fields(Ops) if field.name != "formats")
"""The op names a `Kernel.op` may have."""

FORMATTED = ("attention", "pack_linear")
"""The ops a run can be asked to do in a quantization format; the others are always asked for with "none"."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What `probe()` found. `memory` is one device's total in bytes; `unified` is True where host and device share it.
    `versions` names driver and libraries."""

    arch: str
    name: str
    count: int
    memory: int
    unified: bool
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What an architecture can do at most, for estimates before a run: dense `tflops` (1e12 multiply-adds times two a
    second) by dtype or quantization format, memory `bandwidth` in bytes a second, and the `source` of both: a
    measurement, or the vendor's data sheet. `reached`: the share of a rate that whole forward passes had with this
    backend's kernels, where that was measured."""

    tflops: Mapping[str, float]
    bandwidth: float
    source: str
    reached: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the plan needs of an op. `format` is a quantization format's name. Keyword-only: a field added
    later does not break a row written today."""

    op: str
    device: Device
    dtype: str
    format: str = "none"
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0


def never(ask: Ask) -> None:
    """The `refuse` of a row that serves every request its other fields allow."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation of one op.

    `build(device)` returns the op's callable (see `ops`) and is where vendor libraries are imported. `arch` holds
    architecture names, or "*". `formats` are those in which the op can be asked for; of rms_norm and gate, beside
    "none", those in which it can return its rows. `needs` are importable package names. `refuse(ask)` returns the
    reason why this row cannot serve, or None. `deterministic` means bit-equal on repetition, in one process and in
    another.
    """

    op: str
    name: str
    build: Callable[[Device], Any]
    arch: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    formats: tuple[str, ...] = ("none",)
    needs: tuple[str, ...] = ()
    refuse: Callable[[Ask], str | None] = never
    deterministic: bool = True
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A device, as data. `torch_device` is torch's device type; `collectives` the torch.distributed backend name.

    `probe()` returns a `Device` or raises `Unavailable` with one sentence; it is the only place that touches a driver.
    Rows are in order of preference: "auto" takes the first that does not refuse, and where all refuse, or there is
    none, eager torch. `ceilings` is keyed by how `Device.name` ends ("RTX 5090", which its laptop
    namesake does not), or by `Device.arch`; `tuning` by `Device.arch`.
    """

    name: str
    torch_device: str
    collectives: str
    probe: Callable[[], Device]
    kernels: tuple[Kernel, ...]
    ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    tuning: Mapping[str, Tuning] = field(default_factory=dict)
    api: int = API


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """From which size on a run is done another way. The defaults are those of an H100; a backend says what is better
    on an architecture. Results differ by rounding at most.

    `one_pass_tokens`: up to this many media tokens both guidance branches run as one batch. A small pass leaves a
    device idle, a large one only doubles the activations.
    `capture_rows`: passes of up to this many rows (branches x media tokens) are captured. Kernels on more rows take
    longer than their launch, so that there is nothing to gain, and a capture's own pool would hold their activations a
    second time.
    `chunk_area`: latent positions, of one frame or of several, that the VAE decodes at a time. Fewer leave a device
    idle, more only take memory.
    """

    one_pass_tokens: int = 4096
    capture_rows: int = 8192
    chunk_area: int = 2048


__all__ = [
    "API",
    "FORMATTED",
    "GROUP",
    "OPS",
    "Ask",
    "Attention",
    "Backend",
    "Capture",
    "Ceiling",
    "Cosmos3Error",
    "Device",
    "Gate",
    "InputError",
    "Kernel",
    "Linear",
    "NormRope",
    "NormSilu",
    "Ops",
    "PackLinear",
    "PatchEmbed",
    "Quantized",
    "RmsNorm",
    "RunError",
    "Tuning",
    "Unavailable",
    "hookimpl",
]
