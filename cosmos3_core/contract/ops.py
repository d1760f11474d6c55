"""The tensor operations a device may own, as protocols. The transformer is written on these and on nothing else.

Shape letters:   B batch (guidance branches)   S query tokens   T key tokens   H query heads   K key/value heads
                 D head dim   M rows (B times S)   I input features   O output features

Rules for every op, and the kit's tests of them:
    strides    q, k, v, what is normed or was attended, and tables may be views; the last axis is always dense
               (test_attention_parity, test_norm_rope_parity, test_rms_norm_of_views, test_composites_of_views)
    inputs     stay as they are, except where a protocol says that they may be overwritten (test_inputs_are_left_alone)
    results    are fresh: no later call writes to them, unless the row says `fresh=False` (test_results_are_fresh)
    segments   come in the keys' order, the text's first, perhaps one token (test_attention_of_segments_of_one_token)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    Maybe = Tensor | None
    Weight = Any  # a Tensor, or where a row declares `packed` a quant.numerics.Packed
    Head = tuple[Tensor, Maybe]
    Group = ProcessGroup | None
    Parts = Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Segment:
    """One producer's keys and values: the text's, or the media's. Unpacks to (k_BTKD, v_BTKD). A `static` one is the
    same for the whole run: a row that declares `prepares` has a method `prepare(k_BTKD, v_BTKD)`, whose result, made
    before the first step, comes with it as `prepared`."""

    k_BTKD: Tensor
    v_BTKD: Tensor
    static: bool = False
    prepared: Any = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.k_BTKD, self.v_BTKD))


class Attention(Protocol):
    """softmax(q kᵀ / sqrt(D)) v over the keys of all segments, as if they were concatenated along T. A kernel need not
    copy them together, and may scale each on its own.

    Query head j reads key/value head `j * K // H`. `causal` needs one segment with T == S. Returns out_BSHD in q's
    dtype, and with `want_lse` the natural log-sum-exp of the scaled scores as fp32 lse_BHS (else None)."""

    def __call__(
        self, q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]: ...


class Linear(Protocol):
    """y_MO = x_MI Wᵀ + b, in x's dtype. Owns its packed weight. `tensors()` names all that it holds on the device, what
    a call reads: who moves a weight puts other storage behind them (`tensor.data = ...`). None: it cannot be moved."""

    def __call__(self, x_MI: Tensor) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor] | None: ...


class PackLinear(Protocol):
    """Make a `Linear` from weight_OI and bias_O (or None), once per weight, while loading. The weight may be kept as
    it is or replaced by a packed form; the caller drops its own reference. `format` names a quantization format.
    A row that takes "none" gets fp32 weights too, whatever the plan's dtype is: the timestep MLP's.

    A row that declares `packed` may also get a `cosmos3_core.quant.numerics.Packed` in that format, as a checkpoint
    holds it, and keeps its values and scales: packed anew it is another weight. ValueError: its groups do not fit."""

    def __call__(self, weight_OI: Weight, bias_O: Tensor | None, *, format: str = "none") -> Linear: ...


class RmsNorm(Protocol):
    """With z = x + residual (or x): returns (z · rsqrt(mean(z²) + eps) · weight, z), both x_MI's shape and dtype.

    Mean and rsqrt in fp32. `weight_fp32` False rounds the normalised value to the dtype before the weight multiplies
    it (Qwen); True multiplies in fp32 and rounds once (Nemotron). Without a residual z may be x itself."""

    def __call__(
        self, x_MI: Tensor, weight_I: Tensor, *, eps: float, residual_MI: Maybe = None, weight_fp32: bool = False
    ) -> tuple[Tensor, Tensor]: ...


class NormRope(Protocol):
    """Per-head RMS norm (skipped where the weight is None), then rotary embedding, for several projections at once:
    `heads` are (x_BSHD, weight_D or None); H may differ. cos_BSD and sin_BSD are in x's dtype and may have B = 1.
    Rotation is by halves: x·cos + [-x₂, x₁]·sin. Returns one tensor of x_BSHD's shape for each."""

    def __call__(
        self, heads: Sequence[Head], cos_BSD: Tensor, sin_BSD: Tensor, *, eps: float, weight_fp32: bool = False
    ) -> list[Tensor]: ...


