"""Ops over rows by the vendor's fused operators: norms, rotation and gate.

Where the vendor rounds: npu_rms_norm once, after the weight; npu_add_rms_norm the sum, and before the weight, on the
910B and 910C, and once on the 950, as CANN's own tests have them (github.com/hicann/ops-nn,
norm/*/tests/assets/golden.py). The order that is asked for is kept: a sum that is to be rounded is then an addition of
its own, a weight that comes after a rounding a product of its own, or an addition's second step: x + x is exact in
bfloat16, and its norm with four times the eps is that of x.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Device, NormRope, RmsNorm

UNDERFLOW = 1e-24
"""In place of the least norm 1e-12 of contract.ops.NormSilu: its square, which fp32 still holds."""
IN_PLACE_HEAD_DIMS = (64, 128)
"""Head dims for which the operator that rotates two tensors at once is documented on every chip."""


@functools.cache
def ones(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A weight that changes nothing: one for all layers."""
    return torch.ones(width, dtype=dtype, device=device)


def normed(x: Tensor, eps: float) -> Tensor:
    """Rows over the root of their mean square, rounded."""
    import torch_npu

    found: Tensor = torch_npu.npu_rms_norm(x, ones(x.shape[-1], x.dtype, x.device), eps)[0]
    return found


def each_normed(parts: Sequence[Tensor], eps: float) -> Iterator[Tensor]:
    """`normed` of each [B, S, H, D]. Two that lie beside each other in one projection are normed as one, and one that
    comes again is not normed again."""
    found: dict[int, Tensor] = {}
    if len(parts) >= 2 and beside(parts[0], parts[1]):
        first, second = parts[:2]
        units = normed(together(first, second), eps)
        found[id(first)], found[id(second)] = units.split([first.shape[2], second.shape[2]], dim=2)
    for x in parts:
        if id(x) not in found:
            found[id(x)] = normed(x, eps)
        yield found[id(x)]


def beside(first: Tensor, second: Tensor) -> bool:
    """Whether the second's heads follow the first's in memory."""
    return (
        first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and first.stride() == second.stride()
        and second.storage_offset() == first.storage_offset() + first.shape[2] * first.stride(2)
    )


def together(first: Tensor, second: Tensor) -> Tensor:
    """The heads of both, which lie beside each other, as one view."""
    B, S, H, D = first.shape
    return first.as_strided((B, S, H + second.shape[2], D), first.stride(), first.storage_offset())


def adds_and_rounds_first(arch: str) -> bool:
    """Whether npu_add_rms_norm of an architecture rounds before the weight, too."""
    return arch != "Ascend950"


def build_rms_norm(device: Device) -> RmsNorm:
    rounds_added = adds_and_rounds_first(device.arch)

    def rms_norm(
        x_MI: Tensor,
        weight_I: Tensor,
        *,
        eps: float,
        residual_MI: Tensor | None = None,
        weight_fp32: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """See contract.ops.RmsNorm."""
        import torch_npu

        exact = x_MI.dtype == torch.float32
        rounds_first = not weight_fp32 and not exact
        if residual_MI is not None and (exact or (rounds_first and rounds_added)):
            y_MI, _, z_MI = torch_npu.npu_add_rms_norm(x_MI, residual_MI, weight_I, eps)
            return y_MI, z_MI
        z_MI = x_MI if residual_MI is None else x_MI + residual_MI
        if rounds_first:
            return normed(z_MI, eps) * weight_I, z_MI
        return torch_npu.npu_rms_norm(z_MI, weight_I, eps)[0], z_MI

    return rms_norm


def build_norm_rope(device: Device) -> NormRope:
    rounds_added = adds_and_rounds_first(device.arch)

    def norm_rope(
        heads: Sequence[tuple[Tensor, Tensor | None]],
        cos_BSD: Tensor,
        sin_BSD: Tensor,
        *,
        eps: float,
        weight_fp32: bool = False,
    ) -> list[Tensor]:
        """See contract.ops.NormRope."""
        import torch_npu

        if weight_fp32 or cos_BSD.dtype == torch.float32:
            ours = [x if weight is None else torch_npu.npu_rms_norm(x, weight, eps)[0] for x, weight in heads]
        elif rounds_added and cos_BSD.dtype == torch.bfloat16:
            ours = [
                x if weight is None else torch_npu.npu_add_rms_norm(x, x, weight, 4 * eps)[0] for x, weight in heads
            ]
        else:
            units = each_normed([x for x, weight in heads if weight is not None], eps)
            ours = [x if weight is None else next(units) * weight for x, weight in heads]
        return rotated(ours, [weight is not None for _, weight in heads], cos_BSD, sin_BSD)

    return norm_rope


def rotated(heads: Sequence[Tensor], fresh: Sequence[bool], cos_BSD: Tensor, sin_BSD: Tensor) -> list[Tensor]:
    """Heads in their rotation. The first two are rotated at once, over themselves, where they are `fresh`."""
    import torch_npu

    cos, sin = cos_BSD.unsqueeze(2), sin_BSD.unsqueeze(2)
    at_once = len(cos) == len(heads[0]) and cos.shape[-1] in IN_PLACE_HEAD_DIMS and fresh[:2] == [True, True]
    if not at_once:
        return [torch_npu.npu_rotary_mul(x, cos, sin) for x in heads]
    torch_npu.npu_apply_rotary_pos_emb(heads[0], heads[1], cos, sin)
    return [*heads[:2], *(torch_npu.npu_rotary_mul(x, cos, sin) for x in heads[2:])]


def gate(x_MI: Tensor, *, activation: str) -> Tensor:
    """See contract.ops.Gate. The vendor has an operator for "silu"."""
    import torch_npu

    return torch_npu.npu_swiglu(x_MI) if activation == "silu" else x_MI.relu_().square_()


def norm_silu(
    x_MI: Tensor,
    weight_I: Tensor,
    *,
    bias_I: Tensor | None = None,
    residual_MI: Tensor | None = None,
    out_MI: Tensor | None = None,
) -> Tensor:
    """See contract.ops.NormSilu: an RMS norm whose eps is next to nothing, and silu, in fp32 between them."""
    import torch_npu

    terms = [term for term in (bias_I, residual_MI) if term is not None]
    z_MI = x_MI.to(torch.float32, copy=bool(terms))
    for term in terms:
        z_MI += term
    if residual_MI is not None:
        x_MI.copy_(z_MI)
    y_MI = F.silu(torch_npu.npu_rms_norm(z_MI, weight_I.float(), UNDERFLOW)[0], inplace=True)
    return y_MI.to(x_MI.dtype) if out_MI is None else out_MI.copy_(y_MI)
