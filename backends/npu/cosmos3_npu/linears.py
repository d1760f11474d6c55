"""Linears in quantization formats by the vendor's products. Each keeps the packed form alone.

A plain weight is packed by the operator that quantizes activations, which chooses the values and scales that
`cosmos3_core.quant` would; one that a checkpoint has packed keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Linear
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.codes import from_bytes
from cosmos3_core.quant.numerics import Packed, pack

from .quantized import FP4, FP8, SCHEMES, Rows

FRACTAL_NZ = 29
"""ACL_FORMAT_FRACTAL_NZ: tiles of a matrix, as the matrix unit reads them."""
Weight = Tensor | Packed
INT4_OFFSET = 8
"""The code of 0 in `cosmos3_core.quant`, where the vendor has the integer itself."""
NUMBERS = {torch.float16: 5, torch.bfloat16: 15}
"""torch's numbers of dtypes, for the operator that takes no dtype."""


def named(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Those that are there."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def in_pairs(scales_OI: Tensor) -> Tensor:
    """Scales of blocks of 32, [O, I/32], as products take them: [O, I/64 rounded up, 2], with zeros behind."""
    return F.pad(scales_OI, (0, scales_OI.shape[1] % 2)).unflatten(1, (-1, 2)).contiguous()


class PlainLinear:
    """Format "none": the weight as it is, by torch, whose product torch_npu hands to the vendor's."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str):
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(weight=self.weight_OI, bias=self.bias_O)


class Int8Linear:
    """Format "int8": values int8 [O, I] and scales fp32 [O]; activations are rows in int8."""

    def __init__(self, weight_OI: Weight, bias_O: Tensor | None, format: str):
        self.bias_O, self.scheme = bias_O, SCHEMES[format]
        if isinstance(weight_OI, Packed):
            self.values_OI, self.scale_O = weight_OI.values, weight_OI.scales.flatten().contiguous()
        else:
            self.values_OI, self.scale_O, _ = self.scheme.rows(weight_OI)

    def __call__(self, x_MI: Tensor | Rows) -> Tensor:
        import torch_npu

        x = x_MI if isinstance(x_MI, Rows) else self.scheme.rows(x_MI)
        return torch_npu.npu_quant_matmul(
            x.values_MI,
            self.values_OI.t(),
            self.scale_O,
            pertoken_scale=x.scales,
            bias=self.bias_O,
            output_dtype=x.dtype,
        )

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O, bias=self.bias_O)


class MxLinear:
    """Formats "mxfp8", "mxfp4" and "mxfp4a8": values float8 [O, I] or pairs of 4 bits [O, I/2], scales uint8
    [O, I/64 rounded up, 2]; activations are rows in MXFP8 or MXFP4."""

    def __init__(self, weight_OI: Weight, bias_O: Tensor | None, format: str):
        self.of_weight, self.scheme = (FP8 if format == "mxfp8" else FP4), SCHEMES[format]
        if isinstance(weight_OI, Packed):
            self.values_OI, self.scales = weight_OI.values, in_pairs(weight_OI.scales)
        else:
            self.values_OI, self.scales, _ = self.of_weight.rows(weight_OI)
        self.mixed = self.of_weight is not self.scheme
        # The product of FP8 and FP4 documents a bias in bf16, [1, O], the others one in fp32.
        self.bias = bias_O if bias_O is None else bias_O.unsqueeze(0) if self.mixed else bias_O.float()

    def __call__(self, x_MI: Tensor | Rows) -> Tensor:
        import torch_npu

        x = x_MI if isinstance(x_MI, Rows) else self.scheme.rows(x_MI)
        if self.mixed:
            types = {"x2_dtype": FP4.type, "group_sizes": [0, 0, 32]}
        elif self.of_weight is FP4:
            types = {"x1_dtype": FP4.type, "x2_dtype": FP4.type, "group_sizes": [1, 1, 32]}
        else:
            types = {"group_sizes": [1, 1, 32]}
        return torch_npu.npu_quant_matmul(
            x.values_MI,
            self.values_OI.t(),
            self.scales.transpose(0, 1),
            pertoken_scale=x.scales,
            bias=self.bias,
            output_dtype=x.dtype,
            scale_dtype=torch_npu.float8_e8m0fnu,
            pertoken_scale_dtype=torch_npu.float8_e8m0fnu,
            **types,
        )

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scales=self.scales, bias=self.bias)


class DualLevelLinear:
    """Format "mxfp4_dual": blocks of 32 in MXFP4 inside super blocks of 512 with scales in fp32. The values lie in
    FRACTAL_NZ, brought there once; plain storage in their place would be read wrongly, so they cannot be moved."""

    def __init__(self, weight_OI: Weight, bias_O: Tensor | None, format: str):
        import torch_npu

        if isinstance(weight_OI, Packed):
            assert weight_OI.super_scales is not None
            values, outer, inner = weight_OI.values, weight_OI.super_scales, in_pairs(weight_OI.scales)
        else:
            values, outer, inner = torch_npu.npu_dynamic_dual_level_mx_quant(weight_OI)
        self.values_OI = torch_npu.npu_format_cast(values.view(torch.int8), FRACTAL_NZ, customize_dtype=torch.int8)
        self.outer_IO, self.inner = outer.t().contiguous(), inner
        self.bias_O = None if bias_O is None else bias_O.float()

    def __call__(self, x_MI: Tensor) -> Tensor:
        import torch_npu

        values, outer, inner = torch_npu.npu_dynamic_dual_level_mx_quant(x_MI)
        return torch_npu.npu_dual_level_quant_matmul(
            values,
            self.values_OI,
            outer,
            self.outer_IO,
            inner,
            self.inner,
            bias=self.bias_O,
            output_dtype=NUMBERS[x_MI.dtype],
        )

    def tensors(self) -> None:
        return None


class WeightOnlyLinear:
    """Formats "int8a16", "w4a16" and "w4a16_asym", beside activations in bf16: values int8 [O, I], or eight integers of
    4 bits in one of 32, [I, O/8]; scales [groups, O], and what is added to an integer before it is scaled."""

    def __init__(self, weight_OI: Weight, bias_O: Tensor | None, format: str):
        packed = weight_OI if isinstance(weight_OI, Packed) else pack(weight_OI, FORMATS[format], weight=True)
        if packed.format.group % 32:
            raise ValueError(f"npu_weight_quant_batchmatmul takes groups of multiples of 32, not {packed.format.group}")
        import torch_npu

        self.order, self.scale_GO = packed.order, packed.scales.t().to(torch.bfloat16).contiguous()
        self.group = packed.format.group if len(self.scale_GO) > 1 else 0  # one group is a scale for each output
        self.wide = packed.format.bits == 8
        if self.wide:
            self.values = packed.values
        else:
            integers_OI = from_bytes(packed.values, 4).to(torch.int32) - INT4_OFFSET
            self.values = torch_npu.npu_convert_weight_to_int4pack(integers_OI.t().contiguous())
        zeros = packed.zeros
        self.offset_GO = None if zeros is None else (INT4_OFFSET - zeros.t().to(torch.bfloat16)).contiguous()
        self.bias_O = None if bias_O is None else bias_O.float()  # the product documents fp32 beside bf16

    def __call__(self, x_MI: Tensor) -> Tensor:
        import torch_npu

        return torch_npu.npu_weight_quant_batchmatmul(
            x_MI if self.order is None else x_MI[:, self.order],
            self.values.t() if self.wide else self.values,
            self.scale_GO,
            antiquant_offset=self.offset_GO,
            bias=self.bias_O,
            antiquant_group_size=self.group,
        )

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values, scale=self.scale_GO, offset=self.offset_GO, order=self.order, bias=self.bias_O)


CLASSES: dict[str, Callable[..., Linear]] = {
    "none": PlainLinear,
    "int8": Int8Linear,
    "int8a16": WeightOnlyLinear,
    "w4a16": WeightOnlyLinear,
    "w4a16_asym": WeightOnlyLinear,
    "mxfp8": MxLinear,
    "mxfp4": MxLinear,
    "mxfp4a8": MxLinear,
    "mxfp4_dual": DualLevelLinear,
}


def pack_linear(weight_OI: Weight, bias_O: Tensor | None, *, format: str = "none") -> Linear:
    """See contract.ops.PackLinear: the formats of `CLASSES`. Raises ValueError for a weight packed in another one."""
    if isinstance(weight_OI, Packed) and weight_OI.format.name != format:
        raise ValueError(f"a weight in {weight_OI.format.name} is asked for in {format}")
    return CLASSES[format](weight_OI, bias_O, format)
