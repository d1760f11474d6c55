"""Operators that only a GPU has, computed on the host in fp32: torch's product with int4, and those of
vllm-xpu-kernels, with the schemas of its newest wheel that the tests keep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.quant import ELEMENTS
from cosmos3_core.quant.codes import decode, from_bytes

SCHEMAS = sorted((Path(__file__).parents[2] / "schemas").glob("vllm_xpu_kernels-*.txt"))
"""Of each wheel, the oldest first."""
CALLS: list[str] = []
"""The operators that were called, in order; whoever looks at it empties it."""


def schemas(file: Path) -> dict[str, str]:
    """Of a wheel's operators, by `library::name`."""
    lines = [line for line in file.read_text().splitlines() if "::" in line.split("(")[0]]
    return {line.split("(")[0]: line.split("::", 1)[1] for line in lines}


def int4(x: Tensor, codes_OI: Tensor, group: int, scales_GO: Tensor, zeros_GO: Tensor) -> Tensor:
    """(code - zero) x scale, codes from the lowest 4 bits of an int32 on. What oneDNN would read from beyond a tensor
    of another shape is an error here: torch's own shape rules look at nothing but the codes."""
    outputs, width = codes_OI.shape[0], codes_OI.shape[1] * 8
    assert x.is_contiguous() and x.shape[1] == width, f"activations {[*x.shape]} by codes {[*codes_OI.shape]}"
    for side in (scales_GO, zeros_GO):
        assert side.shape == (width // group, outputs), (
            f"{[*side.shape]} for {width // group} groups, {outputs} outputs"
        )
    assert zeros_GO.dtype == torch.int8 and codes_OI.dtype == torch.int32
    codes = from_bytes(codes_OI.contiguous().view(torch.uint8), 4).float()
    spread = [side.float().t().repeat_interleave(group, 1) for side in (zeros_GO, scales_GO)]
    return F.linear(x.float(), (codes - spread[0]) * spread[1]).to(x.dtype)


def fp8_gemm(
    A: Tensor, B: Tensor, out_dtype: torch.dtype | None, A_scale_: Tensor, B_scale_: Tensor, bias_: Tensor | None
) -> Tensor:
    """Scales of rows and outputs, or of blocks: [M, I/group] and [I/group, O or O/group]."""
    assert A.dtype == B.dtype == torch.float8_e4m3fn and B.stride(0) == 1, "B is a transposed weight"
    assert A.is_contiguous()
    if A_scale_.shape[1] == 1 and B_scale_.shape == (B.shape[1], 1):
        return _product(A.float() * A_scale_, B.float() * B_scale_.t(), out_dtype, bias_)
    return _product(_blocks(A.float(), A_scale_), _blocks(B.float().t(), _turned(B, B_scale_)).t(), out_dtype, bias_)


def fp8_gemm_w8a16(A: Tensor, B: Tensor, B_scale_: Tensor | None, bias_: Tensor | None) -> Tensor:
    assert B.dtype == torch.float8_e4m3fn and B_scale_ is not None and B_scale_.shape == (B.shape[1],)
    assert A.is_contiguous()
    return _product(A.float(), B.float() * B_scale_, A.dtype, bias_)


def fp4_gemm(
    A: Tensor, B: Tensor, A_scale: Tensor, B_scale: Tensor, out_dtype: torch.dtype | None, bias_: Tensor | None
) -> Tensor:
    assert (
        A.is_contiguous()
        and A.dtype == B.dtype == torch.float4_e2m1fn_x2
        and A_scale.dtype == B_scale.dtype == torch.float8_e8m0fnu
    )
    x, weight = (decode(side.view(torch.uint8), ELEMENTS["e2m1"]) for side in (A, B.t()))
    return _product(_blocks(x, A_scale), _blocks(weight, _turned(B, B_scale)).t(), out_dtype, bias_)


