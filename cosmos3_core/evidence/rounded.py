"""Attention in a format, in eager torch: what a recipe's format loses by itself, whoever computes in it.

q, k and v take the round trip through the format (`quant.fake_quant`), a row for each token and head, and are
multiplied in the model's dtype; the text's own, which is causal, stays as it is. Of linears the reference has a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..contract import Attention, Device, Kernel, Segment
from ..quant import Format
from ..quant.numerics import fake_quant
from ..reference import ops


def attention_in(format: Format) -> Kernel:
    """The row for this format."""

    def rounded(x: Tensor) -> Tensor:
        return fake_quant(x, format)

    def build(device: Device) -> Attention:
        def attention(
            q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
        ) -> tuple[Tensor, Tensor | None]:
            if not causal:
                q_BSHD = rounded(q_BSHD)
                segments = [Segment(rounded(k_BTKD), rounded(v_BTKD)) for k_BTKD, v_BTKD in segments]
            return ops.attention(q_BSHD, segments, causal=causal, want_lse=want_lse)

        return attention

    return Kernel(op="attention", name=f"rounded-{format.name}", build=build, formats=(format.name,))
