"""Inputs at Cosmos3's shapes, what they should give, and how far a kernel may be from it.

Inputs are drawn in fp32 from a seed, rounded to the dtype and handed over as the model hands them over: q, k and v are
views of one projection. The truth is the reference evaluated in fp64 (norms: fp32) on those same rounded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .. import quant
from ..contract import Kernel, Quantized
from ..quant.numerics import fake_quant, pack
from ..reference import ops as reference

HEAD_DIM = 128
MULTIPLE = 2.0
"""A kernel may lose this many times what eager torch loses in the same dtype on the same inputs."""
FLOOR = {"float32": 2e-6, "bfloat16": 5e-4, "float16": 6e-5}
"""And this on top, relative: eager is at times exact by luck, and another order of summation is no fault."""
FORMATS = {
    "none": 0.0,
    "int8": 0.025,
    "fp8": 0.06,
    "fp8_block": 0.06,
    "mxfp8": 0.065,
    "nvfp4": 0.2,
    "mxfp4": 0.25,
    "nvfp4a16": 0.145,
    "mxfp4a16": 0.175,
    "w4a16": 0.155,
}
"""Relative error a quantization format may add to a product of normally distributed weights and activations: about
1.5 times what `quant`'s own rounding of them costs."""
ROW_FORMATS = tuple(name for name, f in quant.FORMATS.items() if (f.bits, f.scale, f.group) == (8, "fp32", 0))
"""The formats of `contract.Quantized`."""
WORST_ROW = 1.5
"""What a format may add to the worst of thousands of rows, as a multiple of what it may add to all of them."""
LSE_ABSOLUTE = 1e-3
"""Absolute error of a log-sum-exp: one part in a thousand in the weight of a segment when partial results merge."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Loss:
    """Relative L2 error of the whole tensor, and of the worst of its rows (the last axis)."""

    whole: float
    row: float

    @classmethod
    def of(cls, found: Tensor, exact: Tensor) -> Loss:
        exact = exact.double()
        error, tiny = found.detach().cpu().double() - exact, torch.finfo(torch.float64).tiny
        rows = error.norm(dim=-1) / exact.norm(dim=-1).clamp_min(tiny)
        return cls(float(error.norm() / exact.norm().clamp_min(tiny)), float(rows.max()))


def check(found: Tensor, exact: Tensor, eager: Tensor, dtype: str, allowed: float = 0.0) -> None:
    """Fail unless `found` has the shape and dtype of `eager` and an error within the bound; `allowed` is the share a
    quantization format may add."""
    assert found.shape == eager.shape, f"the shape is {list(found.shape)}, not {list(eager.shape)}"
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    ours, eagers = Loss.of(found, exact), Loss.of(eager, exact)
    for part, share in (("whole", 1.0), ("row", WORST_ROW)):
        loss, lost = getattr(ours, part), getattr(eagers, part)
        bound = MULTIPLE * lost + FLOOR[dtype] + share * allowed
        # Written so that NaN fails.
        assert loss <= bound, (
            f"relative error of the {part} is {loss:.2e}; eager {dtype} has {lost:.2e}, bound {bound:.2e}"
        )


def allowance(kernel: Kernel) -> float:
    """What an attention row that quantizes may lose. Attention takes no format argument, so a row that does not offer
    "none" is judged by the coarsest it declares, fourfold: keys err in an exponent, and values on top."""
    return 0.0 if "none" in kernel.formats else 4 * max(FORMATS[name] for name in kernel.formats)


@dataclass(frozen=True)
class Attention:
    """One attention call. `values` is how much larger each segment's values are; queries then look at one segment
    each, so that an error in the small one cannot hide behind the large one. `keys` scales the last segment's keys."""

    id: str
    heads: int = 32
    kv_heads: int = 8
    queries: int = 130
    lengths: tuple[int, ...] = (1, 77, 300)
    batch: int = 1
    causal: bool = False
    values: tuple[float, ...] = ()
    keys: float = 1.0

    def inputs(self, dtype: str, device: str = "cpu") -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(q_BSHD, segments), not contiguous."""
        q = normal(self.batch, self.queries, self.heads, HEAD_DIM, seed=1)
        segments = []
        for i, length in enumerate(self.lengths):
            # Scores with a standard deviation of 2: a wrong key shows, and no key drowns the others.
            kv = normal(self.batch, length, 2 * self.kv_heads, HEAD_DIM, seed=10 + i)
            kv[:, :, : self.kv_heads] *= 2
            if i == len(self.lengths) - 1:
                kv[:, :, : self.kv_heads] *= self.keys
            if self.values:
                kv[:, :, : self.kv_heads] += 1 - 2 * (i % 2)
                kv[:, :, self.kv_heads :] *= self.values[i]
            segments.append(kv.to(device, getattr(torch, dtype)).split(self.kv_heads, dim=2))
        if self.values:
            q[:, 0::2] += 1
            q[:, 1::2] -= 1
        padded = torch.cat((q, q[:, :, :1]), dim=2).to(device, getattr(torch, dtype))
        return padded[:, :, : self.heads], [(k, v) for k, v in segments]

    @lru_cache  # noqa: B019 (cases are module constants; every row is compared with the same truth)
    def expected(self, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        """(exact out in fp64, exact lse_BHS, eager out in the dtype)."""
        q, segments = self.inputs(dtype)
        exact = [(k.double(), v.double()) for k, v in segments]
        out, lse = reference.attention(q.double(), exact, causal=self.causal, want_lse=True)
        return out, lse, reference.attention(q, segments, causal=self.causal)[0]


ATTENTION = (
    Attention("gqa32_8-ragged"),
    Attention("gqa64_8-ragged", heads=64),
    Attention("gqa32_8-one_query", queries=1, lengths=(3, 130)),
    Attention("gqa32_8-one_key", queries=5, lengths=(1,)),
    Attention("gqa32_8-batch2", queries=33, lengths=(7, 65), batch=2),
    Attention("gqa32_8-values50x", lengths=(77, 130), values=(1.0, 50.0)),
    Attention("gqa32_8-keys50x", lengths=(77, 130), keys=50.0),
    Attention("gqa32_8-causal", queries=77, lengths=(77,), causal=True),
    Attention("gqa64_8-causal", heads=64, queries=130, lengths=(130,), causal=True),
)
PLAIN, CAUSAL = ATTENTION[4], ATTENTION[7]


@dataclass(frozen=True)
class Linear:
    """One weight. Each has an output 50 times larger than the others, as trained weights do: a scale for the whole
    matrix would leave nothing of the rest in 8 bits."""

    id: str
    out: int
    width: int
    bias: bool = False

    def weights(self, dtype: str, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor | None]:
        weight = normal(self.out, self.width, seed=seed + 1) / self.width**0.5
        weight[3] *= 50
        bias = normal(self.out, seed=seed + 2) if self.bias else None
        return weight.to(device, getattr(torch, dtype)), bias if bias is None else bias.to(
            device, getattr(torch, dtype)
        )

    def input(self, rows: int, dtype: str, device: str = "cpu") -> Tensor:
        return normal(rows, self.width, seed=rows).to(device, getattr(torch, dtype))


LINEAR = (
    Linear("o384_i128", 384, 128),
    Linear("o128_i384-bias", 128, 384, bias=True),
    Linear("o256_i256", 256, 256),
    Linear("o256_i256-bias", 256, 256, bias=True),
)
SQUARE, BIASED = LINEAR[2], LINEAR[3]
ROWS = (1, 77, 130)


def check_linear(
    linear: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, dtype: str, format: str
) -> None:
    """Fail unless linear(x) is x Wᵀ + b within the bound. Every output counts alike, however large its weights are."""
    found = linear(x)
    x, weight, bias = (None if t is None else t.cpu() for t in (x, weight, bias))
    eager = reference.pack_linear(weight, bias)(x)
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    exact = reference.pack_linear(weight.double(), None if bias is None else bias.double())(x.double())
    scale_O = weight.double().norm(dim=1)
    check(found.cpu().double() / scale_O, exact / scale_O, eager.double() / scale_O, dtype, FORMATS[format])


def quantized(x_MI: Tensor, format: str) -> Quantized:
    """The rows in one of ROW_FORMATS, by the format's reference numerics."""
    packed = pack(x_MI, quant.FORMATS[format])
    return Quantized(packed.values, packed.scales, x_MI.dtype)


