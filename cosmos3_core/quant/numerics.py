"""The formats in plain torch, on any device: what a kernel's values and scales must be, or be equivalent to.

Values are rounded to nearest, ties to even, and saturate. Everything is computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import ELEMENTS, Format

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_BIAS = 127
INT4_OFFSET = 8
AT_ONCE = 2**24
"""Elements that are packed together: what that takes in fp32 stays small beside a large weight."""


@dataclass(frozen=True)
class Packed:
    """A tensor [rows, ..., I] in `format`.

    `values`: int8 or float8_e4m3fn [..., I]; 4-bit codes are uint8 [..., I/2], the even index in the low nibble. A code
    of e2m1 is sign, 2 bits exponent, 1 bit mantissa; of int4 the integer + 8.
    `scales`: [..., I/group], or [..., 1] for a whole row; a weight's [O/outputs, I/group]. float32, float8_e4m3fn, or
    uint8: e8m0's exponent + 127.
    `tensor_scale`: fp32 of no dimension, or None.
    """

    format: Format
    values: Tensor
    scales: Tensor
    tensor_scale: Tensor | None = None


def pack(x: Tensor, format: Format, *, weight: bool = False) -> Packed:
    """Quantize activations x_MI, or a weight_OI. Raises ValueError where its sides are no multiples of what shares a
    scale."""
    width, outputs = x.shape[-1], format.outputs if weight else 1
    for side, shared, what in ((width, format.group or width, "input features"), (len(x), outputs, "outputs")):
        if side % shared:
            raise ValueError(f"{format.name} shares a scale among {shared} {what}, which do not divide {side}")
    tensor_scale = _tensor_scale(x, format) if format.tensor_scale else None
    at_once = max(1, AT_ONCE // (x[0].numel() * outputs)) * outputs
    parts = [_pack(rows, format, tensor_scale, outputs) for rows in x.split(at_once)]
    values, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    return Packed(format, values, scales, tensor_scale)


def _pack(x: Tensor, format: Format, tensor_scale: Tensor | None, outputs: int) -> tuple[Tensor, Tensor]:
    """Values and scales of some rows, of which `outputs` consecutive ones share theirs."""
    blocks = x.float().unflatten(-1, (-1, format.group or x.shape[-1]))
    together = blocks if outputs == 1 else blocks.unflatten(0, (-1, outputs)).transpose(1, 2).flatten(2)
    scales = _scales(together, format, tensor_scale)
    factors = _factors(scales, tensor_scale).repeat_interleave(outputs, 0).unsqueeze(-1)
    # A factor of 0 belongs to a block of zeros, or of values too small for its scale.
    scaled = torch.where(factors == 0, 0.0, blocks / factors).flatten(-2)
    return _encode(scaled, format.element), scales


def unpack(packed: Packed) -> Tensor:
    """What the values and scales stand for, fp32 [..., I]."""
    values = _decode(packed.values, packed.format.element)
    factors = _factors(packed.scales, packed.tensor_scale)
    factors = factors.repeat_interleave(len(values) // len(factors), 0)
    blocks: Tensor = values.unflatten(-1, (factors.shape[-1], -1))
    return (blocks * factors.unsqueeze(-1)).flatten(-2)


def fake_quant(x: Tensor, format: Format, *, weight: bool = False) -> Tensor:
    """`x`, in its own dtype, after a round trip through the format."""
    return unpack(pack(x, format, weight=weight)).to(x.dtype)


def _tensor_scale(x: Tensor, format: Format) -> Tensor:
    """The largest block's scale becomes the largest e4m3 number."""
    most = x.abs().max().float() / (ELEMENTS[format.element].most * ELEMENTS[format.scale].most)
    return torch.where(most == 0, 1.0, most)


def _scales(blocks: Tensor, format: Format, tensor_scale: Tensor | None) -> Tensor:
    """One scale for each block [..., group], in the dtype it is stored in."""
    element = ELEMENTS[format.element]
    if format.element == "int4":
        # The largest element becomes -8, so that all 16 codes are used; its scale is negative where it is positive.
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        return extreme / -element.most
    largest = blocks.abs().amax(-1)
    if format.scale == "e8m0":
        return _e8m0(largest, element.top)
    # A tensor, because some devices divide by a number by multiplying with its reciprocal, which rounds once more.
    scales = largest / torch.full_like(largest, element.most)
    if format.scale != "e4m3":
        return scales
    return _e4m3(scales if tensor_scale is None else scales / tensor_scale)


def _e8m0(largest: Tensor, top: int) -> Tensor:
    """The OCP rule (MX v1.0, 6.3): floor(log2 largest) - top, so that up to 2^(top + 1) is scaled to, and saturates."""
    _, exponent = torch.frexp(largest)  # largest = m 2^exponent with m in [1/2, 1)
    exponent = torch.where(largest == 0, -E8M0_BIAS, exponent - 1 - top)
    return (exponent.clamp(-E8M0_BIAS, E8M0_BIAS) + E8M0_BIAS).to(torch.uint8)


def _factors(scales: Tensor, tensor_scale: Tensor | None) -> Tensor:
    """The scales as fp32 numbers."""
    if scales.dtype == torch.uint8:
        return torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - E8M0_BIAS)
    return scales.float() if tensor_scale is None else scales.float() * tensor_scale


def _e4m3(x: Tensor) -> Tensor:
    most = ELEMENTS["e4m3"].most
    return x.clamp(-most, most).to(torch.float8_e4m3fn)


def _encode(x: Tensor, element: str) -> Tensor:
    if element == "e4m3":
        return _e4m3(x)
    if element == "int8":
        return x.round().clamp(-127, 127).to(torch.int8)
    if element == "int4":
        return _pairs(x.round().clamp(-8, 7).to(torch.int8) + INT4_OFFSET)
    # Steps are 0.5 below 2, 1 below 4, then 2; an even multiple of the step is an even code, as ties to even want it.
    magnitude = x.abs().clamp_max(6.0)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    code = (magnitude / step).round() + 2 * step.log2() + 2
    return _pairs(code.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3))


def _decode(values: Tensor, element: str) -> Tensor:
    if element in ("int8", "e4m3"):
        return values.float()
    codes = torch.stack((values & 15, values >> 4), dim=-1).flatten(-2)
    if element == "int4":
        return codes.float() - INT4_OFFSET
    table = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)], device=values.device)
    return table[codes.long()]


def _pairs(codes: Tensor) -> Tensor:
    codes = codes.to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
