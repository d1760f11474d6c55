"""Rows in 8 or 4 bits, and who makes them: a scheme has the vendor's operators for one format of the activations."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

DYNAMIC = 1
"""The operator's `quant_mode` for a scale of each row's own."""
WIDEST_GATE, GATE_STEP = 10496, 64
"""On the 910B and 910C the gate that quantizes makes rows of up to so many numbers, a multiple of that."""


@functools.lru_cache(maxsize=64)
def one_group(rows: int, device: torch.device) -> Tensor:
    """All rows as one group: what that gate wants to be told on the 910B and 910C, which know it for a mixture of
    experts."""
    return torch.full((1,), rows, dtype=torch.int64, device=device)


class Rows(NamedTuple):
    """Quantized rows as a product takes them, and the dtype of what they are multiplied to. `scales` is fp32 [M] for
    int8; for MX uint8 [M, I/64 rounded up, 2], exponents + 127 of pairs of blocks."""

    values_MI: Tensor
    scales: Tensor
    dtype: torch.dtype


class Scheme(Protocol):
    """Quantized rows of a tensor; of its RMS norm, with a residual or without, and x + residual; of silu(gate)·up."""

    def rows(self, x_MI: Tensor) -> Rows: ...
    def norm(self, x_MI: Tensor, residual_MI: Tensor | None, weight_I: Tensor, eps: float) -> tuple[Rows, Tensor]: ...
    def gate(self, x_MI: Tensor) -> Rows: ...


@dataclass(frozen=True)
class Int8:
    """A scale for each row, its largest magnitude over 127. `grouped`: the chip's gate that quantizes takes groups
    alone, and rows in bf16 up to WIDEST_GATE, which are fewer than Nano's 12288."""

    grouped: bool

    def rows(self, x_MI: Tensor) -> Rows:
        import torch_npu

        values_MI, scale_M = torch_npu.npu_dynamic_quant(x_MI)
        return Rows(values_MI, scale_M, x_MI.dtype)

    def norm(self, x_MI: Tensor, residual_MI: Tensor | None, weight_I: Tensor, eps: float) -> tuple[Rows, Tensor]:
        import torch_npu

        if residual_MI is None:
            return self.rows(torch_npu.npu_rms_norm(x_MI, weight_I, eps)[0]), x_MI
        values_MI, _, total_MI, scale_M, _ = torch_npu.npu_add_rms_norm_dynamic_quant(
            x_MI, residual_MI, weight_I, epsilon=eps
        )
        return Rows(values_MI, scale_M, x_MI.dtype), total_MI

    def gate(self, x_MI: Tensor) -> Rows:
        import torch_npu

        width = x_MI.shape[1] // 2
        if self.grouped and (width > WIDEST_GATE or width % GATE_STEP or x_MI.dtype != torch.bfloat16):
            return self.rows(torch_npu.npu_swiglu(x_MI))
        group = one_group(len(x_MI), x_MI.device) if self.grouped else None
        values_MI, scale_M = torch_npu.npu_dequant_swiglu_quant(
            x_MI, group_index=group, activate_left=True, quant_mode=DYNAMIC
        )
        return Rows(values_MI, scale_M, x_MI.dtype)


@dataclass(frozen=True)
class Mx:
    """Blocks of 32 with a power of two each, chosen by OCP's rule. `element` is the vendor's name of the type."""

    element: str

    @property
    def type(self) -> int:
        """The vendor's number of the element."""
        import torch_npu

        found: int = getattr(torch_npu, self.element)
        return found

    def rows(self, x_MI: Tensor) -> Rows:
        import torch_npu

        values_MI, scales = torch_npu.npu_dynamic_mx_quant(x_MI, dst_type=self.type)
        return Rows(values_MI, scales, x_MI.dtype)

    def norm(self, x_MI: Tensor, residual_MI: Tensor | None, weight_I: Tensor, eps: float) -> tuple[Rows, Tensor]:
        import torch_npu

        options = {"epsilon": eps, "dst_type": self.type}
        if residual_MI is None:
            values, scales, _ = torch_npu.npu_rms_norm_dynamic_mx_quant(x_MI, weight_I, **options)
            return Rows(values, scales, x_MI.dtype), x_MI
        values, total_MI, scales, _ = torch_npu.npu_add_rms_norm_dynamic_mx_quant(
            x_MI, residual_MI, weight_I, **options
        )
        return Rows(values, scales, x_MI.dtype), total_MI

    def gate(self, x_MI: Tensor) -> Rows:
        import torch_npu

        values_MI, scales = torch_npu.npu_swiglu_mx_quant(x_MI, activate_left=True, dst_type=self.type)
        return Rows(values_MI, scales, x_MI.dtype)


FP8, FP4 = Mx("float8_e4m3fn"), Mx("float4_e2m1fn_x2")
INT8 = Int8(grouped=True)
SCHEMES: dict[str, Scheme] = {"int8": INT8, "mxfp8": FP8, "mxfp4": FP4, "mxfp4a8": FP8}
"""What becomes of activations, by the format of the weights that they are multiplied by."""


def scheme_of(format: str, arch: str) -> Scheme | None:
    """Of a composite; None where no operator but the format's own makes such rows."""
    return Int8(grouped=False) if (format, arch) == ("int8", "Ascend950") else SCHEMES.get(format)
