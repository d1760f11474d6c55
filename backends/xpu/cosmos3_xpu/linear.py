"""Linears on Intel GPUs by the products that torch has for XPU, which are oneDNN's. Each keeps the values and scales of
the packed weight as they are, or a view of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Linear, PackLinear
from cosmos3_core.quant import FORMATS, Element
from cosmos3_core.quant.numerics import Packed, pack

SMALLEST = 1e-30
"""The least magnitude that a scale is made for: a row of zeros has one too."""


def in_format(weight_OI: Tensor | Packed, format: str) -> Packed:
    """The weight as a checkpoint packed it, or packed here. Raises ValueError for one in another format, and where the
    format's activations have a stored scale and there is none."""
    packed = weight_OI if isinstance(weight_OI, Packed) else pack(weight_OI, FORMATS[format], weight=True)
    if packed.format.name != format:
        raise ValueError(f"a weight in {packed.format.name} is asked for in {format}")
    if packed.format.static and packed.input_scale is None:
        raise ValueError(f"{format} needs the stored scale of its activations")
    return packed


def named(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are there."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class Plain:
    """Format "none": the weight as it is."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None):
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(weight=self.weight_OI, bias=self.bias_O)


def packer(linears: dict[str, type]) -> PackLinear:
    """The contract's op: for each format a class made of (weight, bias). The VAE asks the layers' row for "none"."""

    def pack_linear(weight_OI: Tensor | Packed, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if format == "none" and isinstance(weight_OI, Tensor):
            return Plain(weight_OI, bias_O)
        return linears[format](in_format(weight_OI, format), bias_O)

    return pack_linear


def eight_bits(x_MI: Tensor, element: Element, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows in int8 or e4m3 and their scales M1 in fp32: each row's own, or the `given` one, beyond which values
    saturate."""
    x = x_MI.float()
    if given is None:
        scale_M1 = x.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST) / element.most
    else:
        scale_M1 = given.reshape(1, 1)
    x = x / scale_M1
    if element.integer:
        x.round_()
    return x.clamp_(-element.most, element.most).to(getattr(torch, element.dtype)), scale_M1


class Int4:
    """4-bit integers with a scale and a zero point for a group, activations in 16 bits. oneDNN's numbers are
    (code - zero) x scale, its codes 4 bits of an int32 from the lowest on: the bytes of `Packed`, read as int32."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.group = packed.shape[1] // packed.scales.shape[1]
        if self.group % 32 or packed.shape[1] % packed.scales.shape[1]:
            raise ValueError(f"torch multiplies int4 in groups of multiples of 32, not {self.group}")
        self.codes_OI = packed.values.view(torch.int32)
        self.scales_GO = packed.scales.t().contiguous()
        if packed.zeros is None:
            self.zeros_GO = torch.full_like(self.scales_GO, packed.format.of_elements.offset, dtype=torch.int8)
        else:
            self.zeros_GO = packed.zeros.t().to(torch.int8).contiguous()
        self.order, self.bias_O = packed.order, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        x_MI = x_MI.contiguous() if self.order is None else x_MI[:, self.order]
        y_MO = torch.ops.aten._weight_int4pack_mm_with_scales_and_zeros(
            x_MI, self.codes_OI, self.group, self.scales_GO, self.zeros_GO
        )
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        held = named(codes=self.codes_OI, scales=self.scales_GO, zeros=self.zeros_GO)
        return held | named(order=self.order, bias=self.bias_O)


class Int8A16:
    """8-bit integers with a scale for an output, activations in 16 bits."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.values_OI, self.scale_O, self.bias_O = packed.values, packed.scales.flatten(), bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        # The operator takes scales in the activations' dtype.
        y_MO = torch._weight_int8pack_mm(x_MI.contiguous(), self.values_OI, self.scale_O.to(x_MI.dtype))
        return y_MO if self.bias_O is None else y_MO.add_(self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O, bias=self.bias_O)


class Int8:
    """8-bit integers on both sides: each row of the activations by its own scale, or all by a stored one."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.values_OI, self.given, self.bias_O = packed.values, packed.input_scale, bias_O
        self.scale_1O, self.element = packed.scales.view(1, -1), packed.format.of_elements

    def __call__(self, x_MI: Tensor) -> Tensor:
        values_MI, scale_M1 = eight_bits(x_MI, self.element, self.given)
        y_MO = torch._int_mm(values_MI, self.values_OI.t()).float().mul_(scale_M1).mul_(self.scale_1O)
        return (y_MO if self.bias_O is None else y_MO.add_(self.bias_O)).to(x_MI.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_1O, input_scale=self.given, bias=self.bias_O)


class ScaledMm:
    """e4m3 on both sides, by torch._scaled_mm: with scales of rows and outputs, or where both sides have a single one,
    with that."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.values_OI, self.given, self.bias_O = packed.values, packed.input_scale, bias_O
        self.element = packed.format.of_elements
        self.whole = packed.format.static and packed.scales.numel() == 1
        scale_O1 = packed.scales if self.whole else packed.scales.expand(len(packed.values), 1)
        self.scale_1O = scale_O1.contiguous().view(1, -1)

    def __call__(self, x_MI: Tensor) -> Tensor:
        values_MI, scale_M1 = eight_bits(x_MI, self.element, self.given)
        if not self.whole:
            scale_M1 = scale_M1.expand(len(x_MI), 1).contiguous()
        return torch._scaled_mm(
            values_MI, self.values_OI.t(), scale_M1, self.scale_1O, bias=self.bias_O, out_dtype=x_MI.dtype
        )

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_1O, input_scale=self.given, bias=self.bias_O)


INT4 = packer(dict.fromkeys(("w4a16", "w4a16_asym", "q4_0"), Int4))
INT8 = packer({"int8": Int8, "int8_static": Int8, "int8a16": Int8A16})
FP8 = packer(dict.fromkeys(("fp8", "fp8_tensor", "fp8_static"), ScaledMm))
