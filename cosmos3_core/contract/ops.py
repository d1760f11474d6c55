"""The tensor operations a device may own, as protocols. The transformer is written on these and on nothing else.

Shape letters, used in names and docstrings everywhere:
    B batch (guidance branches)   S query tokens   T key tokens   H query heads   K key/value heads   D head dim
    M rows (B times S)            I input features   O output features
All arguments after the tensors are keyword-only, so a later contract can add one with a default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """Rows in an 8-bit format of `cosmos3_core.quant`: x_MI = values_MI · scale_M1. `values_MI` is int8 or
    float8_e4m3fn and contiguous, `scale_M1` is fp32; `dtype` is what x had, and what a product of it will have."""

    values_MI: Tensor
    scale_M1: Tensor
    dtype: torch.dtype


class Attention(Protocol):
    """softmax(q kᵀ / sqrt(D)) v over the keys of all segments, as if they were concatenated along T.

    `segments` is a sequence of (k_BTKD, v_BTKD). A segment is one producer's keys: the text's, which stay the same for
    the whole run, and the media's, which change every step. They are handed over apart so that a kernel need not copy
    them together and may scale each on its own. Query head j reads key/value head `j * K // H`.
    `causal` needs one segment with T == S. Returns out_BSHD in q's dtype, and with `want_lse` the natural log-sum-exp
    of the scaled scores as fp32 lse_BHS (else None), which is what merging partial results needs.
    """

    def __call__(
        self, q_BSHD: Tensor, segments: Sequence[tuple[Tensor, Tensor]], *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]: ...


class Linear(Protocol):
    """y_MO = x_MI Wᵀ + b, in x's dtype. Owns its packed weight.

    One that multiplies rows in a format says so by an attribute `takes`, the format's name: it is then handed either a
    tensor, which it quantizes itself, or `Quantized` rows in that format. Without the attribute it gets tensors only.

    One that may be able to apply an MLP's gate has a method `gated()`. Of a Linear that makes [gate | up], 2·I wide, it
    is called once, while loading, for the Linear to use instead. Where that one's attribute `gates` is true, its result
    is silu(gate)·up, I wide and rounded once; otherwise it is what it was.

    One that can add to a residual has an attribute `adds` that is true, and is then also called with `residual_MO`,
    contiguous and in x's dtype: it returns residual + x Wᵀ + b, and may do so in residual's memory, which nobody reads
    again. What it is called with otherwise stays as it is.
    """

    def __call__(self, x_MI: Tensor | Quantized) -> Tensor: ...


class PackLinear(Protocol):
    """Make a `Linear` from weight_OI and bias_O (or None), once per weight, while loading. The weight may be kept as
    it is or replaced by a packed form; the caller drops its own reference. `format` names a quantization format.
    A row that takes "none" gets fp32 weights too, whatever the plan's dtype is: the timestep MLP's."""

    def __call__(self, weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear: ...


class RmsNorm(Protocol):
    """With z = x + residual (or x): returns (z · rsqrt(mean(z²) + eps) · weight, z), both x_MI's shape and dtype.

    Mean and rsqrt in fp32. `weight_fp32` False rounds the normalised value to the dtype before the weight multiplies
    it (Qwen); True multiplies in fp32 and rounds once (Nemotron).

    With a `format`, which only a row that declares it is asked for, the first result is `Quantized` in that format:
    just what rounding it to the dtype and then quantizing its rows gives, so that it does not matter who quantizes.
    z stays a tensor.
    """

    def __call__(
        self,
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        eps: float,
        residual_MI: Tensor | None = None,
        weight_fp32: bool = False,
        format: str = "none",
    ) -> tuple[Tensor | Quantized, Tensor]: ...


class NormRope(Protocol):
    """Per-head RMS norm (skipped where the weight is None), then rotary embedding, for several projections at once.

    `heads` is a sequence of (x_BSHD, weight_D or None); H may differ between them. cos_BSD and sin_BSD are in x's dtype
    and may have B = 1. Rotation is by halves: x·cos + [-x₂, x₁]·sin. Returns one tensor of x_BSHD's shape for each.
    """

    def __call__(
        self,
        heads: Sequence[tuple[Tensor, Tensor | None]],
        cos_BSD: Tensor,
        sin_BSD: Tensor,
        *,
        eps: float,
        weight_fp32: bool = False,
    ) -> list[Tensor]: ...


class Gate(Protocol):
    """The MLP's activation. "silu": x is [gate | up] along the last axis (2·I wide) and silu(gate)·up is returned, I
    wide. "relu2": relu(x)², the same width. x is the largest tensor of a layer and not read again: the op may overwrite
    it, and the result may be a part of it. `format`: as RmsNorm's."""

    def __call__(self, x_MI: Tensor, *, activation: str, format: str = "none") -> Tensor | Quantized: ...


class PatchEmbed(Protocol):
    """A latent's patches as tokens: patches(latent) Wᵀ + b, plus the timestep's embedding on noisy frames, as y_MO in
    the weight's dtype.

    Tokens follow each other by frame, then row, then column; each is `patch` x `patch` positions, zeros where the
    latent's height or width ends, and its I = patch² · C features run channel fastest, then column, then row. The
    latent is of any float dtype and stride, and is rounded to the weight's. `noisy_T` (bool) says which frames are
    noisy; None means all.
    """

    def __call__(
        self,
        latent_CThw: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor,
        timestep_1O: Tensor,
        *,
        patch: int,
        noisy_T: Tensor | None = None,
    ) -> Tensor: ...


class NormSilu(Protocol):
    """silu(sqrt(I) · z / max(‖z‖₂, 1e-12) · weight) with z = x + bias + residual, those that are given, over the rows
    of x_MI: what the VAE has between two convolutions, whose activations lie channels-last. In fp32, rounded once.
    Written to `out_MI` where it is given (x's shape and dtype, rows contiguous): the next convolution's padded input,
    which then needs no copy. With a residual z is needed later: it takes x's place."""

    def __call__(
        self,
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        bias_I: Tensor | None = None,
        residual_MI: Tensor | None = None,
        out_MI: Tensor | None = None,
    ) -> Tensor: ...


class Capture(Protocol):
    """Make a callable that does what `function` does with less host time per call: record what it launches and replay
    it. `function` takes device tensors and returns a list of them; it launches the same work whatever they hold, never
    waits for the device, and is called with the same shapes every time. What the callable returns may be overwritten
    by its next call. The first call may run `function` as it is, to load and compile what it needs."""

    def __call__(self, function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]: ...


@dataclass(frozen=True)
class Ops:
    """One implementation of each op, chosen by the plan and handed to the model when it is built. `formats` says, by
    op, in which formats rms_norm and gate can return their rows."""

    attention: Attention
    pack_linear: PackLinear
    rms_norm: RmsNorm
    norm_rope: NormRope
    gate: Gate
    patch_embed: PatchEmbed
    norm_silu: NormSilu
    capture: Capture
    formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
