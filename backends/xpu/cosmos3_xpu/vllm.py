"""Products, norms, rotations and gates by the operators of the package vllm-xpu-kernels.

They are called by name, with the schemas that backends/xpu/tests keeps of two of its wheels. Layouts of scales are
those of its own tests and of vLLM's linears.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.contract import Gate, NormRope, PackLinear, RmsNorm
from cosmos3_core.quant.numerics import Packed, pack

from . import row_wise
from .linear import named, packer

Heads = Sequence[tuple[Tensor, Tensor | None]]


class Fp8:
    """e4m3 on both sides with scales of rows and outputs: `fp8_gemm`, after `dynamic_per_token_scaled_fp8_quant`."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.values_OI, self.scale_O1, self.bias_O = packed.values, packed.scales, bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        values_MI = torch.empty_like(x_MI, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
        scale_M1 = torch.empty(len(x_MI), 1, dtype=torch.float32, device=x_MI.device)
        torch.ops._C.dynamic_per_token_scaled_fp8_quant(values_MI, x_MI.contiguous(), scale_M1, None)
        return torch.ops._xpu_C.fp8_gemm(
            values_MI, self.values_OI.t(), x_MI.dtype, scale_M1, self.scale_O1, self.bias_O
        )

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O1, bias=self.bias_O)


class Fp8A16:
    """e4m3 weights, activations in 16 bits: `fp8_gemm_w8a16`."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.values_OI, self.scale_O, self.bias_O = packed.values, packed.scales.flatten(), bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        return torch.ops._xpu_C.fp8_gemm_w8a16(x_MI.contiguous(), self.values_OI.t(), self.scale_O, self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_O, bias=self.bias_O)


class Blocks:
    """Formats whose blocks have scales on both sides: `fp8_block` and `mxfp8` by `fp8_gemm`, `mxfp4` by `fp4_gemm`.
    Activations are packed by cosmos3's own rule, in several launches: the package's quantizers do not say how they
    round. Scales of activations are [M, I/group], those of weights the other way round, [I/group, O/outputs]."""

    def __init__(self, packed: Packed, bias_O: Tensor | None):
        self.format, self.values_OI, self.bias_O = packed.format, packed.values, bias_O
        self.scale_GO = packed.scales.t().contiguous()

    def __call__(self, x_MI: Tensor) -> Tensor:
        inputs = self.format.of_inputs
        assert inputs is not None, "these formats quantize activations"
        x = pack(x_MI, inputs)
        mx = self.format.scale == "e8m0"
        scales = [scale.view(torch.float8_e8m0fnu) if mx else scale for scale in (x.scales, self.scale_GO)]
        if self.format.element == "e2m1":
            pairs = torch.float4_e2m1fn_x2
            weight = self.values_OI.view(pairs).t()
            return torch.ops._xpu_C.fp4_gemm(
                x.values.view(pairs), weight, scales[0], scales[1], x_MI.dtype, self.bias_O
            )
        return torch.ops._xpu_C.fp8_gemm(x.values, self.values_OI.t(), x_MI.dtype, scales[0], scales[1], self.bias_O)

    def tensors(self) -> dict[str, Tensor]:
        return named(values=self.values_OI, scale=self.scale_GO, bias=self.bias_O)


def build_fp8() -> PackLinear:
    import vllm_xpu_kernels._C
    import vllm_xpu_kernels._xpu_C  # noqa: F401 (they register the operators)

    return packer({"fp8": Fp8, "fp8a16": Fp8A16, "fp8_block": Blocks, "mxfp8": Blocks})


def build_fp4() -> PackLinear:
    import vllm_xpu_kernels._xpu_C  # noqa: F401 (it registers the operators)

    return packer({"mxfp4": Blocks})


def build_rms_norm() -> RmsNorm:
    """Its rms_norm rounds before the weight multiplies. Where the contract rounds once, torch's norm serves. Its
    fused_add_rms_norm is not called: it overwrites the stream and what is added, which are not its own here."""
    import vllm_xpu_kernels._C  # noqa: F401 (it registers the operators)

    def rms_norm(
        x_MI: Tensor, weight_I: Tensor, *, eps: float, residual_MI: Tensor | None = None, weight_fp32: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See contract.ops.RmsNorm."""
        if weight_fp32:
            return row_wise.rms_norm(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=True)
        z_MI = x_MI if residual_MI is None else x_MI + residual_MI
        y_MI = torch.empty_like(z_MI, memory_format=torch.contiguous_format)
        torch.ops._C.rms_norm(y_MI, z_MI, weight_I, eps)
        return y_MI, z_MI

    return rms_norm


def build_norm_rope() -> NormRope:
    """Its rms_norm, then its rotation by halves, whose tables have one half: both of the contract's are the same. Its
    fused_qk_norm_rope is not called: it overwrites the product, and rounds once, after the weight."""
    import vllm_xpu_kernels._C
    import vllm_xpu_kernels._xpu_C  # noqa: F401 (they register the operators)

    def norm_rope(
        heads: Heads, cos_BSD: Tensor, sin_BSD: Tensor, *, eps: float, weight_fp32: bool = False
    ) -> list[Tensor]:
        """See contract.ops.NormRope."""
        batch, tokens, _, width = heads[0][0].shape
        halves = (table[..., : width // 2].expand(batch, -1, -1) for table in (cos_BSD, sin_BSD))
        cos, sin = (half.reshape(batch * tokens, -1).contiguous() for half in halves)
        out = []
        for x_BSHD, weight_D in heads:
            if weight_D is None:
                normed = x_BSHD.contiguous()
            elif weight_fp32:
                normed = F.rms_norm(x_BSHD, weight_D.shape, weight_D, eps).contiguous()
            else:
                normed = torch.empty_like(x_BSHD, memory_format=torch.contiguous_format)
                torch.ops._C.rms_norm(normed, x_BSHD, weight_D, eps)
            turned = torch.empty_like(normed)
            torch.ops._xpu_C.apply_rotary_emb(turned.flatten(0, 1), normed.flatten(0, 1), cos, sin, True)
            out.append(turned)
        return out

    return norm_rope


def build_gate() -> Gate:
    import vllm_xpu_kernels._C  # noqa: F401 (it registers the operators)

    def gate(x_MI: Tensor, *, activation: str) -> Tensor:
        """See contract.ops.Gate."""
        if activation == "relu2":
            y_MI = torch.empty_like(x_MI)
            torch.ops._C.relu2_no_mul(y_MI, x_MI)
            return y_MI
        y_MI = x_MI.new_empty(*x_MI.shape[:-1], x_MI.shape[-1] // 2)
        torch.ops._C.silu_and_mul(y_MI, x_MI)
        return y_MI

    return gate
