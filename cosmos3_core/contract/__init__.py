"""What a device package and the core say to each other. A vendor reads this package and nothing else.

A backend is data: a name, the torch device type its tensors live on, a probe, and rows of kernels. A kernel row says
which op it implements and where it can serve; the plan, the messages and the documentation are loops over the rows.

A device package is found by an entry point "cosmos3.backends" with the backend's name, and in the module that it names
by one function, `@hookimpl def cosmos3_backend() -> Backend`. Only the named package is imported, and its plugin module
imports neither torch nor kernel libraries at the top level. docs/writing-a-backend.md shows a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pluggy

# isort: off
from .errors import Cosmos3Error, InputError, RunError, Unavailable
from .ops import Attention, Capture, Gate, Linear, NormRope, NormSilu, Ops, PackLinear, PatchEmbed, RmsNorm, Segment
from .ops import Finish, FinishWeights, Layer, PackFinish, PackProject, Project, Projected, ProjectWeights
from .ops import Bytes, Comm, Memory, Pending, Quantized, Residual
# isort: on

API = 2
"""Version of this contract. A backend that states none was written for 1."""

OPS: tuple[str, ...] = tuple(field.name for field in fields(Ops) if field.name != "prepare")
"""The op names a `Kernel.op` may have."""

FORMATTED = ("attention", "pack_linear")
"""The ops a run can be asked to do in a quantization format."""

COMPOSITES = ("project", "finish")
"""The ops made of others. Their products are in the format of `pack_linear`; other ops are asked for with "none"."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What `probe()` found. `memory` is one device's, in bytes, `unified` the host's. `versions`: driver, libraries."""

    arch: str
    name: str
    count: int
    memory: int
    unified: bool
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What an architecture can do at most: dense `tflops` (two for a multiply-add) by dtype or quantization format,
    memory `bandwidth` in bytes a second, and the `source` of both. `reached`: the measured share of a rate in whole
    passes or, "attention fp8", in an op. `link`, `peers`: bytes a second from the host, to neighbours; 0: unknown."""

    tflops: Mapping[str, float]
    bandwidth: float
    source: str
    reached: Mapping[str, float] = field(default_factory=dict)
    link: float = 0.0
    peers: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What pays on an architecture. Both guidance branches run as one batch up to `one_pass_tokens` media tokens: more
    fill a device alone. A pass is captured up to `capture_rows` rows: kernels on more outlast their launch. The VAE
    decodes `chunk_area` latent positions at a time. It and the sound codec compute in `codec_dtype`, the model's if
    empty. Convolutions get its maps `channels_last`, or not. `expandable_segments`: those of torch's allocator."""

    one_pass_tokens: int = 4096
    capture_rows: int = 8192
    chunk_area: int = 2048
    codec_dtype: str = ""
    channels_last: bool = True
    expandable_segments: bool = False


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the plan needs of an op. `format` is a quantization format's name; `hidden` and `inner` are the widths of
    the residual stream and of the MLP; `packed`: weights come as a checkpoint has packed them."""

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
    packed: bool = False


@dataclass(frozen=True)
class Delegate:
    """Another attention row, `to`: the host makes calls with fewer queries than `below` there, where it serves."""

    to: str
    below: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation of one op.

    `build(device)` returns the op's callable (see `ops`) and is where vendor libraries are imported. `arch` holds
    architecture names, or "*". `formats` are those in which the op can be asked for. `needs` are importable package
    names. `refuse(ask)` returns the reason why this row cannot serve, or None. `deterministic` means bit-equal on
    repetition, in one process and in another. `fresh`: no call writes to what an earlier one returned. `prepares`: see
    `Segment`; `packed`: see `PackLinear`. `widens`: a linear makes weights in a format numbers of the plan's dtype, and
    multiplies in that. `fuses` are the ops that a composite does itself, instead of the rows chosen for them: where a
    user has named one of these rows, the composite is not taken."""

    op: str
    name: str
    build: Callable[[Device], Any]
    arch: tuple[str, ...] = ("*",)
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    formats: tuple[str, ...] = ("none",)
    needs: tuple[str, ...] = ()
    refuse: Callable[[Ask], str | None] = lambda ask: None
    deterministic: bool = True
    fresh: bool = True
    prepares: bool = False
    packed: bool = False
    widens: bool = False
    fuses: tuple[str, ...] = ()
    delegates: tuple[Delegate, ...] = ()
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A device, as data. `torch_device` is torch's device type; `collectives` the torch.distributed backend name.
    `probe()` returns a `Device` or raises `Unavailable`; it is the only place that touches a driver. Rows are in order
    of preference: "auto" takes the first that does not refuse, else eager torch. `ceilings` is keyed by how
    `Device.name` ends ("RTX 5090", which its laptop namesake does not), or by its arch, as `tuning` is; `tuning` may
    have "*", too, for all other architectures. `formats` are quantization formats of its own, rows of
    `cosmos3_core.quant.Format`. `known`: devices that can be planned for unseen, as `probe()` would describe each. The
    folder of its `recipes` and evidence is `Path(__file__).parent / RECIPES`, which digests of its code leave out."""

    name: str
    torch_device: str
    collectives: str
    probe: Callable[[], Device]
    kernels: tuple[Kernel, ...]
    ceilings: Mapping[str, Ceiling] = field(default_factory=dict)
    tuning: Mapping[str, Tuning] = field(default_factory=dict)
    formats: tuple[Any, ...] = ()
    known: tuple[Device, ...] = ()
    recipes: Path | None = None
    api: int = 1


RECIPES = "recipes"
GROUP = "cosmos3.backends"
FORMATS_GROUP = "cosmos3.formats"  # of packages without a device: a quant.Format, or a tuple of them
hookimpl = pluggy.HookimplMarker("cosmos3")


@pluggy.HookspecMarker("cosmos3")(firstresult=True)
def cosmos3_backend() -> Backend:
    """The backend this package provides."""
    raise NotImplementedError  # a specification: what is called is the package's