def _turned(B: Tensor, scale_GO: Tensor) -> Tensor:
    """A weight's scales by outputs."""
    width = B.shape[0] * (2 if B.dtype == torch.float4_e2m1fn_x2 else 1)
    group = width // scale_GO.shape[0]
    assert group in (32, 128), f"scales {[*scale_GO.shape]} are not [I/group, O]"
    assert scale_GO.shape[1] in (B.shape[1], B.shape[1] // 128), f"scales {[*scale_GO.shape]} for {B.shape[1]} outputs"
    return scale_GO.t()


def _blocks(x: Tensor, scale: Tensor) -> Tensor:
    """x times the scales of its blocks."""
    assert len(x) % len(scale) == 0 and x.shape[1] % scale.shape[1] == 0, f"{[*scale.shape]} for {[*x.shape]}"
    wide = scale.float().repeat_interleave(len(x) // len(scale), 0)
    return x * wide.repeat_interleave(x.shape[1] // scale.shape[1], 1)


def _product(x: Tensor, weight_IO: Tensor, dtype: torch.dtype | None, bias: Tensor | None) -> Tensor:
    assert dtype in (torch.float16, torch.bfloat16), "results are in 16 bits"
    y = x @ weight_IO
    return (y if bias is None else y + bias.float()).to(dtype)


def dynamic_per_token_scaled_fp8_quant(result: Tensor, input: Tensor, scale: Tensor, scale_ub: Tensor | None) -> None:
    assert result.shape == input.shape and scale.shape == (len(input), 1) and scale.dtype == torch.float32
    assert result.is_contiguous() and input.is_contiguous()
    scale.copy_(input.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448)
    result.copy_((input.float() / scale).clamp(-448, 448).to(result.dtype))


@functools.cache
def axes(file: Path) -> dict[str, set[int]]:
    """For how many axes a wheel has its rms_norm, which finds rows by the strides of each, by dtype."""
    lines = [line.removeprefix("rms_norm ") for line in file.read_text().splitlines() if line.startswith("rms_norm ")]
    return {dtype: {*map(int, counts.split())} for dtype, counts in (line.split(": ") for line in lines)}


def rms_norm(result: Tensor, input: Tensor, weight: Tensor | None, epsilon: float) -> None:
    """Of the last axis; rows may be strided, results are dense. It rounds before the weight multiplies."""
    assert result.is_contiguous() and input.stride(-1) == 1
    assert all(input.dim() in axes(file)[str(input.dtype).removeprefix("torch.")] for file in SCHEMAS)
    assert weight is not None and weight.dtype == input.dtype and weight.is_contiguous()
    x = input.float()
    normed = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)).to(input.dtype)
    result.copy_(normed * weight)


def apply_rotary_emb(output: Tensor, input: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """Rows of heads [M, H, D] by halves, with tables of half a head [M, D/2]. It rounds each product, as its source
    does, and writes by the input's strides."""
    assert is_neox and output.is_contiguous() and input.is_contiguous() and input.dim() == 3
    for table in (cos, sin):
        assert table.shape == (len(input), input.shape[2] // 2) and table.is_contiguous() and table.dtype == input.dtype
    first, second = input.chunk(2, -1)
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    output.copy_(torch.cat((first * c - second * s, second * c + first * s), -1))


def silu_and_mul(result: Tensor, input: Tensor) -> None:
    assert result.is_contiguous() and input.is_contiguous()
    gate, up = input.float().chunk(2, -1)
    result.copy_(F.silu(gate) * up)


def relu2_no_mul(out: Tensor, input: Tensor) -> None:
    assert out.is_contiguous() and input.is_contiguous()
    out.copy_(input.relu().square())


def varlen_fwd(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *rest: Any
) -> list[Tensor]:
    """Ragged sequences, one after the other. `rest` is as in the schema from `seqused_k` on."""
    names = ("seqused_k leftpad_k block_table alibi_slopes max_seqlen_q max_seqlen_k p_dropout q_scale k_scale v_scale "
             "softmax_scale softmax_sink zero_tensors is_causal left right softcap return_softmax").split()  # fmt: skip
    given = dict(zip(names, rest, strict=False))
    assert q.dtype in (torch.float16, torch.bfloat16) and q.dim() == 3 and q.shape[2] in (128, 256)
    assert all(starts.dtype == torch.int32 and starts.is_contiguous() for starts in (cu_seqlens_q, cu_seqlens_k))
    groups = q.shape[1] // k.shape[1]
    outs, sums = [], []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(at[i]), int(at[i + 1])) for at in (cu_seqlens_q, cu_seqlens_k))
        assert rows.stop - rows.start <= given["max_seqlen_q"] and keys.stop - keys.start <= given["max_seqlen_k"]
        qs, ks, vs = (x.transpose(0, 1).float() for x in (q[rows], k[keys], v[keys]))
        ks, vs = (x.repeat_interleave(groups, 0) for x in (ks, vs))
        scores = qs @ ks.mT * given["softmax_scale"]
        if given["is_causal"]:
            scores = scores + torch.full(scores.shape[1:], -torch.inf).triu(scores.shape[2] - scores.shape[1] + 1)
        outs.append((scores.softmax(-1) @ vs).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    lse = torch.cat(sums, 1) if given["return_softmax"] else torch.empty(0)
    return [torch.cat(outs).to(q.dtype), lse]


STAND_INS: dict[str, dict[str, Callable[..., Any]]] = {
    "_C": {one.__name__: one for one in (dynamic_per_token_scaled_fp8_quant, rms_norm, silu_and_mul, relu2_no_mul)},
    "_xpu_C": {one.__name__: one for one in (apply_rotary_emb, fp8_gemm, fp8_gemm_w8a16, fp4_gemm)},
    "_vllm_fa2_C": {"varlen_fwd": varlen_fwd},
}


def _varlen_fwd_shapes(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, *rest: Any) -> list[Tensor]:
    assert q.dim() == k.dim() == v.dim() == 3 and q.shape[2] == k.shape[2] == v.shape[2] and len(k) == len(v)
    assert all(starts.dtype == torch.int32 for starts in rest[:2])
    lse = q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    return [torch.empty_like(q, memory_format=torch.contiguous_format), lse]


SHAPES = {"varlen_fwd": _varlen_fwd_shapes}
"""What a call gives where nothing is computed, of a stand-in that reads its arguments."""


def _noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        CALLS.append(name)
        return function(*arguments, **options)

    return call


@functools.cache
def register() -> list[torch.library.Library]:
    """Give torch its missing operator, and those of a library where its stand-in is imported. What is returned keeps
    them."""
    aten = torch.library.Library("aten", "IMPL")
    name = "_weight_int4pack_mm_with_scales_and_zeros"
    aten.impl(name, _noted(f"aten::{name}", int4), "CPU")
    return [aten]


def _wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide_x, wide_weight, wide_bias = _wide(x, weight.t(), bias)
    found = torch.matmul(wide_x, wide_weight)
    return (found if bias is None else found + wide_bias).to(x.dtype)


def _convolution(axes: int) -> Callable[..., Tensor]:
    def convolution(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        groups: int = 1,
    ) -> Tensor:
        given = _wide(x, weight, bias)
        found: Tensor = torch.ops.aten.convolution(*given, stride, padding, dilation, False, [0] * axes, groups)
        return found.to(x.dtype)

    return convolution


WIDE: dict[str, Callable[..., Tensor]] = {"linear": _linear, "conv2d": _convolution(2), "conv3d": _convolution(3)}


@functools.cache
def widen(*names: str) -> torch.library.Library:
    """Let the host multiply in fp32 and round once, in linear layers and convolutions, or these: its own kernels in 16
    bits do the same, and take up to 60 times longer on a processor that has no such products."""
    aten = torch.library.Library("aten", "IMPL")
    for name in names or WIDE:
        aten.impl(name, WIDE[name], "CPU")
    return aten


@functools.cache
def register_library(library: str) -> torch.library.Library:
    """The operators of one of the package's libraries, by the schemas of the newest wheel."""
    made = torch.library.Library(library, "DEF")
    for name, schema in schemas(SCHEMAS[-1]).items():
        if name.startswith(f"{library}::"):
            made.define(schema)
            operator = name.split("::")[1]
            made.impl(operator, _noted(name, STAND_INS[library][operator]), "CPU")
            made.impl(operator, SHAPES.get(operator, STAND_INS[library][operator]), "Meta")
    return made
