"""The formats in plain torch, on any device: what a kernel's values and scales must be, or be equivalent to.

Everything is computed in fp32, from inputs of any dtype and layout. A block that holds a NaN or an infinity is NaN
after a round trip (with a scale of the whole tensor, all of it is), so that no error is silent. By a stored scale an
infinity saturates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import decode, encode
from .formats import RECIPROCAL, Format
from .scales import by_reciprocal, choose, factors, of_super_blocks, of_tensor

AT_ONCE = 2**24
"""Elements that are packed together: what that takes in fp32 stays small beside a large weight."""
HOST_AT_ONCE = 2**20
"""Elements that a processor unpacks together for a product: they stay in its caches until they are multiplied."""


@dataclass(frozen=True)
class Packed:
    """A tensor [rows, ..., I] in `format`.

    `values`: int8, a float8, or codes of fewer bits in uint8 [..., I x bits / 8], a stream that begins with the lowest
    bits of a byte: of two 4-bit codes the even index is in the low nibble. A code of e2m1 is sign, 2 bits exponent, 1
    bit mantissa; of a signed integer the integer + 2^(bits - 1).
    `scales`: [..., I/group], or [..., 1] for a whole row; a weight's [O/outputs, I/group]; [1, ..., 1] for the whole
    tensor. float32, float16, bfloat16, float8_e4m3fn, or uint8: e8m0's exponent + 127; uint8 or int8 for multiples of
    `super_scales`.
    `zeros`: uint8, the codes that stand for 0, like `scales` (the integer itself; files of GPTQ's have one less).
    `minima`: what code 0 stands for, like `scales` and in their dtype.
    `super_scales`, `super_minima`: [..., I/super_group], rounded up; what the scales and minima are multiples of.
    Minima of llama.cpp's super blocks are subtracted there; here the super minimum has the sign.
    `tensor_scale`: fp32 of no dimension; [O, 1] of a weight whose rows were packed apart (`joining.join`).
    `input_scale`: of a weight, the fp32 scale of the activations that it is multiplied by, of no dimension: the whole
    scale of a format that is `static`, the `tensor_scale` of one that has that.
    `order`: int64 [I]: packed feature j is feature order[j] of the tensor (GPTQ's act-order, in which g_idx[order] is
    ascending).
    """

    format: Format
    values: Tensor
    scales: Tensor
    tensor_scale: Tensor | None = None
    zeros: Tensor | None = None
    minima: Tensor | None = None
    super_scales: Tensor | None = None
    super_minima: Tensor | None = None
    input_scale: Tensor | None = None
    order: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that this stands for."""
        each = 1 if self.format.of_elements.dtype else self.format.bits / 8
        return (*self.values.shape[:-1], round(self.values.shape[-1] / each))


def pack(x: Tensor, format: Format, *, weight: bool = False, input_scale: Tensor | None = None) -> Packed:
    """Quantize activations x_MI (or with more axes), or a weight_OI.

    `input_scale`, an fp32 number, is kept with a weight for the activations it will meet; those are packed with it
    instead of a scale of their own. Raises ValueError where the sides of `x` are no multiples of what shares a scale.
    """
    outputs = format.outputs if weight else int(not format.static)
    _check_sides(x, format, outputs)
    whole = None
    if format.tensor_scale or not outputs:
        whole = of_tensor(x, format)
        if input_scale is not None and not weight:
            whole = torch.where(x.isnan().any(), torch.nan, input_scale.float())
    parts = [_pack(rows, format, whole, outputs) for rows in x.split(_at_once(x, max(outputs, 1), AT_ONCE))]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if not outputs and whole is not None:
        joined["scales"] = whole.reshape([1] * x.ndim)
    tensor_scale = whole if format.tensor_scale else None
    return Packed(format, **joined, tensor_scale=tensor_scale, input_scale=input_scale if weight else None)


def unpack(packed: Packed) -> Tensor:
    """What the values and scales stand for, fp32 [..., I]."""
    order = slice(None) if packed.order is None else packed.order
    if packed.order is None and packed.values.numel() <= AT_ONCE:
        return _unpack(packed)
    found = torch.empty(packed.shape, dtype=torch.float32, device=packed.values.device)
    for rows, part in _parts(packed, AT_ONCE):
        found[rows][..., order] = _unpack(part)
    return found


def fake_quant(x: Tensor, format: Format, *, weight: bool = False, input_scale: Tensor | None = None) -> Tensor:
    """`x`, in its own dtype, after a round trip through the format."""
    return unpack(pack(x, format, weight=weight, input_scale=input_scale)).to(x.dtype)


def fake_quant_input(x: Tensor, format: Format, input_scale: Tensor | None = None) -> Tensor:
    """Activations, in their own dtype, as a product with weights in `format` takes them: as they are, or after a round
    trip through their own format."""
    return x if format.of_inputs is None else fake_quant(x, format.of_inputs, input_scale=input_scale)


def multiply(x_MI: Tensor, packed: Packed, bias_O: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias as y_MO in x's dtype: activations in the format that the weight's says, products and sums in fp32.

    Raises ValueError where the format's activations have a stored scale and there is none.
    """
    if packed.format.static and packed.input_scale is None:
        raise ValueError(f"{packed.format.name} needs the stored scale of its activations")
    x, inputs = x_MI.float(), packed.format.of_inputs
    if inputs is not None:
        x = unpack(pack(x_MI, inputs, input_scale=packed.input_scale))
    if packed.order is not None:
        x = x[..., packed.order]
    y_MO = x_MI.new_empty(*x_MI.shape[:-1], len(packed.values))
    for rows, part in _parts(packed, HOST_AT_ONCE if x_MI.is_cpu else AT_ONCE):
        product = F.linear(x, _unpack(part))
        y_MO[..., rows] = product if bias_O is None else product + bias_O[rows].float()
    return y_MO


def _check_sides(x: Tensor, format: Format, outputs: int) -> None:
    width = x.shape[-1]
    for side, shared, what in ((width, format.group or width, "input features"), (len(x), outputs or 1, "outputs")):
        if side % shared:
            raise ValueError(f"{format.name} shares a scale among {shared} {what}, which do not divide {side}")


def _pack(x: Tensor, format: Format, whole: Tensor | None, outputs: int) -> dict[str, Tensor]:
    """Fields of `Packed` for some rows, of which `outputs` consecutive ones share their scales; with 0 all have the
    scale `whole`."""
    chosen: dict[str, Tensor] = {}
    if format.super_scale and format.scale == "e8m0":  # Ascend divides first, and rounds to the input's dtype
        chosen["super_scales"] = of_super_blocks(x, format)
        units = chosen["super_scales"].repeat_interleave(format.super_group, -1)[..., : x.shape[-1]]
        x = torch.where(units == 0, 0.0, x / units).to(x.dtype)
    blocks = x.float().unflatten(-1, (-1, format.group or x.shape[-1]))
    if format.packer in RECIPROCAL:
        chosen, units = by_reciprocal(blocks, format)
        return chosen | {"values": encode(units.flatten(-2), format.of_elements)}
    if outputs:
        together = blocks if outputs == 1 else blocks.unflatten(0, (-1, outputs)).transpose(1, 2).flatten(2)
        chosen |= choose(together, format, whole)
    elif whole is not None:
        chosen["scales"] = whole.reshape([1] * x.ndim)
    inner = None if format.scale == "e8m0" else chosen.get("super_scales")
    factor = factors(format, chosen["scales"], inner, whole if format.tensor_scale else None)
    factor = factor.repeat_interleave(max(outputs, 1), 0).unsqueeze(-1)
    if format.minima:
        minima = factors(format, chosen["minima"], chosen.get("super_minima"))
        blocks = blocks - minima.unsqueeze(-1)
    # A factor of 0 belongs to a block of zeros, or of values too small for its scale; one that is not finite to a block
    # that is not, which it makes NaN by itself.
    scaled = torch.where((factor == 0) | ~factor.isfinite(), 0.0, blocks / factor)
    if format.zeros:
        scaled = scaled.round() + chosen["zeros"].unsqueeze(-1)
    return chosen | {"values": encode(scaled.flatten(-2), format.of_elements)}


def _unpack(packed: Packed) -> Tensor:
    """The same in the order of `values`."""
    numbers = decode(packed.values, packed.format.of_elements)
    factor = _of_rows(packed, factors(packed.format, packed.scales, packed.super_scales, packed.tensor_scale))
    blocks: Tensor = numbers.unflatten(-1, (factor.shape[-2], -1))
    if packed.zeros is not None:
        blocks = blocks - _of_rows(packed, packed.zeros)
    blocks = blocks * factor
    if packed.minima is not None:
        blocks = blocks + _of_rows(packed, factors(packed.format, packed.minima, packed.super_minima))
    return blocks.flatten(-2)


def _of_rows(packed: Packed, x: Tensor) -> Tensor:
    """What belongs to scales for every row, with an axis for the elements."""
    return x.repeat_interleave(len(packed.values) // max(1, len(x)), 0).unsqueeze(-1)


def _at_once(x: Tensor, together: int, elements: int) -> int:
    """Rows with about so many elements, a multiple of `together`."""
    return max(1, elements // max(1, prod(x.shape[1:]) * together)) * together


def _parts(packed: Packed, elements: int) -> Iterator[tuple[slice, Packed]]:
    """The rows in parts of about so many elements, in none of which a scale is cut."""
    rows, kept = len(packed.values), len(packed.scales)
    together = rows // kept if kept > 1 else 1
    at_once = _at_once(packed.values, together, elements)
    for start in range(0, rows, at_once):
        part = {"values": packed.values[start : start + at_once]}
        for name in ("scales", "zeros", "minima", "super_scales", "super_minima"):
            held = getattr(packed, name)
            if held is not None:
                each = rows // len(held)
                part[name] = held if len(held) == 1 else held[start // each : (start + at_once) // each]
        if packed.tensor_scale is not None and packed.tensor_scale.ndim:
            part["tensor_scale"] = packed.tensor_scale[start : start + at_once]
        yield slice(start, start + at_once), replace(packed, **part)  # type: ignore[arg-type]
