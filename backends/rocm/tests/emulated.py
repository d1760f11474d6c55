"""A stand-in for AITER: its functions with the signatures of a record in `signatures`, computed on the host in fp32.

What a function documents or its source checks is an error here, too. It shows what cosmos3-rocm hands to AITER and
makes of the results, and nothing of AITER's kernels, its rounding or its speed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from rocm_signatures import recorded
from torch import Tensor

from cosmos3_core.quant import ELEMENTS, FORMATS, Format
from cosmos3_core.quant.codes import decode, encode
from cosmos3_core.quant.numerics import pack
from cosmos3_core.reference import ops as reference

dtypes = SimpleNamespace(bf16=torch.bfloat16, fp4x2=torch.float4_e2m1fn_x2, i8=torch.int8)
"""What defaults of AITER's parameters are named after."""
CALLS: list[tuple[str, dict[str, Any]]] = []
"""The functions that were called, with their arguments by name; whoever looks at it empties it."""
E4M3 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn, "gfx1201": torch.float8_e4m3fn}
DEVICE = SimpleNamespace(arch="gfx950")
"""The GPU that is played."""
SIXTEEN = (torch.bfloat16, torch.float16)
UNDERSTOOD = {
    "flash_attn_func": {"q", "k", "v", "causal", "return_lse"},
    "flash_attn_varlen_func": {
        "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "causal", "return_lse"
    },
    "flash_attn_fp8_pertensor_func": {"q", "k", "v", "q_descale", "k_descale", "v_descale", "causal"},
    "gemm_a8w8": {"XQ", "WQ", "x_scale", "w_scale", "bias", "dtype"},
    "gemm_a8w8_blockscale": {"XQ", "WQ", "x_scale", "w_scale", "dtype"},
    "gemm_a4w4": {"A", "B", "A_scale", "B_scale", "out", "dtype", "bpreshuffle"},
    "per_1x32_f4_quant_hip": {"x", "shuffle"},
    "shuffle_weight": {"x", "layout"},
    "e8m0_shuffle": {"scale"},
    "rmsnorm2d_fwd": {"input", "weight", "epsilon", "use_model_sensitive_rmsnorm"},
    "rmsnorm2d_fwd_with_add": {
        "out", "input", "residual_in", "residual_out", "weight", "epsilon", "use_model_sensitive_rmsnorm"
    },
    "rope_cached_fwd": {"input", "cos", "sin", "rotate_style", "reuse_freqs_front_part", "nope_first"},
    "rope_cached_2c_fwd": {
        "input_x", "input_y", "cos", "sin", "rotate_style", "reuse_freqs_front_part", "nope_first"
    },
    "silu_and_mul": {"out", "input"},
}  # fmt: skip
"""The parameters that a stand-in looks at. Others keep their defaults."""


