"""Several packed weights that read the same input as one, exactly: rows keep the scales they came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .numerics import Packed

ROWS = ("scales", "zeros", "minima", "super_scales", "super_minima")


def join(parts: Sequence[Packed]) -> Packed:
    """[O₁ + O₂ + ..., I], whose `unpack` is theirs, one after the other. A scale of a whole tensor becomes one of each
    of its rows, unless all parts have the same. Raises ValueError for parts of which one product cannot be made: in
    several formats, for inputs of several scales, or with several orders of the features."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if len({replace(part.format, outputs=1) if part.format.outputs < 2 else part.format for part in parts}) > 1:
        raise ValueError(f"they are in {', '.join(part.format.name for part in parts)}")
    for name, what in (("input_scale", "scales of the inputs"), ("order", "orders of the features")):
        if not _same([getattr(part, name) for part in parts]):
            raise ValueError(f"they have several {what}")
    whole = all(len(part.scales) == 1 for part in parts) and _same([part.scales for part in parts])
    apart = not first.format.outputs and not whole
    fields: dict[str, Tensor | None] = {"values": torch.cat([part.values for part in parts])}
    for name in ROWS:
        held = [getattr(part, name) for part in parts]
        if any(one is None for one in held) or (name == "scales" and not first.format.outputs and whole):
            continue
        fields[name] = torch.cat([_by_rows(part, one) if apart else one for part, one in zip(parts, held, strict=True)])
    if not _same([part.tensor_scale for part in parts]):
        fields["tensor_scale"] = torch.cat([_by_rows(part, _single(part)) for part in parts])
    return replace(first, format=replace(first.format, outputs=1) if apart else first.format, **fields)  # type: ignore[arg-type]


def _single(part: Packed) -> Tensor:
    assert part.tensor_scale is not None, "one format has a scale of the tensor, or has none"
    return part.tensor_scale.reshape(-1, 1)


def _by_rows(part: Packed, scale: Tensor) -> Tensor:
    """A scale of the whole tensor for each of its rows."""
    return scale.expand(len(part.values), -1) if len(scale) == 1 else scale


def _same(held: Sequence[Tensor | None]) -> bool:
    there = [one for one in held if one is not None]
    return not there or (len(there) == len(held) and all(torch.equal(one, there[0]) for one in there))
