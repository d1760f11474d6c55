"""How far a kernel may be from the truth, and inputs that several ops share.

Inputs are drawn in fp32 from a seed, rounded to the dtype and handed over as the model hands them over: q, k and v are
views of one projection. The truth is the reference evaluated in fp64 (norms: fp32) on those same rounded inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import quant
from ..contract import Kernel, Quantized
from ..quant.numerics import fake_quant, pack

HEAD_DIM = 128
MULTIPLE = 2.0
"""A kernel may lose this many times what eager torch loses in the same dtype on the same inputs."""
FLOOR = {"float32": 2e-6, "bfloat16": 5e-4, "float16": 6e-5}
"""And this on top, relative: eager is at times exact by luck, and another order of summation is no fault."""
DTYPES = tuple(FLOOR)
"""The dtypes that a row may declare."""
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


def wider(value: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Tensors, and lists and tuples of them, in another dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return type(value)(wider(part, dtype) for part in value) if isinstance(value, list | tuple) else value


def parts(found: Tensor | Quantized) -> list[Tensor]:
    """The tensors of a result of a norm or a gate."""
    return [found] if isinstance(found, Tensor) else [found.values_MI.float(), found.scale_M1]


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class OpCase:
    """An op, as the tests see it that are about rows of any op."""

    op: str
    protocol: type
    """Of `contract`: what a row's callable looks like."""
    use: Callable[[Any, tuple[str, ...], str, str], list[Tensor]]
    """`use(op, formats, dtype, device)`: one ordinary use of a built row in each of the formats, every output of it."""
    makes: bool = False
    """The op returns a callable. What that is called with is the input that has to stay as it is."""
    overwrites: bool = False
    """The protocol lets a row overwrite its inputs."""
    quantizes: bool = False
    """Rows may declare formats of ROW_FORMATS beside "none", in which they return `Quantized`."""

    def job(self, kernel: Kernel, op: Any, device: str) -> list[Tensor]:
        """An ordinary use of this row: what is repeated, timed in memory and compared bit for bit."""
        dtype = "bfloat16" if "bfloat16" in kernel.dtypes else kernel.dtypes[0]
        return self.use(op, kernel.formats, dtype, device)
