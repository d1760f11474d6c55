"""Every op in eager torch. These run on any torch device and define what correct means: another kernel is judged by its
error against an fp32 evaluation of these, relative to what these lose in bf16 themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Segment
from ..contract.attention import joined, log_sum_exp
from ..quant import FORMATS, Format
from ..quant.numerics import Packed, multiply, pack


def attention(
    q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """See contract.ops.Attention. Segments are concatenated: plain, and right on every device."""
    k_BTKD, v_BTKD = joined(q_BSHD, segments, causal)
    groups = q_BSHD.shape[2] // k_BTKD.shape[2]
    q, k, v = q_BSHD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2)
    # Not every device's fused attention takes fewer key heads than query heads; a repeated head is right everywhere.
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out_BHSD = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out_BHSD.transpose(1, 2), log_sum_exp(q_BSHD, k_BTKD, causal) if want_lse else None


WIDENED = 32
"""Rows from which 16-bit numbers are multiplied as fp32 ones on a processor without AVX-512: torch takes 2 to 10 times
as long for the product itself there, and at fewer rows widening the weight takes longer than that."""


class PackedLinear:
    """A weight kept as it came: [O, I] in the model dtype."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None):
        self.weight_OI, self.bias_O = weight_OI, bias_O
        narrow = weight_OI.is_cpu and weight_OI.dtype in (torch.bfloat16, torch.float16)
        self.slow = narrow and torch.backends.cpu.get_cpu_capability() == "AVX2"

    def __call__(self, x_MI: Tensor) -> Tensor:
        if self.slow and len(x_MI) >= WIDENED:
            bias = None if self.bias_O is None else self.bias_O.float()
            return F.linear(x_MI.float(), self.weight_OI.float(), bias).to(x_MI.dtype)
        return F.linear(x_MI, self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight_OI} | ({} if self.bias_O is None else {"bias": self.bias_O})


class QuantizedLinear:
    """A weight kept in its format, and made numbers again in every call, some outputs at a time: small, right, slow."""

    def __init__(self, weight: Packed, bias_O: Tensor | None):
        self.weight, self.bias_O = weight, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return multiply(x_MI, self.weight, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return self.weight.tensors() | ({} if self.bias_O is None else {"bias": self.bias_O})


@dataclass(frozen=True)
class LinearPacker:
    """contract.ops.PackLinear in every one of these formats."""

    formats: Mapping[str, Format]

    def __call__(
        self, weight_OI: Tensor | Packed, bias_O: Tensor | None, *, format: str = "none"
    ) -> PackedLinear | QuantizedLinear:
        if isinstance(weight_OI, Packed):
            if weight_OI.format.name != format:
                raise ValueError(f"a weight in {weight_OI.format.name} is asked for in {format}")
            return QuantizedLinear(weight_OI, bias_O)
        if format == "none":
            return PackedLinear(weight_OI, bias_O)
        return QuantizedLinear(pack(weight_OI, self.formats[format], weight=True), bias_O)


pack_linear = LinearPacker(FORMATS)


def _normalise(x: Tensor, weight: Tensor, eps: float, weight_fp32: bool) -> Tensor:
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    return (x32 * weight.float()).to(x.dtype) if weight_fp32 else x32.to(x.dtype) * weight


def rms_norm(
    x_MI: Tensor,
    weight_I: Tensor,
    *,
    eps: float,
    residual_MI: Tensor | None = None,
    weight_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """See contract.ops.RmsNorm."""
    z_MI = x_MI if residual_MI is None else x_MI + residual_MI
    return _normalise(z_MI, weight_I, eps, weight_fp32), z_MI


def norm_rope(
    heads: Sequence[tuple[Tensor, Tensor | None]],
    cos_BSD: Tensor,
    sin_BSD: Tensor,
    *,
    eps: float,
    weight_fp32: bool = False,
) -> list[Tensor]:
    """See contract.ops.NormRope."""
    cos, sin = cos_BSD.unsqueeze(2), sin_BSD.unsqueeze(2)
    out = []
    for x_BSHD, weight_D in heads:
        x = x_BSHD if weight_D is None else _normalise(x_BSHD, weight_D, eps, weight_fp32)
        first, second = x.chunk(2, dim=-1)
        out.append(x * cos + torch.cat((-second, first), dim=-1) * sin)
    return out


def gate(x_MI: Tensor, *, activation: str) -> Tensor:
    """See contract.ops.Gate."""
    if activation == "relu2":
        return x_MI.relu_().square_()
    gate_MI, up_MI = x_MI.chunk(2, dim=-1)
    return F.silu(gate_MI, inplace=True).mul_(up_MI)


def patch_embed(
    latent_CThw: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor,
    timestep_1O: Tensor,
    *,
    patch: int,
    noisy_T: Tensor | None = None,
) -> Tensor:
    """See contract.ops.PatchEmbed."""
    frames, height, width = latent_CThw.shape[1:]
    padded = F.pad(latent_CThw.to(weight_OI.dtype), (0, -width % patch, 0, -height % patch))
    split = padded.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    tokens_TNI = split.permute(1, 2, 4, 3, 5, 0).reshape(frames, -1, weight_OI.shape[1])
    y_TNO = F.linear(tokens_TNI, weight_OI, bias_O)
    if noisy_T is None:
        y_TNO += timestep_1O
    else:
        y_TNO.addcmul_(noisy_T.to(y_TNO.dtype).view(-1, 1, 1), timestep_1O)
    return y_TNO.flatten(0, 1)


def norm_silu(
    x_MI: Tensor,
    weight_I: Tensor,
    *,
    bias_I: Tensor | None = None,
    residual_MI: Tensor | None = None,
    out_MI: Tensor | None = None,
) -> Tensor:
    """See contract.ops.NormSilu. One fp32 copy, changed in place: in a decode these rows are the largest tensors."""
    z_MI = x_MI.to(torch.float32, copy=True)
    if bias_I is not None:
        z_MI += bias_I
    if residual_MI is not None:
        z_MI += residual_MI
        x_MI.copy_(z_MI)
    z_MI /= z_MI.norm(dim=-1, keepdim=True).clamp_min_(1e-12)
    z_MI *= x_MI.shape[-1] ** 0.5 * weight_I.float()
    F.silu(z_MI, inplace=True)
    return z_MI.to(x_MI.dtype) if out_MI is None else out_MI.copy_(z_MI)


def capture(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """See contract.ops.Capture. Nothing is recorded: every call is the function itself."""
    return function
