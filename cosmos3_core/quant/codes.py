"""Elements in torch: numbers to codes and back, and codes of a few bits in bytes.

Values are rounded to nearest, ties to even, and saturate. They are numbers: where there are NaNs, the scale says so.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from .formats import Element

FP32_BIAS = 127


def encode(x: Tensor, element: Element) -> Tensor:
    """fp32 numbers [..., I], in units of their scale, as stored: in the element's dtype, or codes packed in uint8
    [..., I x bits / 8]."""
    if element.dtype == "int8":
        return x.round().clamp(-element.most, element.most).to(torch.int8)
    if element.dtype:
        return x.clamp(-element.most, element.most).to(getattr(torch, element.dtype))
    return to_bytes(_code(x, element), element.bits)


def decode(values: Tensor, element: Element) -> Tensor:
    """The numbers that stored values stand for, fp32 [..., I]."""
    if element.dtype:
        return values.float()
    codes = from_bytes(values, element.bits)
    if element.values:
        return torch.tensor(element.values, device=values.device)[codes.long()]
    return codes.float() - element.offset


def _code(x: Tensor, element: Element) -> Tensor:
    if element.integer:
        return (x.round() + element.offset).clamp(0, 2**element.bits - 1).to(torch.uint8)
    if element.mantissa:
        return _float(x, element)
    table = torch.tensor(element.values, device=x.device)
    return torch.bucketize(x.contiguous(), (table[1:] + table[:-1]) / 2).to(torch.uint8)


def _float(x: Tensor, element: Element) -> Tensor:
    """A code is an integer that counts the numbers of a sign from 0 on: 2^mantissa of them in a binade, the first of
    which has the steps of the second. An even code is an even multiple of its step, as ties to even want it."""
    least = element.top + 2 - 2 ** (element.bits - 1 - element.mantissa)  # the second binade's exponent
    magnitude = x.abs().clamp_max_(element.most)
    biased = (magnitude.view(torch.int32) >> 23).clamp_min_(FP32_BIAS + least)
    steps = (FP32_BIAS + element.mantissa + FP32_BIAS - biased).bitwise_left_shift_(23).view(torch.float32)  # 1 / step
    code = (magnitude * steps).round_().to(torch.uint8)
    code += ((biased - (FP32_BIAS + least)) << element.mantissa).to(torch.uint8)
    return code | (torch.signbit(x).to(torch.uint8) << (element.bits - 1))


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
        word = word | words[..., i] << (bits * i)
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
