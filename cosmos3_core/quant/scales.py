"""Scales of blocks in torch: how they are chosen, stored and read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import SCALES, Element, Exponent, Format

E8M0_BIAS, E8M0_NAN = 127, 255


def of_tensor(x: Tensor, format: Format) -> Tensor:
    """The scale of a whole tensor, fp32 of no dimension. Where blocks have scales as well, the largest block's becomes
    the largest that there is. 1 for zeros, and for nothing at all."""
    if not x.numel():
        return torch.ones((), device=x.device)
    low, high = x.aminmax()
    most = format.of_elements.most * (SCALES[format.scale].most if format.tensor_scale else 1)
    largest = torch.maximum(-low.float(), high.float())
    # A tensor, because some devices divide by a number by multiplying with its reciprocal, which rounds once more.
    scale = largest / torch.full_like(largest, most)
    return torch.where(scale == 0, 1.0, scale)


def of_super_blocks(x: Tensor, format: Format) -> Tensor:
    """The largest magnitude of each super block of x [..., I] over the element's, [..., I/super_group] in fp32."""
    largest = _by_super_block(x.float().abs(), format.super_group).amax(-1)
    return largest / torch.full_like(largest, format.of_elements.most)


def choose(blocks: Tensor, format: Format, tensor_scale: Tensor | None) -> dict[str, Tensor]:
    """Scales of blocks [..., I/group, n] in fp32 as they are stored, and what belongs to them: fields of `Packed`."""
    element = format.of_elements
    if format.zeros or format.minima:
        return _between(blocks, format)
    if format.scale == "e8m0":
        return {"scales": power_of_two(blocks.abs().amax(-1), element, format.exponent)}
    if element.offset and format.packer == "compressed-tensors":
        largest = blocks.abs().amax(-1)
        scales = largest / torch.full_like(largest, element.most - 0.5)
    elif element.offset:
        # The largest element becomes the most negative integer, so that all codes are used; its scale is negative
        # where it is positive.
        low, high = blocks.aminmax(dim=-1)
        scales = torch.where(high < -low, low, high) / -element.most
    else:
        largest = blocks.abs().amax(-1)
        scales = largest / torch.full_like(largest, element.most)
    if format.super_scale:
        return _multiples("scales", scales, format)
    return {"scales": _stored(scales if tensor_scale is None else scales / tensor_scale, format.scale)}


def by_reciprocal(blocks: Tensor, format: Format) -> tuple[dict[str, Tensor], Tensor]:
    """The same for a format with a `packer`, and the blocks in units of their scales: integers where elements are."""
    element, low = format.of_elements, blocks.amin(-1)
    if format.minima:
        scales = (blocks.amax(-1) - low) / torch.full_like(low, element.most)
        chosen, blocks = {"minima": _stored(low, format.scale)}, blocks - low.unsqueeze(-1)
    else:
        chosen, extreme = {}, blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scales = extreme / -element.most if element.offset else extreme.abs() / torch.full_like(low, element.most)
    none = ((scales == 0) | ~scales.isfinite()).unsqueeze(-1)
    units = torch.where(none, 0.0, blocks * (1 / scales).unsqueeze(-1))
    if element.integer:
        if element.dtype:
            whole = units.abs().floor()
            units = units.sign() * (whole + (2 * (units.abs() - whole)).floor())
        else:
            units = (units + (element.offset + 0.5)).floor() - element.offset
    return chosen | {"scales": _stored(scales, format.scale)}, units


def _between(blocks: Tensor, format: Format) -> dict[str, Tensor]:
    """Scales that put the least element at code 0 and the largest at the last one. With a zero point, 0 has a code."""
    low, high = blocks.aminmax(dim=-1)
    if format.zeros or format.super_scale:  # a super block's minima have one sign
        low = low.clamp_max(0)
    if format.zeros:
        high = high.clamp_min(0)
    most = format.of_elements.most
    scales = (high - low) / torch.full_like(low, most)
    if format.super_scale:
        return _multiples("scales", scales, format) | _multiples("minima", low, format)
    chosen = {"scales": _stored(scales, format.scale)}
    if format.minima:
        return chosen | {"minima": _stored(low, format.scale)}
    zeros = (-low / chosen["scales"].float()).nan_to_num(0.0).round().clamp(0, most)
    return chosen | {"zeros": zeros.to(torch.uint8)}


def _multiples(name: str, x: Tensor, format: Format) -> dict[str, Tensor]:
    """Numbers [..., I/group] as multiples of one for each super block: fields `name` and its super block's."""
    scale, each = SCALES[format.scale], format.super_group // format.group
    grouped = _by_super_block(x, each)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    # Of numbers with one sign that is the super block's; otherwise each has its own.
    sign = largest.sign() if scale.dtype == "uint8" else 1.0
    units = _stored(largest.abs() / torch.full_like(largest, scale.most) * sign, format.super_scale)
    unit = units.float().unsqueeze(-1)
    codes = torch.where(unit == 0, 0.0, grouped / unit).nan_to_num(0.0).round()
    codes = codes.clamp(0 if scale.dtype == "uint8" else -scale.most, scale.most).flatten(-2)[..., : x.shape[-1]]
    return {name: codes.to(getattr(torch, scale.dtype)), f"super_{name}": units}


def _by_super_block(x: Tensor, size: int) -> Tensor:
    """[..., n, size]; what the last one lacks is 0."""
    padded: Tensor = F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    return padded


def _stored(scales: Tensor, scale: str) -> Tensor:
    if scale == "e4m3":
        scales = scales.clamp(-SCALES[scale].most, SCALES[scale].most)
    return scales.to(getattr(torch, SCALES[scale].dtype))


def power_of_two(largest: Tensor, element: Element, rule: Exponent) -> Tensor:
    """uint8: the exponent + 127 of the scale of blocks with these largest magnitudes; 0 for one of zeros, and 255,
    which is NaN, for one that is not finite."""
    mantissa, exponent = torch.frexp(largest / element.most if rule == "rceil" else largest)  # m 2^e, m in [1/2, 1)
    if rule in ("ceil", "rceil"):
        exponent = exponent - (mantissa == 0.5).int()
    else:
        rounds_up = mantissa >= 1 - 2.0 ** -(element.mantissa + 2)
        exponent = exponent - 1 + (rounds_up.int() if rule == "even" else 0)
    if rule != "rceil":
        exponent = exponent - element.top
    biased = torch.where(largest == 0, 0, exponent.clamp(-E8M0_BIAS, E8M0_BIAS) + E8M0_BIAS)
    return torch.where(largest.isfinite(), biased, E8M0_NAN).to(torch.uint8)


def factors(
    format: Format, scales: Tensor, super_scales: Tensor | None = None, tensor_scale: Tensor | None = None
) -> Tensor:
    """Stored scales (or minima) as fp32 numbers, in their shape."""
    if format.scale == "e8m0":
        found = torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - E8M0_BIAS)
        found = torch.where(scales == E8M0_NAN, torch.nan, found)
    else:
        found = scales.float()
    if super_scales is not None:
        each = format.super_group // format.group
        found = found * super_scales.float().repeat_interleave(each, -1)[..., : scales.shape[-1]]
    return found if tensor_scale is None else found * tensor_scale