class Gate(Protocol):
    """The MLP's activation. "silu": x is [gate | up] along the last axis (2·I wide) and silu(gate)·up is returned, I
    wide. "relu2": relu(x)². x, a layer's largest tensor, may be overwritten, and the result may be a part of it."""

    def __call__(self, x_MI: Tensor, *, activation: str) -> Tensor: ...


class PatchEmbed(Protocol):
    """A latent's patches as tokens: patches(latent) Wᵀ + b, plus the timestep's embedding on noisy frames, as y_MO in
    the weight's dtype. Tokens follow each other by frame, then row, then column; each is `patch` x `patch` positions,
    zeros where the latent's height or width ends, and its I = patch² · C features run channel fastest, then column,
    then row. The latent is of any float dtype and stride, and is rounded to the weight's. `noisy_T` (bool) says which
    frames are noisy; None means all."""

    def __call__(
        self,
        latent_CThw: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor,
        timestep_1O: Tensor,
        *,
        patch: int,
        noisy_T: Maybe = None,
    ) -> Tensor: ...


class NormSilu(Protocol):
    """silu(sqrt(I) · z / max(‖z‖₂, 1e-12) · weight) with z = x + bias + residual, those that are given, over the rows
    of x_MI: what the VAE has between convolutions. In fp32, rounded once. Written to `out_MI` where it is given (x's
    shape and dtype, rows contiguous), the next one's padded input. With a residual z takes x's place."""

    def __call__(
        self, x_MI: Tensor, weight_I: Tensor, *, bias_I: Maybe = None, residual_MI: Maybe = None, out_MI: Maybe = None
    ) -> Tensor: ...


class Capture(Protocol):
    """Record what `function` launches, and replay it with less host time. It takes and returns device tensors (a list),
    always of the same shapes, launches the same work whatever they hold, and never waits for the device. The first call
    may run it as it is, to load and compile what it needs."""

    def __call__(self, function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]: ...


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer's numbers, of what lies on this device; `eps` and `weight_fp32` as RmsNorm's, `activation` as Gate's."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    weight_fp32: bool
    activation: str


@dataclass(frozen=True, eq=False)
class ProjectWeights:
    """Of the half before attention. `qkv_OI` is [q | k | v], (H + 2K)·D high. A norm of heads that is None is left out;
    `norm_k_for_gen_D` is that of the text's keys as the media tower reads them. Matrices are as PackLinear's."""

    norm_I: Tensor
    qkv_OI: Weight
    norm_q_D: Tensor | None = None
    norm_k_D: Tensor | None = None
    norm_k_for_gen_D: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FinishWeights:
    """Of the half after attention. `up_OI` is [gate | up] where the activation is "silu"."""

    out_OI: Weight
    norm_I: Tensor
    up_OI: Weight
    down_OI: Weight


@dataclass
class Residual:
    """The residual stream: x_MI + delta_MI, where that is still to be added (else None). A composite replaces what it
    finds, which is then free: its caller holds no rows."""

    x_MI: Tensor
    delta_MI: Tensor | None = None


class Projected(NamedTuple):
    """q, k and v, normed by heads and rotated. v may be a view. k_for_gen is None unless there is a norm for it."""

    q_BSHD: Tensor
    k_BSKD: Tensor
    v_BSKD: Tensor
    k_for_gen_BSKD: Tensor | None


class Project(Protocol):
    """The half of a layer before attention: norm of the residual stream, q/k/v product, per-head norms, rotation.
    Leaves x + delta in the stream. cos and sin have a table for every branch. `tensors()` as Linear's, with norms."""

    def __call__(self, residual: Residual, cos_BSD: Tensor, sin_BSD: Tensor) -> Projected: ...

    def tensors(self) -> dict[str, Tensor] | None: ...


class Finish(Protocol):
    """The half after attention: output product, residual, norm, up, activation, down, residual. Both sums go to the
    stream, the last perhaps as its delta. x may be overwritten."""

    def __call__(self, residual: Residual, attended_BSHD: Tensor) -> None: ...

    def tensors(self) -> dict[str, Tensor] | None: ...