def dequantized(found: Tensor | Quantized) -> Tensor:
    """What a result of a norm or a gate stands for, in its dtype."""
    if isinstance(found, Tensor):
        return found
    return (found.values_MI.float() * found.scale_M1).to(found.dtype)


def rounded(x_MI: Tensor, format: str) -> Tensor:
    """What quantizing leaves of x."""
    return x_MI if format == "none" else fake_quant(x_MI, quant.FORMATS[format])


def check_quantized(found: Quantized, plain: Tensor, format: str) -> None:
    """Fail unless `found` is what quantizing `plain` gives, up to the rounding of ties, of which 16 bits have many."""
    values, scale, plain, expected = found.values_MI, found.scale_M1.cpu(), plain.cpu(), quantized(plain.cpu(), format)
    assert found.dtype == plain.dtype, f"rows of {plain.dtype} are called {found.dtype}"
    assert values.is_contiguous() and values.shape == plain.shape, f"values are {[*values.shape]}, {values.stride()}"
    assert values.dtype == expected.values_MI.dtype, f"values are {values.dtype}, not {expected.values_MI.dtype}"
    assert scale.shape == expected.scale_M1.shape and scale.dtype == torch.float32, f"{scale.dtype} {[*scale.shape]}"
    # A hundredth: the largest element of a row may be rounded to its dtype the other way.
    wrong = ((scale - expected.scale_M1).abs() > 0.01 * expected.scale_M1) & (expected.scale_M1 > 0)
    assert not wrong.any(), f"{int(wrong.sum())} of {len(scale)} rows have another scale than their largest element's"
    # The values alone, so that every row counts alike, however large it is.
    nearest, exact = expected.values_MI.float(), plain.float() / expected.scale_M1.clamp_min(1e-30)
    moved, lost = Loss.of(values.float(), nearest).whole, Loss.of(nearest, exact).whole
    assert moved <= lost / 4, f"values are {moved:.1e} from the rounded ones, and rounding costs {lost:.1e}"


