"""What a media token attends to: the text and every token, or where controls have weights one of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..contract import Attention, Segment
from .packing import Packing

Attend = Callable[[Packing, Segment, Tensor, Tensor, Tensor], Tensor]
"""(packing, the text's keys and values, q, k, v of one branch's tokens) to what the attention gives, out_BSHD."""


def attend(attention: Attention, packing: Packing, text: Segment, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of all tokens of a packing."""
    if not packing.weighted:
        return attention(q, [text, Segment(k, v)])[0]

    def one(rows: list[slice]) -> Tensor:
        taken = [torch.cat([x[:, part] for part in rows], dim=1) for x in (q, k, v)]
        return attention(taken[0], [text, Segment(taken[1], taken[2])])[0]

    return summed(packing, map(one, passes_of(packing)), packing.others.stop - packing.others.start)


def passes_of(packing: Packing) -> list[list[slice]]:
    """The tokens of each call of the attention: all, or those of one control and of what is made."""
    if not packing.weighted:
        return [[slice(0, packing.length)]]
    return [[rows, packing.others] for rows, _ in packing.weighted]


def summed(packing: Packing, seen: Iterable[Tensor], made: int) -> Tensor:
    """What the passes gave, of which the last `made` tokens are of what is made: that gets their sum by the controls'
    shares (docs/model.md, section 4.9)."""
    out: list[Tensor] = []
    total: Tensor | None = None
    for one, (_, share) in zip(seen, packing.weighted, strict=True):
        own, rest = one.split((one.shape[1] - made, made), dim=1)
        out.append(own)
        total = rest * share if total is None else torch.add(total, rest, alpha=share)
    return torch.cat([*out, total], dim=1)  # type: ignore[list-item]
