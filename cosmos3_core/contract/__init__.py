"""What a device package and the core say to each other. A vendor reads this package and nothing else.

A backend is data: a name, the torch device type its tensors live on, a probe, and rows of kernels. A kernel row says
which op it implements and where it can serve; the plan, the messages and the documentation are loops over the rows.
Nothing here imports torch or the rest of the core.

A device package is found by an entry point "cosmos3.backends" with the backend's name, and in the module that it names
by one function, `@hookimpl def cosmos3_backend() -> Backend`. Only the named package is imported, and its plugin module
imports neither torch nor kernel libraries at the top level. docs/writing-a-backend.md shows a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pluggy

# isort: off
from .errors import Cosmos3Error, InputError, RunError, Unavailable
from .ops import Attention, Capture, Gate, Linear, NormRope, NormSilu, Ops, PackLinear, PatchEmbed, RmsNorm, Segment
from .ops import Finish, FinishWeights, Layer, PackFinish, PackProject, Project, Projected, ProjectWeights
from .ops import Quantized, Residual
from .system import Bytes, Comm, Memory, Pending
# isort: on

# fmt: off
__all__ = [
    "API", "COMPOSITES", "FORMATTED", "GROUP", "OPS",
    "Ask", "Backend", "Ceiling", "Delegate", "Device", "Kernel", "Tuning", "never", "cosmos3_backend", "hookimpl",
    "Cosmos3Error", "InputError", "RunError", "Unavailable",
    "Attention", "Capture", "Gate", "Linear", "NormRope", "NormSilu", "Ops", "PackLinear", "PatchEmbed", "RmsNorm",
    "Segment", "Finish", "FinishWeights", "Layer", "PackFinish", "PackProject", "Project", "Projected",
    "ProjectWeights", "Quantized", "Residual", "Bytes", "Comm", "Memory", "Pending",
]
# fmt: on

API = 2
"""Version of this contract. A backend states the one it was written for; one that states none was written for 1."""

OPS: tuple[str, ...] = tuple(field.name for field in fields(Ops) if field.name != "prepare")
"""The op names a `Kernel.op` may have."""

FORMATTED = ("attention", "pack_linear")
"""The ops a run can be asked to do in a quantization format."""

COMPOSITES = ("project", "finish")
"""The ops made of others. Their products are in the format of `pack_linear`; other ops are asked for with "none"."""


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
class Tuning:
    """From where on something pays on an architecture.

    one_pass_tokens  up to so many media tokens both guidance branches run as one batch: a small pass leaves a device
                     idle, a large one only doubles the activations
    capture_rows     up to so many rows (branches x media tokens) a pass is captured: kernels on more take longer than
                     their launch, and a capture's own pool would hold their activations a second time
    chunk_area       latent positions, of one frame or of several, that the VAE decodes at a time: fewer leave a device
                     idle, more only take memory
    """

    one_pass_tokens: int = 4096
    capture_rows: int = 8192
    chunk_area: int = 2048


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the plan needs of an op. `format` is a quantization format's name; `hidden` and `inner` are the widths of
    the residual stream and of the MLP. Keyword-only: a field added later does not break a row written today."""

    op: str
    device: Device
    dtype: str
    format: str = "none"
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    hidden: int = 0
    inner: int = 0
    activation: str = "silu"


def never(ask: Ask) -> None:
    """The `refuse` of a row that serves every request its other fields allow."""


@dataclass(frozen=True)
class Delegate:
    """Another attention row, `to`, which is better for calls with fewer queries than `below`. The host makes those
    calls there, where that row serves, and the plan says so."""

    to: str
    below: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation of one op.

    `build(device)` returns the op's callable (see `ops`) and is where vendor libraries are imported. `arch` holds
    architecture names, or "*". `formats` are those in which the op can be asked for. `needs` are importable package
    names. `refuse(ask)` returns the reason why this row cannot serve, or None. `deterministic` means bit-equal on
    repetition, in one process and in another. `fresh`: no call writes to what an earlier one returned. `prepares`: see
    `Segment`. `fuses` are the ops that a composite does itself, instead of the rows chosen for them: where a user has
    named one of these rows, the composite is not taken.
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
    fresh: bool = True
    prepares: bool = False
    fuses: tuple[str, ...] = ()
    delegates: tuple[Delegate, ...] = ()
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A device, as data. `torch_device` is torch's device type; `collectives` the torch.distributed backend name.

    `probe()` returns a `Device` or raises `Unavailable` with one sentence; it is the only place that touches a driver.
    Rows are in order of preference: "auto" takes the first that does not refuse, and where all refuse, or there is
    none, eager torch. `ceilings` is keyed by how `Device.name` ends ("RTX 5090", which its laptop namesake does not),
    or by `Device.arch`; `tuning` by `Device.arch`.
    """

    name: str
    torch_device: str
    collectives: str
    probe: Callable[[], Device]
    kernels: tuple[Kernel, ...]
    ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    tuning: Mapping[str, Tuning] = field(default_factory=dict)
    api: int = 1


GROUP = "cosmos3.backends"
"""The group of the entry points."""
hookimpl = pluggy.HookimplMarker("cosmos3")


@pluggy.HookspecMarker("cosmos3")(firstresult=True)
def cosmos3_backend() -> Backend:
    """The backend this package provides."""
    raise NotImplementedError  # a specification: what is called is the package's
