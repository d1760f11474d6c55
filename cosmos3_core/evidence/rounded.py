"""The formats in eager torch: what a recipe's formats lose by themselves, whoever computes in them.

Values take the round trip through the format (`quant.fake_quant`) and are multiplied in the model's dtype. Of attention
q, k and v take it, a row for each token and head; the text's own, which is causal, stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..contract import Attention, Device, Kernel, Linear, PackLinear, Segment
from ..quant import FORMATS
from ..quant.numerics import fake_quant, fake_quant_input
from ..reference import ops


class RoundedLinear:
    """contract.ops.Linear in a format."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, format: str):
        self.weight_OI, self.format = fake_quant(weight_OI, FORMATS[format], weight=True), FORMATS[format]
        self.bias_O = bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return F.linear(fake_quant_input(x_MI, self.format), self.weight_OI, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight_OI} | ({} if self.bias_O is None else {"bias": self.bias_O})


def _build_linear(device: Device) -> PackLinear:
    def pack_linear(weight_OI: Tensor, bias_O: Tensor | None, *, format: str = "none") -> Linear:
        if format == "none":  # the VAE's
            return ops.pack_linear(weight_OI, bias_O)
        return RoundedLinear(weight_OI, bias_O, format)

    return pack_linear


def _attention(format: str) -> Kernel:
    def rounded(x: Tensor) -> Tensor:
        return fake_quant(x, FORMATS[format])

    def build(device: Device) -> Attention:
        def attention(
            q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
        ) -> tuple[Tensor, Tensor | None]:
            if not causal:
                q_BSHD = rounded(q_BSHD)
                segments = [Segment(rounded(k_BTKD), rounded(v_BTKD)) for k_BTKD, v_BTKD in segments]
            return ops.attention(q_BSHD, segments, causal=causal, want_lse=want_lse)

        return attention

    return Kernel(op="attention", name=f"rounded-{format}", build=build, formats=(format,))


KERNELS = (
    Kernel(op="pack_linear", name="rounded", build=_build_linear, formats=tuple(FORMATS)),
    *map(_attention, FORMATS),
)