def call(name: str, given: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """What a function of the installed stand-in does with its arguments."""
    CALLS.append((name, given))
    for key in given.keys() - UNDERSTOOD[name]:
        assert given[key] == defaults[key], f"{name}: {key} is {given[key]!r}, and nobody knows what that does"
    return globals()[name](**{key: value for key, value in given.items() if key in UNDERSTOOD[name]})


def attended(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """(out, lse) of [B, S, H, D] in fp32; a mask is aligned to the bottom right."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2).float() for x in (q, k, v))
    scores = q @ k.repeat_interleave(groups, 1).mT * q.shape[-1] ** -0.5
    if causal:
        scores += torch.full_like(scores[0, 0], -torch.inf).triu(scores.shape[3] - scores.shape[2] + 1)
    return (scores.softmax(-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2), scores.logsumexp(-1)


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, return_lse: bool) -> Any:
    assert q.dtype == k.dtype == v.dtype and q.dtype in SIXTEEN and q.dim() == 4
    assert q.shape[3] <= 256 and q.shape[2] % k.shape[2] == 0 and all(x.stride(3) == 1 for x in (q, k, v))
    out, lse = attended(q, k, v, causal)
    return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    return_lse: bool,
) -> Any:
    assert q.dim() == k.dim() == 3 and q.dtype in SIXTEEN
    assert all(starts.dtype == torch.int32 and starts.is_contiguous() for starts in (cu_seqlens_q, cu_seqlens_k))
    outs, sums = [], []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(at[i]), int(at[i + 1])) for at in (cu_seqlens_q, cu_seqlens_k))
        assert rows.stop - rows.start <= max_seqlen_q and keys.stop - keys.start <= max_seqlen_k
        out, lse = attended(q[None, rows], k[None, keys], v[None, keys], causal)
        outs.append(out[0])
        sums.append(lse[0])
    out = torch.cat(outs).to(q.dtype)
    return (out, torch.cat(sums, 1)) if return_lse else out


def flash_attn_fp8_pertensor_func(
    q: Tensor, k: Tensor, v: Tensor, q_descale: Tensor, k_descale: Tensor, v_descale: Tensor, causal: bool
) -> Tensor:
    assert DEVICE.arch == "gfx950" and {x.dtype for x in (q, k, v)} == {torch.float8_e4m3fn}
    assert q.shape[2] == k.shape[2] == v.shape[2] and q.shape[3] == 128, "as many key heads as query heads, of 128"
    scales = (q_descale, k_descale, v_descale)
    assert all(scale.dtype == torch.float32 and scale.shape == (1,) for scale in scales)
    return attended(*(x.float() * scale for x, scale in zip((q, k, v), scales, strict=True)), causal)[0].bfloat16()


def gemm_a8w8(
    XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    assert XQ.dtype == WQ.dtype and XQ.dtype in (torch.int8, E4M3[DEVICE.arch]), f"{XQ.dtype} on {DEVICE.arch}"
    assert XQ.is_contiguous() and WQ.is_contiguous() and dtype in SIXTEEN
    assert x_scale.dtype == w_scale.dtype == torch.float32 and (bias is None or bias.dtype == dtype)
    assert (x_scale.shape, w_scale.shape) == ((len(XQ), 1), (len(WQ), 1))
    y = XQ.float() @ WQ.float().T * x_scale * w_scale.T
    return (y if bias is None else y + bias.float()).to(dtype)


def gemm_a8w8_blockscale(XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    assert XQ.dtype == WQ.dtype == E4M3[DEVICE.arch] and dtype in SIXTEEN, f"{XQ.dtype} on {DEVICE.arch}"
    assert all(x.is_contiguous() for x in (XQ, WQ, x_scale, w_scale))
    assert x_scale.shape == (len(XQ), XQ.shape[1] // 128) and w_scale.shape == (len(WQ) // 128, WQ.shape[1] // 128)
    x = XQ.float() * x_scale.repeat_interleave(128, 1)
    return (x @ (WQ.float() * w_scale.repeat_interleave(128, 0).repeat_interleave(128, 1)).T).to(dtype)


def gemm_a4w4(
    A: Tensor,
    B: Tensor,
    A_scale: Tensor,
    B_scale: Tensor,
    bpreshuffle: bool,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Weights in tiles, both sides' scales in AITER's order. Where `out` is given its rows are filled up to 32."""
    assert DEVICE.arch == "gfx950" and A.dtype == B.dtype == dtypes.fp4x2 and bpreshuffle
    assert A_scale.dtype == B_scale.dtype == torch.float8_e8m0fnu
    rows, outputs, blocks = len(A), len(B), A.shape[1] // 16
    values = [decode(side, ELEMENTS["e2m1"]) for side in (A.view(torch.uint8), in_rows(B.view(torch.uint8)))]
    scales = [
        in_order(side.view(torch.uint8))[:length, :blocks] for side, length in ((A_scale, rows), (B_scale, outputs))
    ]
    x, weight = (
        value * (scale.float() - 127).exp2().repeat_interleave(32, 1)
        for value, scale in zip(values, scales, strict=True)
    )
    if out is None:
        return (x @ weight.T).to(dtype)
    assert len(out) % 32 == 0 and len(out) >= rows and out.shape[1] == outputs
    out[:rows] = x @ weight.T
    out[rows:] = torch.nan
    return out


def per_1x32_f4_quant_hip(x: Tensor, shuffle: bool) -> tuple[Tensor, Tensor]:
    """The exponent of a block is that of its largest magnitude, rounded to the nearest, less 2."""
    assert x.is_contiguous() and x.shape[1] % 32 == 0 and shuffle
    blocks = x.float().unflatten(1, (-1, 32))
    largest = blocks.abs().amax(2).clamp_min(1e-10)
    exponent = (largest * (4 / 3)).log2().floor() - 2  # up from 1.5 x 2^n on
    values = encode((blocks / exponent.exp2().unsqueeze(2)).flatten(1), ELEMENTS["e2m1"])
    scale = e8m0_shuffle((exponent + 127).to(torch.uint8).view(torch.float8_e8m0fnu))
    return values.view(dtypes.fp4x2), scale


def shuffle_weight(x: Tensor, layout: tuple[int, int]) -> Tensor:
    """Tiles of 16 rows and 32 bytes, of which two halves follow each other."""
    assert layout == (16, 16) and x.element_size() == 1 and x.shape[0] % 16 == 0 and x.shape[1] % 32 == 0
    tiles = x.view(x.shape[0] // 16, 16, x.shape[1] // 32, 2, 16)
    return tiles.permute(0, 2, 3, 1, 4).contiguous().view(x.shape)


def in_rows(x: Tensor) -> Tensor:
    """What `shuffle_weight` was given."""
    tiles = x.view(x.shape[0] // 16, x.shape[1] // 32, 2, 16, 16)
    return tiles.permute(0, 3, 1, 2, 4).contiguous().view(x.shape)


def e8m0_shuffle(scale: Tensor) -> Tensor:
    """Bytes in tiles of 32 rows and 8 blocks; what is filled up is whatever was in memory."""
    filled = torch.full((-(-scale.shape[0] // 256) * 256, -(-scale.shape[1] // 8) * 8), 255, dtype=torch.uint8)
    filled[: scale.shape[0], : scale.shape[1]] = scale.view(torch.uint8)
    tiles = filled.view(len(filled) // 32, 2, 16, filled.shape[1] // 8, 2, 4)
    return tiles.permute(0, 3, 5, 2, 4, 1).contiguous().view(filled.shape).view(scale.dtype)


def in_order(scale: Tensor) -> Tensor:
    """What `e8m0_shuffle` was given, filled up."""
    tiles = scale.view(len(scale) // 32, scale.shape[1] // 8, 4, 16, 2, 2)
    return tiles.permute(0, 5, 3, 1, 4, 2).contiguous().view(scale.shape)


def rmsnorm2d_fwd(input: Tensor, weight: Tensor, epsilon: float, use_model_sensitive_rmsnorm: int) -> Tensor:
    assert input.dtype == weight.dtype and input.dtype in SIXTEEN and input.dim() == 2 and input.stride(1) == 1
    unit = input.float() * (input.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (unit.to(input.dtype) * weight) if use_model_sensitive_rmsnorm else (unit * weight.float()).to(input.dtype)


def rmsnorm2d_fwd_with_add(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    use_model_sensitive_rmsnorm: int,
) -> None:
    residual_out.copy_(input.float() + residual_in.float())
    out.copy_(rmsnorm2d_fwd(residual_out, weight, epsilon, use_model_sensitive_rmsnorm))


def rope_cached_fwd(
    input: Tensor, cos: Tensor, sin: Tensor, rotate_style: int, reuse_freqs_front_part: bool, nope_first: bool
) -> Tensor:
    """Axes S, B, H, D. Tables are [S, 1, 1, D] where their front part is not used again."""
    assert input.dim() == 4 and cos.shape == sin.shape == (len(input), 1, 1, input.shape[3])
    assert (rotate_style, reuse_freqs_front_part, nope_first) == (0, False, False)
    x = input.float()
    low, high = x.chunk(2, -1)
    return (x * cos.float() + torch.cat((-high, low), -1) * sin.float()).to(input.dtype)


def rope_cached_2c_fwd(
    input_x: Tensor,
    input_y: Tensor,
    cos: Tensor,
    sin: Tensor,
    rotate_style: int,
    reuse_freqs_front_part: bool,
    nope_first: bool,
) -> tuple[Tensor, Tensor]:
    options = cos, sin, rotate_style, reuse_freqs_front_part, nope_first
    return rope_cached_fwd(input_x, *options), rope_cached_fwd(input_y, *options)


def silu_and_mul(out: Tensor, input: Tensor) -> None:
    assert out.is_contiguous() and input.is_contiguous()
    gate, up = input.float().chunk(2, -1)
    out.copy_(F.silu(gate) * up)


def install(records: list[Path], site: Path, changed: dict[str, str] | None = None) -> None:
    """Write the package `aiter` into a folder: the functions of the records, of which later ones go before earlier
    ones, with their signatures. `changed` gives functions other parameters."""
    functions: dict[str, tuple[str, str]] = {}
    for file in records:
        functions |= recorded(file)
    head = "from emulated import call, dtypes\nimport inspect\n\n\ndef defaults(function):\n"
    head += "    return {name: one.default for name, one in inspect.signature(function).parameters.items()}\n"
    texts: dict[str, str] = {}
    for name, (file, parameters) in functions.items():
        parameters = (changed or {}).get(name, parameters)
        body = f"    return call({name!r}, dict(locals()), defaults({name}))"
        texts[file] = texts.get(file, head) + f"\n\ndef {name}({parameters}):\n{body}\n"
    for folder in ("", "ops", "utility"):
        (site / "aiter" / folder).mkdir(parents=True, exist_ok=True)
        (site / "aiter" / folder / "__init__.py").touch()
    for file, text in texts.items():
        (site / "aiter" / file).write_text(text)


def pack_by_torch(put: Callable[[Any, str, Any], None]) -> None:
    """Our kernels beside AITER's products, by `cosmos3_core.quant` and eager torch: they are Triton's, and have tests
    of their own. `put` is setattr, or a monkeypatch's."""
    from cosmos3_rocm import linears
    from cosmos3_triton import layers
    from cosmos3_triton import linears as shared
    from cosmos3_triton.activations import Rows

    def rows(x_MI: Tensor, format: str, given: Tensor | None = None, fp8: torch.dtype = torch.float8_e4m3fn) -> Rows:
        """In gfx942's e4m3 scales are twice the format's."""
        own = fp8 == torch.float8_e4m3fnuz and FORMATS[format].element == "e4m3"
        given = given / 2 if own and given is not None else given
        packed = pack(x_MI, FORMATS[format].of_inputs, input_scale=given)
        scales = packed.scales.float().expand(len(x_MI), 1).contiguous()
        return Rows(shared.to_fnuz(packed.values) if own else packed.values, scales * (2 if own else 1), x_MI.dtype)

    def tiles(x_MI: Tensor, format: Format) -> tuple[Tensor, Tensor, None]:
        packed = pack(x_MI, format.of_inputs)
        return packed.values, packed.scales.t().contiguous().t(), None

    def plain(op: Callable[..., Any]) -> Callable[..., Any]:
        """Rows in the dtype, which the product behind it packs."""
        return lambda table: lambda *given, format, **options: op(*given, **options)

    put(shared, "quantize_rows", rows)
    put(linears, "quantize_tiles", tiles)
    put(layers, "norm_rows", plain(reference.rms_norm))
    put(layers, "gate_rows", plain(reference.gate))
