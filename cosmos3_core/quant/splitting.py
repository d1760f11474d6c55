"""Parts of a matrix that several devices have among them, exactly: rows and columns keep the codes and the scales that
the whole has, and so do activations of which each device has some features.

Their scale, where it is of a whole row or of all of them, is chosen by whichever row of `pack_linear` multiplies, often
inside its kernel. So each device is shown the extremes of the whole row, as features whose weights are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import Format, together
from .joining import ROWS
from .numerics import Packed, pack

PRODUCT = 32
"""Input features of which products in 4 and 8 bits take multiples."""

GROUPED = {"scales": "group", "zeros": "group", "minima": "group"}
GROUPED |= {"super_scales": "super_group", "super_minima": "super_group"}
"""What of `Packed` has a column for each group of features, and the field of `Format` that says how large that is."""


def rows_of(weight_OI: Any, parts: Sequence[slice]) -> Any:
    """These outputs of a matrix, one part after the other: a tensor, a Packed, or a tuple of those that follow each
    other. Raises ValueError where a scale would be cut."""
    if isinstance(weight_OI, tuple):
        found, start = [], 0
        for one in weight_OI:
            height = _height(one)
            own = [slice(max(part.start - start, 0), min(part.stop - start, height)) for part in parts]
            found.append(rows_of(one, [part for part in own if part.start < part.stop]))
            start += height
        return tuple(one for one in found if _height(one))
    if isinstance(weight_OI, Tensor):
        return torch.cat([weight_OI[part] for part in parts]) if parts else weight_OI[:0].clone()
    height, each = len(weight_OI.values), dict[str, Tensor]()
    for name in ("values", *ROWS, "tensor_scale"):
        held = getattr(weight_OI, name)
        if held is not None and held.ndim and (len(held) > 1 or name == "values"):
            shared = height // len(held)
            taken = [held[_shared(part, shared, weight_OI.format, "outputs")] for part in parts]
            each[name] = torch.cat(taken or [held[:0]])
    return replace(weight_OI, **each)


def columns_of(weight_OI: Any, part: slice) -> Any:
    """These input features of a matrix. Raises ValueError where a scale would be cut."""
    if isinstance(weight_OI, tuple):
        return tuple(columns_of(one, part) for one in weight_OI)
    if isinstance(weight_OI, Tensor):
        return weight_OI[:, part].contiguous()
    format = weight_OI.format
    if weight_OI.order is not None:
        raise ValueError(f"features of this {format.name} are in an order of their own, and their groups would be cut")
    one = part
    if not format.of_elements.dtype:
        full = together(format)
        one = _shared(part, full, format, "input features")
        one = slice(one.start * full * format.bits // 8, one.stop * full * format.bits // 8)
    each = {"values": weight_OI.values[:, one].contiguous()}
    for name, by in GROUPED.items():
        held, group = getattr(weight_OI, name), getattr(format, by)
        if held is not None and group and held.shape[-1] > 1:
            each[name] = held[:, _shared(part, group, format, "input features")].contiguous()
    return replace(weight_OI, **each)


def room(weight_OI: Any) -> int:
    """How many input features a part of a matrix takes beside its own, so that the scales of its activations can be the
    whole's: 0 where no scale of theirs reaches beyond the part."""
    if isinstance(weight_OI, tuple):
        return max(map(room, weight_OI))
    if isinstance(weight_OI, Tensor) or weight_OI.input_scale is not None:
        return 0
    format, inputs = weight_OI.format, weight_OI.format.of_inputs
    if inputs is None or inputs.static or (inputs.group and not inputs.tensor_scale):
        return 0
    return math.lcm(PRODUCT, together(format), *(one.group for one in (format, inputs) if one.group))


def widened(weight_OI: Any, more: int) -> Any:
    """The matrix with so many input features more, by whose weights nothing is changed: zeros in its format."""
    if not more:
        return weight_OI
    if isinstance(weight_OI, tuple):
        return tuple(widened(one, more) for one in weight_OI)
    if isinstance(weight_OI, Tensor):
        return F.pad(weight_OI, (0, more))
    zeros = weight_OI.values.new_zeros(len(weight_OI.values), more, dtype=torch.float32)
    beside = pack(zeros, weight_OI.format, weight=True)
    each = {"values": torch.cat([weight_OI.values, beside.values], -1)}
    if weight_OI.format.group:
        for name in GROUPED:
            if (held := getattr(weight_OI, name)) is not None:
                each[name] = torch.cat([held, getattr(beside, name).to(held.dtype)], -1)
    return replace(weight_OI, **each)


def with_extremes(x_MI: Tensor, low_M1: Tensor, high_M1: Tensor, more: int) -> Tensor:
    """Rows with so many features more, which are the least and the largest of the whole row: a scale of the row, or of
    all rows, is then the whole's. A matrix that is `widened` so gives what it gave."""
    return torch.cat([x_MI, low_M1, high_M1.expand(-1, more - 1)], -1)


def _height(weight_OI: Any) -> int:
    return len(weight_OI.values if isinstance(weight_OI, Packed) else weight_OI)


def _shared(part: slice, size: int, format: Format, what: str) -> slice:
    """The same in units of so many."""
    if part.start % size or part.stop % size:
        raise ValueError(f"{format.name} shares a scale among {size} {what}, and {part.start} to {part.stop} cut it")
    return slice(part.start // size, part.stop // size)
