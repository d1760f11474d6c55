"""Layers whose matrices are in several formats, or some of them in 16 bits, or are multiplied in two precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..contract import Linear, PackLinear
from ..quant import Format
from ..quant.numerics import Packed, pack


class Joined:
    """contract.Linear of several matrices that read one input: their outputs one after the other."""

    def __init__(self, linears: Sequence[Linear]):
        self.linears = linears

    def __call__(self, x_MI: Tensor) -> Tensor:
        return torch.cat([linear(x_MI) for linear in self.linears], -1)

    def tensors(self) -> dict[str, Tensor] | None:
        held = [linear.tensors() for linear in self.linears]
        if any(one is None for one in held):
            return None
        return {f"{i}.{name}": tensor for i, one in enumerate(held) for name, tensor in (one or {}).items()}


@dataclass(frozen=True)
class PackAny:
    """contract.PackLinear of any matrix of a checkpoint, as it is: a tensor by `plain`, what is packed by the row for
    its format, a tuple of these as `Joined`."""

    plain: PackLinear
    by_format: Mapping[str, PackLinear]

    def __call__(self, weight_OI: object, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if isinstance(weight_OI, tuple):
            return Joined([self(one, None) for one in weight_OI])
        if isinstance(weight_OI, Tensor):
            return self.plain(weight_OI, bias_O)
        name = weight_OI.format.name  # type: ignore[attr-defined]
        return self.by_format[name](weight_OI, bias_O, format=name)


@dataclass(frozen=True)
class InFormat:
    """Makes a 16-bit matrix a packed one."""

    format: Format

    def __call__(self, weight_OI: Tensor) -> Packed:
        return pack(weight_OI, self.format, weight=True)


@dataclass(frozen=True)
class Same:
    """A matrix on the very same tensors in the format that keeps activations in 16 bits, which is given by the name of
    the other; a whole weight's scale becomes one for each output. A matrix in none of these is returned as it is."""

    a16: Mapping[str, Format]

    def __call__(self, weight_OI: Any) -> Any:
        if isinstance(weight_OI, tuple):
            parts = tuple(map(self, weight_OI))
            return weight_OI if all(a is b for a, b in zip(parts, weight_OI, strict=True)) else parts
        if isinstance(weight_OI, Packed) and weight_OI.format.name in self.a16:
            format, scales = self.a16[weight_OI.format.name], weight_OI.scales
            if format.outputs == 1 and not weight_OI.format.outputs and len(scales) == 1:
                scales = scales.expand(len(weight_OI.values), 1).contiguous()
            return replace(weight_OI, format=format, scales=scales, input_scale=None)
        return weight_OI
