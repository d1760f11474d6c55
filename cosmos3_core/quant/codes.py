"""Elements in torch: numbers to codes and back, and codes of a few bits in bytes.

Values are rounded to nearest, ties to even, and saturate. NaN becomes NaN where the element has one, and 0 otherwise:
whoever packs lets the scale be NaN.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from .formats import ELEMENTS, Element


def encode(x: Tensor, element: str) -> Tensor:
    """fp32 numbers [..., I], in units of their scale, as stored: in the element's dtype, or codes packed in uint8
    [..., I x bits / 8]."""
    meant = ELEMENTS[element]
    if meant.dtype == "int8":
        return x.nan_to_num(0.0).round().clamp(-meant.most, meant.most).to(torch.int8)
    if meant.dtype:
        return x.clamp(-meant.most, meant.most).to(getattr(torch, meant.dtype))
    return to_bytes(_code(x.nan_to_num(0.0), meant), meant.bits)


def decode(values: Tensor, element: str) -> Tensor:
    """The numbers that stored values stand for, fp32 [..., I]."""
    meant = ELEMENTS[element]
    if meant.dtype:
        return values.float()
    codes = from_bytes(values, meant.bits)
    if meant.values:
        return torch.tensor(meant.values, device=values.device)[codes.long()]
    return codes.float() - meant.offset


def _code(x: Tensor, element: Element) -> Tensor:
    if element.integer:
        return (x.round() + element.offset).clamp(0, 2**element.bits - 1).to(torch.uint8)
    if element.mantissa:
        return _e2m1(x, element.most)
    table = torch.tensor(element.values, device=x.device)  # in ascending order
    return torch.bucketize(x, (table[1:] + table[:-1]) / 2).to(torch.uint8)


def _e2m1(x: Tensor, most: float) -> Tensor:
    """Steps are 0.5 below 2, 1 below 4, then 2; an even multiple of the step is an even code, as ties to even want
    it."""
    magnitude = x.abs().clamp_max(most)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    code = (magnitude / step).round() + 2 * step.log2() + 2
    return code.to(torch.uint8) | (torch.signbit(x).to(torch.uint8) << 3)


def to_bytes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., I] of so many bits as uint8 [..., I x bits / 8]: a stream that begins with the lowest bits of a
    byte, so that of two codes of 4 bits the even index is in the low nibble. Raises ValueError where codes do not fill
    bytes."""
    together = 8 // gcd(bits, 8)
    if codes.shape[-1] % together:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits fill no whole bytes")
    words: Tensor = codes.unflatten(-1, (-1, together)).to(torch.uint8 if bits * together == 8 else torch.int64)
    word = words[..., 0].clone()
    for i in range(1, together):
        word |= words[..., i] << (bits * i)
    if bits * together == 8:
        return word
    return torch.stack([(word >> at) & 255 for at in range(0, bits * together, 8)], -1).to(torch.uint8).flatten(-2)


def from_bytes(values: Tensor, bits: int) -> Tensor:
    """The codes of `to_bytes`, uint8 [..., I]."""
    together, most = 8 // gcd(bits, 8), 2**bits - 1
    size = bits * together // 8
    words = values.unflatten(-1, (-1, size))
    word = words[..., 0].to(torch.uint8 if size == 1 else torch.int64)
    for j in range(1, size):
        word = word | (words[..., j].long() << (8 * j))
    codes = torch.stack([(word >> (bits * i)) & most for i in range(together)], -1)
    return codes.to(torch.uint8).flatten(-2)
