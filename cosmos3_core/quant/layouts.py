"""Arrangements of codes in other people's files, as `Packed` has them: nothing is dequantized or rounded here.

Shapes: O outputs, I input features, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .codes import from_bytes, to_bytes
from .formats import Format
from .numerics import Packed

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Nibble j of a word of AWQ's holds output 8r + (0, 2, 4, 6, 1, 3, 5, 7)[j]: output k is in nibble AWQ_ORDER[k]."""


# Words of 32 bits ---------------------------------------------------------------------------------------------------


def gptq(
    format: Format,
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None = None,
    g_idx: Tensor | None = None,
    *,
    less_one: bool = True,
) -> Packed:
    """GPTQ's and AutoRound's int4: qweight int32 [I/8, O], of which nibble j of row r is feature 8r + j; scales [G, O];
    qzeros int32 [G, O/8]; g_idx [I], the group of each feature.

    Zero points are stored less one, in wrapping 4 bits (`less_one`), except in checkpoint format "gptq_v2" and
    AutoRound's "zp". A symmetric format has no `zeros`: its file's are 8, which is checked. Raises ValueError.
    """
    zeros = None if qzeros is None else (from_bytes(qzeros.contiguous().view(torch.uint8), 4) + less_one) & 15
    words = qweight.t().contiguous().view(torch.uint8)
    order = None if g_idx is None else order_of(g_idx, format.group)
    if order is not None:
        words = to_bytes(from_bytes(words, 4)[:, order], 4)
    return Packed(format, words, scales.t().contiguous().float(), zeros=_zeros(format, zeros), order=order)


def awq(format: Format, qweight: Tensor, scales: Tensor, qzeros: Tensor) -> Packed:
    """AWQ's int4: qweight int32 [I, O/8] and qzeros int32 [G, O/8] with interleaved outputs (`AWQ_ORDER`), zero points
    as they are; scales [G, O]. Raises ValueError where a symmetric format has zero points other than 8."""
    codes, zeros = (_interleaved(words) for words in (qweight, qzeros))
    values = to_bytes(codes.t().contiguous(), 4)
    return Packed(format, values, scales.t().contiguous().float(), zeros=_zeros(format, zeros))


def _interleaved(words: Tensor) -> Tensor:
    """int32 [n, O/8] as codes [n, O]."""
    codes: Tensor = from_bytes(words.contiguous().view(torch.uint8), 4).unflatten(-1, (-1, 8))
    return codes[..., list(AWQ_ORDER)].flatten(-2)


def _zeros(format: Format, zeros_GO: Tensor | None) -> Tensor | None:
    """uint8 [O, G] of a format that has them."""
    if format.zeros:
        if zeros_GO is None:
            raise ValueError(f"{format.name} has zero points, and there are none")
        return zeros_GO.t().contiguous()
    if zeros_GO is not None and bool((zeros_GO != 8).any()):
        found = sorted({int(zero) for zero in zeros_GO.unique() if zero != 8})
        raise ValueError(f"{format.name} has zero points of 8 alone, and there are {', '.join(map(str, found))}")
    return None


def order_of(g_idx: Tensor, group: int) -> Tensor | None:
    """The order in which the `group` features of each group follow each other, by g_idx [I], the group of each; None
    where they already do. Raises ValueError for groups that are not there, or of another size."""
    groups = len(g_idx) // group
    if (wrong := (g_idx < 0) | (g_idx >= groups)).any():
        raise ValueError(f"it names group {g_idx[wrong][0].item()}, and there are {groups}")
    if (g_idx.long().bincount(minlength=groups) != group).any():
        raise ValueError(f"its groups do not all have {group} features")
    order = g_idx.long().argsort(stable=True)
    return None if bool((order == torch.arange(len(order), device=order.device)).all()) else order


def swapped_nibbles(values: Tensor) -> Tensor:
    """Of uint8 with two codes each, the even index in the low nibble where it was in the high one (bitsandbytes), and
    the other way round."""
    return (values >> 4) | (values << 4)


# llama.cpp's blocks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Of how many features, and of how many bytes."""

    features: int
    bytes: int


BLOCKS = {
    "q4_0": Block(32, 18),
    "q5_1": Block(32, 24),
    "q8_0": Block(32, 34),
    "q4_k": Block(256, 144),
    "q6_k": Block(256, 210),
}


def llama(format: Format, raw: Tensor) -> Packed:
    """uint8 [O, I / features x bytes] of a GGUF file (ggml-common.h, block_q4_0 and so on). Raises ValueError where a
    row is cut."""
    block = BLOCKS[format.name]
    if raw.shape[-1] % block.bytes:
        raise ValueError(f"{format.name} has blocks of {block.bytes} bytes, which do not divide {raw.shape[-1]}")
    return Packed(format, **_READ[format.name](raw.unflatten(-1, (-1, block.bytes))))


def _q8_0(blocks: Tensor) -> dict[str, Tensor]:
    return {"scales": _half(blocks[..., :2]), "values": blocks[..., 2:].contiguous().view(torch.int8).flatten(-2)}


def _q4_0(blocks: Tensor) -> dict[str, Tensor]:
    return {"scales": _half(blocks[..., :2]), "values": to_bytes(_planes(blocks[..., 2:], 4).flatten(-2), 4)}


def _q5_1(blocks: Tensor) -> dict[str, Tensor]:
    scales, minima, high, low = blocks.split((2, 2, 4, 16), -1)
    codes = _planes(low, 4) | (from_bytes(high, 1) << 4)
    return {"scales": _half(scales), "minima": _half(minima), "values": to_bytes(codes.flatten(-2), 5)}


def _q4_k(blocks: Tensor) -> dict[str, Tensor]:
    scale, minimum, packed, codes = blocks.split((2, 2, 12, 128), -1)
    # Eight scales and eight minima of 6 bits: the first four of each in the low bits of bytes 0 to 7, whose high bits
    # are those of the other four; the low nibbles of these are in bytes 8 to 11.
    first, second, last = packed.split(4, -1)
    scales = torch.cat((first & 63, (last & 15) | (first >> 6 << 4)), -1)
    minima = torch.cat((second & 63, (last >> 4) | (second >> 6 << 4)), -1)
    return {
        "scales": scales.flatten(-2),
        "super_scales": _half(scale),
        "minima": minima.flatten(-2),
        "super_minima": -_half(minimum),  # which llama.cpp subtracts
        "values": to_bytes(_planes(codes.unflatten(-1, (4, 32)), 4).flatten(-3), 4),
    }


def _q6_k(blocks: Tensor) -> dict[str, Tensor]:
    low, high, scales, scale = blocks.split((128, 64, 16, 2), -1)
    lower, upper = _planes(low.unflatten(-1, (2, 64)), 4), _planes(high.unflatten(-1, (2, 32)), 2)
    return {
        "scales": scales.contiguous().view(torch.int8).flatten(-2),
        "super_scales": _half(scale),
        "values": to_bytes((lower | (upper << 4)).flatten(-3), 6),
    }


_READ = {"q4_0": _q4_0, "q5_1": _q5_1, "q8_0": _q8_0, "q4_k": _q4_k, "q6_k": _q6_k}


def _half(raw: Tensor) -> Tensor:
    """float16 [..., n] of bytes [..., n, 2]."""
    return raw.contiguous().view(torch.float16).squeeze(-1)


def _planes(raw: Tensor, bits: int) -> Tensor:
    """Codes [..., 8 / bits x n] of bytes [..., n]: first the lowest bits of all bytes, then the next."""
    return torch.cat([(raw >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
