"""Weight-only products of auto-round-lib (module auto_round_kernel), which brings a weight into an order of its own.

It multiplies in fp16 on XPU and in fp32 on a processor, whatever dtype the activations come in: so its row takes fp16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos3_core.contract import PackLinear
from cosmos3_core.quant.codes import from_bytes
from cosmos3_core.quant.numerics import Packed

from .linear import named, packer


class Ark:
    """int4 with or without zero points, or int8 with a scale for an output, in the library's own packing."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        import auto_round_kernel

        self.woqgemm_linear = auto_round_kernel.woqgemm_linear
        element, groups = packed.format.of_elements, packed.scales.shape[1]
        self.shape, self.order, self.bias_O = packed.shape, packed.order, bias_O
        group = packed.shape[1] // groups
        # The library has signed integers: codes and zero points of 4 bits lose 8 each.
        if element.bits == 4:
            codes = from_bytes(packed.values, 4).to(torch.int8) - 8
        else:
            codes = packed.values
        zeros = torch.empty(0, dtype=torch.int8, device=codes.device)
        if packed.zeros is not None:
            # Dense, as all of its arguments have to be: of others it reads a copy that is gone by then.
            zeros = (packed.zeros.t().to(torch.int8) - 8).contiguous()
        # Other scales than these two are read wrongly, in silence: bf16 and fp16 on a processor give numbers like 1e26.
        scale = "fp32" if codes.device.type == "cpu" else "fp16"
        scales = packed.scales.t().to(torch.float32 if scale == "fp32" else torch.float16).contiguous()
        self.kind = (group, scale, f"int{element.bits}", scale, packed.zeros is not None)
        self.blob = auto_round_kernel.repack_quantized_weight(codes.t().contiguous(), scales, zeros, *self.kind)

    def __call__(self, x_MI: Tensor) -> Tensor:
        x_MI = x_MI if self.order is None else x_MI[:, self.order]
        return self.woqgemm_linear(x_MI, self.blob, self.bias_O, *self.shape, *self.kind)

    def tensors(self) -> dict[str, Tensor]:
        return named(blob=self.blob, order=self.order, bias=self.bias_O)


def build() -> PackLinear:
    return packer({"w4a16": Ark, "w4a16_asym": Ark, "int8a16": Ark})
