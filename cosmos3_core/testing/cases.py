"""How far a kernel may be from the truth, and inputs that several ops share.

Inputs are drawn in fp32 from a seed, rounded to the dtype and handed over as the model hands them over: q, k and v are
views of one projection. The truth is the reference evaluated in fp64 (norms: fp32) on those same rounded inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import Kernel, Ops
from ..quant import FORMATS as BUILT_IN
from ..quant import Format
from ..quant.numerics import Packed, fake_quant, fake_quant_input, pack
from .depth import Draw

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
HIDDEN, INNER = 512, 768
"""Widths of the residual stream and of the MLP: many times smaller than a model's."""
MULTIPLE = 2.0
"""A kernel may lose this many times what eager torch loses in the same dtype on the same inputs."""
FLOOR = {"float32": 6e-6, "bfloat16": 5e-4, "float16": 6e-5}
"""And this on top, relative: eager is at times exact by luck, and another order of summation is no fault."""
DTYPES = tuple(FLOOR)
"""The dtypes that a row may declare."""
LOST = 1.5
"""And in a quantization format this many times what the reference's numerics of it lose on the same inputs: scales may
be chosen and rounded in other ways, and elements may not be cut off (`biased`)."""
USED = 0.5
"""A product in a format loses at least this share of it: who loses less computes in another one."""
BIAS = 0.75
"""What a result may be too small or too large by, all in all, as a share of what eager torch loses: rounding to nearest
leaves a hundredth, cutting off 1.7."""
INPUT_MOST = 6.0
"""The largest magnitude among activations that stored scales are for: those of the cases are smaller."""
WORST_ROW = 1.5
"""What `allowed` of a format may be in the worst of thousands of rows, as a multiple of what it may be in all."""
NUDGE = 2.0**-18
"""Less than half a step of a 16-bit dtype, and more than fp32 loses in choosing a code."""
LSE_ABSOLUTE = 1e-3
"""Absolute error of a log-sum-exp: one part in a thousand in the weight of a segment when partial results merge."""
WORST_LSE = 3.0
"""What a row that quantizes may be off in the worst of thousands of log-sum-exps, as a multiple of its root mean
square's bound: where one key has all the weight, the whole error is that of its score, of which this is six deviations
in int8."""


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(Draw.seed(seed)))


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


def shape_of(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def check(
    found: Tensor, exact: Tensor, eager: Tensor, dtype: str, allowed: float = 0.0, multiple: float = MULTIPLE
) -> Loss:
    """Fail unless `found` has the shape and dtype of `eager` and an error within the bound: `multiple` times what
    `eager` loses, in all and in the worst row. `allowed` is a share on top. Returns what it loses."""
    assert found.shape == eager.shape, f"the shape is {shape_of(found)}, not {shape_of(eager)}"
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    ours, eagers = Loss.of(found, exact), Loss.of(eager, exact)
    for part, share in (("whole", 1.0), ("row", WORST_ROW)):
        loss, lost = getattr(ours, part), getattr(eagers, part)
        bound = multiple * lost + FLOOR[dtype] + share * allowed
        # Written so that NaN fails.
        assert loss <= bound, (
            f"relative error of the {part} is {loss:.2e}; eager {dtype} has {lost:.2e}, bound {bound:.2e}, "
            f"shape {shape_of(found)}"
        )
    return ours


def nudged(x: Tensor, seed: int) -> Tensor:
    """In fp32, each element a little larger or smaller: what lies half way between two codes goes to either."""
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x.float() * (1 + NUDGE * signs)


def worst_of(results: Sequence[Tensor], exact: Tensor) -> Tensor:
    """Of each row the result that is farthest from the exact one."""
    errors = torch.stack([(result.double() - exact.double()).norm(dim=-1) for result in results])
    return torch.stack([*results])[errors.argmax(dim=0), torch.arange(len(exact))]


def biased(found: Tensor, exact: Tensor, eager: Tensor, dtype: str) -> str | None:
    """What is wrong where results are too small or too large all in all, as by cutting off instead of rounding."""
    exact = exact.double()
    power = exact.square().sum()
    ours, theirs = (float(((t.cpu().double() - exact) * exact).sum() / power) for t in (found, eager))
    bound = BIAS * Loss.of(eager, exact).whole + 2 * abs(theirs) + FLOOR[dtype] / 4
    fits = abs(ours) <= bound
    return (
        None
        if fits
        else f"results are too {_way(ours)} by {abs(ours):.1e}, eager {dtype} by {theirs:.1e}, bound {bound:.1e}, "
        f"shape {shape_of(found)}"
    )


def _way(share: float) -> str:
    return "small" if share < 0 else "large"


@lru_cache
def allowed(format: Format | None) -> float:
    """The relative error that a format may add to a product of normally distributed weights and activations."""
    if format is None:
        return 0.0
    width = 8 * math.lcm(256, format.group or 1, format.super_group or 1)
    weight, x = normal(max(256, format.outputs), width, seed=1), normal(128, width, seed=2)
    scale = input_scale(format)
    taken, kept = fake_quant_input(x, format, scale), fake_quant(weight, format, weight=True, input_scale=scale)
    return LOST * Loss.of(taken.double() @ kept.double().T, x.double() @ weight.double().T).whole


def input_scale(format: Format) -> Tensor | None:
    """The stored scale of the activations for a format that takes one."""
    inputs = format.of_inputs
    if inputs is None or not format.static:
        return None
    return torch.tensor(INPUT_MOST / inputs.of_elements.most)


def packed(weight_OI: Tensor, format: Format) -> Packed:
    """A weight as a checkpoint holds it."""
    scale = input_scale(format)
    return pack(weight_OI, format, weight=True, input_scale=None if scale is None else scale.to(weight_OI.device))


def handed(weight_OI: Tensor, format: Format | None) -> Tensor | Packed:
    """A weight as a row is handed it: as it is, unless its format has a scale that only checkpoints know."""
    return packed(weight_OI, format) if format and format.static else weight_OI.clone()


def allowance(kernel: Kernel, known: Mapping[str, Format] = BUILT_IN) -> float:
    """What an attention row that quantizes may lose. Attention takes no format argument, so a row that does not offer
    "none" is judged by the coarsest it declares, fourfold: keys err in an exponent, and values on top."""
    return 0.0 if "none" in kernel.formats else 4 * max(allowed(known[name]) for name in kernel.formats)


def worst_lse(allowance: float) -> float:
    """How far a log-sum-exp may be away."""
    return LSE_ABSOLUTE + WORST_LSE * allowance


def check_lse(lse_BHS: Tensor, expected_BHS: Tensor, allowance: float) -> None:
    """Fail unless log-sum-exps are right, in the root mean square and in the worst. A row that does not quantize, of
    which `allowance` is 0, has one bound for both."""
    away = (lse_BHS.cpu().double() - expected_BHS).abs()
    for what, found, bound in (
        ("in the worst", away.amax(), worst_lse(allowance)),
        ("in the root mean square", away.square().mean().sqrt(), LSE_ABSOLUTE + allowance),
    ):
        shape = list(lse_BHS.shape)
        assert float(found) <= bound, f"lse is {float(found):.1e} away {what}, bound {bound:.1e}, shape {shape}"


def sizes(least: float, most: float) -> Tensor:
    """Factors [77, 1] for rows from small to large, by powers of ten, the third all zeros."""
    factors = torch.logspace(least, most, 77).unsqueeze(1)
    factors[2] = 0
    return factors


def norm_inputs(dtype: str, device: str = "cpu", scale: float | Tensor = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """x_MI, residual_MI, weight_I: 77 rows of 512."""
    x, residual, weight = scale * normal(77, 512, seed=1), scale * normal(77, 512, seed=2), 1 + normal(512, seed=3)
    x, residual, weight = (t.to(device, getattr(torch, dtype)) for t in (x, residual, weight))
    return x, residual, weight


def moved(value: Any, **place: Any) -> Any:
    """Tensors, and lists, tuples and dataclasses of them, in another dtype or on another device."""
    if isinstance(value, Tensor):
        return value.to(**place)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), **place) for field in fields(value)})
    return type(value)(moved(part, **place) for part in value) if isinstance(value, list | tuple) else value