def sizes(least: float, most: float) -> Tensor:
    """Factors [77, 1] for rows from small to large, by powers of ten, the third all zeros."""
    factors = torch.logspace(least, most, 77).unsqueeze(1)
    factors[2] = 0
    return factors


def norm_inputs(dtype: str, device: str = "cpu", scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """x_MI, residual_MI, weight_I: 77 rows of 512."""
    x, residual, weight = scale * normal(77, 512, seed=1), scale * normal(77, 512, seed=2), 1 + normal(512, seed=3)
    return tuple(t.to(device, getattr(torch, dtype)) for t in (x, residual, weight))


def rope_inputs(
    dtype: str, device: str = "cpu", *, tables: int = 2, batch: int = 2, scale: float = 1.0
) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor, Tensor]:
    """(heads, cos_BSD, sin_BSD): 32 query heads, 8 key heads, and the key heads again without a weight."""
    cast, tokens = dict(device=device, dtype=getattr(torch, dtype)), 37
    q, k, _ = (scale * normal(batch, tokens, 48, HEAD_DIM, seed=1)).to(**cast).split([32, 8, 8], dim=2)
    weights = [(1 + 0.5 * normal(HEAD_DIM, seed=seed)).to(**cast) for seed in (2, 3)]
    angles = 3 * normal(tables, tokens, HEAD_DIM // 2, seed=4)
    angles = torch.cat((angles, angles), dim=-1)
    return [(q, weights[0]), (k, weights[1]), (k, None)], angles.cos().to(**cast), angles.sin().to(**cast)


def patch_inputs(
    dtype: str, device: str = "cpu", size: tuple[int, int] = (6, 10), clean: bool = True
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """(latent_CThw, weight_OI, bias_O, timestep_1O) and the options: three frames of 48 channels in fp32, which lie
    side by side channel by channel, the first of them clean."""
    latent = normal(3, 48, *size, seed=1).to(device).transpose(0, 1)
    rest = (normal(256, 192, seed=2) / 192**0.5, normal(256, seed=3), normal(1, 256, seed=4))
    noisy = torch.tensor([False, True, True], device=device) if clean else None
    return (latent, *(t.to(device, getattr(torch, dtype)) for t in rest)), dict(patch=2, noisy_T=noisy)


def silu_inputs(dtype: str, device: str = "cpu", width: int = 256) -> tuple[Tensor, Tensor]:
    """x_MI, weight_I: 77 rows as a convolution leaves them, from small to large, the third all zeros."""
    x = normal(77, width, seed=1) * sizes(-3, 2)
    return tuple(t.to(device, getattr(torch, dtype)) for t in (x, 1 + 0.5 * normal(width, seed=2)))


@dataclass(frozen=True)
class Step:
    """A function to capture: three launches that depend on one another, on its inputs, and on a weight that it holds.
    Steps of two seeds hold two weights."""

    weight: Tensor

    @classmethod
    def of(cls, dtype: str, device: str, seed: int = 1) -> Step:
        return cls((normal(64, 64, seed=seed) / 8).to(device, getattr(torch, dtype)))

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        mixed = x @ self.weight + y
        return [mixed, mixed.sigmoid() * x]

    def input(self, seed: int) -> list[Tensor]:
        return [normal(33, 64, seed=seed + i).to(self.weight) for i in (100, 200)]


def wider(value: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Tensors, and lists and tuples of them, in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return type(value)(wider(part, dtype) for part in value) if isinstance(value, list | tuple) else value


def job(kernel: Kernel, op: Any, device: str) -> list[Tensor]:
    """One ordinary use of a row in each of its formats, every output of it: what is repeated, timed in memory and
    compared bit for bit."""
    dtype = "bfloat16" if "bfloat16" in kernel.dtypes else kernel.dtypes[0]
    if kernel.op == "attention":
        q, segments = PLAIN.inputs(dtype, device)
        return list(op(q, segments, want_lse=True))
    if kernel.op == "pack_linear":
        weight, bias = BIASED.weights(dtype, device)
        return [op(weight.clone(), bias, format=name)(BIASED.input(77, dtype, device)) for name in kernel.formats]
    if kernel.op == "rms_norm":
        x, residual, weight = norm_inputs(dtype, device)
        results = [op(x, weight, eps=1e-6, residual_MI=residual, format=name) for name in kernel.formats]
        return [part for result, z in results for part in (*_parts(result), z)]
    if kernel.op == "norm_rope":
        return list(op(*rope_inputs(dtype, device), eps=1e-6))
    if kernel.op == "patch_embed":
        inputs, options = patch_inputs(dtype, device)
        return [op(*inputs, **options)]
    if kernel.op == "norm_silu":
        return [op(*silu_inputs(dtype, device))]
    if kernel.op == "capture":
        step = Step.of(dtype, device)
        captured = op(step)
        return [t.clone() for seed in range(4) for t in captured(*step.input(seed))]
    x, asked = norm_inputs(dtype, device)[0], product(("silu", "relu2"), kernel.formats)
    results = [op(x.clone(), activation=name, format=format) for name, format in asked]
    return [part for result in results for part in _parts(result)]


def _parts(found: Tensor | Quantized) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [found.values_MI.float(), found.scale_M1]


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