class PackProject(Protocol):
    """Make a layer's `Project`, while loading, with products in `format`; `ops` are the rest and the default halves."""

    def __call__(self, weights: ProjectWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Project: ...


class PackFinish(Protocol):
    """As `PackProject`, of the other half."""

    def __call__(self, weights: FinishWeights, layer: Layer, ops: Ops, *, format: str = "none") -> Finish: ...


class Bytes(NamedTuple):
    """What tensors take and what the allocator holds for them; None where it is not counted."""

    allocated: int | None
    reserved: int | None


class Pending(Protocol):
    """Work under way. `wait()` returns the result once it may be read: `copy`'s by the host, others' by later work."""

    def wait(self) -> Tensor: ...


class Memory(Protocol):
    """Device memory, in bytes, and the way between it and the host; one object serves several devices:
    free, total  what the device can still give, and what there is
    used, peak   by this process: now, when all work is done; at most, since it started or since the last `reset`
    empty        give back what the allocator holds and no tensor uses
    limit        let allocations fail that would take more than `size` in all; Unavailable where there is no such limit
    pinned       an empty tensor on the host that the device copies to and from without a detour
    copy         start to copy, after the device's work so far; `wait()` returns the target
    fetch        the same beside further work; `wait()` holds up the device's, not the host. By default a `copy`"""

    def free(self, device: torch.device) -> int: ...
    def total(self, device: torch.device) -> int: ...
    def used(self, device: torch.device) -> Bytes: ...
    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes: ...
    def empty(self, device: torch.device) -> None: ...
    def limit(self, device: torch.device, size: int) -> None: ...
    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor: ...
    def copy(self, target: Tensor, source: Tensor) -> Pending: ...
    def fetch(self, target: Tensor, source: Tensor) -> Pending: ...
    def synchronize(self, device: torch.device) -> None: ...


class Comm(Protocol):
    """Collectives over a group of P processes (None: all of them), which all make the same calls in the same order.
    Tensors are contiguous and of any dtype; floats of 8 bits travel as bytes. Every call starts the work; `wait()`
    returns the result, fresh unless it is said to be x:
    all_to_all      the p-th part of x's rows (its first axis) goes to process p, and the parts that are received follow
                    each other; parts are equal, or of `sent` and `received` rows
    all_gather      [P, *x.shape]: everyone's x, all of one shape
    reduce_scatter  x is [P, ...]; process p gets the sum of everyone's x[p]
    all_reduce      x becomes the "sum" or the "max" over all processes
    broadcast       x becomes what the group's process `source` has
    exchange        x goes to the group's process `target` while one of its shape comes from `source`, in a ring"""

    def all_to_all(self, x: Tensor, group: Group = None, *, sent: Parts = None, received: Parts = None) -> Pending: ...
    def all_gather(self, x: Tensor, group: Group = None) -> Pending: ...
    def reduce_scatter(self, x: Tensor, group: Group = None) -> Pending: ...
    def all_reduce(self, x: Tensor, group: Group = None, *, op: str = "sum") -> Pending: ...
    def broadcast(self, x: Tensor, source: int, group: Group = None) -> Pending: ...
    def exchange(self, x: Tensor, target: int, source: int, group: Group = None) -> Pending: ...
    def barrier(self, group: Group = None) -> None: ...


@dataclass(frozen=True)
class Ops:
    """One implementation of each op, as the plan chose. `prepare` is the attention's, where its row has one."""

    attention: Attention
    pack_linear: PackLinear
    rms_norm: RmsNorm
    norm_rope: NormRope
    gate: Gate
    patch_embed: PatchEmbed
    norm_silu: NormSilu
    project: PackProject
    finish: PackFinish
    capture: Capture
    memory: Memory
    comm: Comm
    prepare: Callable[[Tensor, Tensor], Any] | None = None


@dataclass(frozen=True)
class Quantized:
    """Contract 1's rows in 8 bits, which its norms and gates could return. Its plugins import it; nothing else does."""

    values_MI: Tensor
    scale_M1: Tensor
    dtype: torch.dtype