def wider(value: Any, dtype: torch.dtype = torch.float32) -> Any:
    """`moved` to another dtype."""
    return moved(value, dtype=dtype)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    return [t for part in value for t in tensors_in(part)] if isinstance(value, list | tuple) else []


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class Here:
    """Where a row is used: the `dtype`, torch's name of the `device`, the `formats` that the row serves in, the ops of
    a plan for one of them and an activation, `ops(format, activation)`, and what the formats' names mean (`known`)."""

    dtype: str
    device: str
    formats: tuple[str, ...]
    ops: Callable[[str, str], Ops]
    known: Mapping[str, Format] = field(default_factory=lambda: BUILT_IN)

    def meaning(self, format: str) -> Format | None:
        """Of a format's name; None is of "none"."""
        assert format in ("none", *self.known), f"there is no format {format!r}"
        return self.known.get(format)

    @property
    def cast(self) -> dict[str, Any]:
        """Keyword arguments that put a tensor here."""
        return {"device": self.device, "dtype": getattr(torch, self.dtype)}


class Made(NamedTuple):
    """What a row has made of weights, `thing`, and a call of it on ordinary inputs: every output."""

    thing: Any
    call: Callable[[], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """An op, as the tests see it that are about rows of any op."""

    op: str
    protocol: type
    """Of `contract`: what a row builds."""
    use: Callable[[Any, Here], list[Tensor]] | None = None
    """`use(op, here)`: one ordinary use of a built row in each of the formats, every output of it. None where one
    process cannot use it, or where the op makes something."""
    make: Callable[[Any, Here, str], Made] | None = None
    """`make(op, here, format)`, where it makes something. What that is called with is the input that has to stay as it
    is."""
    makes: type | None = None
    """Of `contract`: what something made of weights looks like."""
    matrices: tuple[tuple[int, int], ...] = ()
    """Outputs and input features of the weights that it is made of here."""
    overwrites: tuple[int, ...] = ()
    """Arguments that the protocol lets a row overwrite, by position: of what is made, where it makes something."""

    def job(self, op: Any, here: Here) -> list[Tensor]:
        """An ordinary use of this row: what is repeated, timed in memory and compared bit for bit."""
        return self.calls(op, here)()

    def calls(self, op: Any, here: Here) -> Callable[[], list[Tensor]]:
        """The same, for as often as it is called; what the op makes is made once."""
        if self.make is None:
            use = self.use
            assert use is not None, f"{self.op} has no ordinary use"
            return lambda: use(op, here)
        made = [self.make(op, here, format) for format in here.formats]
        return lambda: [tensor for one in made for tensor in one.call()]
