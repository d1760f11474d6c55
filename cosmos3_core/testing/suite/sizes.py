"""Rows of every op that works by rows, at the sizes that the models ask: see `testing.sizes`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ...contract import FinishWeights, InputError, Layer, Ops, ProjectWeights, Residual
from ...quant import Format
from ...reference import layers, with_defaults
from ...reference import ops as reference
from ..cases import check, handed, moved, normal, wider
from ..depth import MOST_ROWS, Pace, drawn
from ..sizes import HIDDENS, INNERS, LAYOUTS, ODD_WIDTHS, ONE_OF_EACH, PERIOD, VAE_WIDTHS, Rows, check_rows
from ..sizes import rows_of_kinds as kinds
from .composites import in_format
from .marks import over

FEW = 5
"""Rows of a call that is about its width."""
LONG = 1025
"""Rows of a call that is about both, as media have in a layer."""
Layout = tuple[int, int, int]


def _weight(width: int, seed: int) -> Tensor:
    return 1 + 0.3 * normal(width, seed=seed)


def _matrix(out: int, width: int, seed: int) -> Tensor:
    """With an output that is all zeros, and one that is 50 times larger."""
    weight = normal(out, width, seed=seed) / width**0.5
    weight[out // 2] = 0
    weight[3 % out] *= 50
    return weight


def _normed(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """The truth: in fp64, which the reference's norms do not compute in."""
    x, scale = x.double(), 1.0 if weight is None else weight.double()
    return x if weight is None else x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * scale


@cache
def _norm(dtype: str, width: int, residual: bool) -> tuple[Any, Any, Any]:
    x, rest, weight = wider((kinds(width, 1), kinds(width, 2), _weight(width, 3)), getattr(torch, dtype))
    y, z = reference.rms_norm(x, weight, eps=1e-6, residual_MI=rest if residual else None)
    exact = {"y": _normed(z, weight), "x + residual": z.double()}
    return (x, rest, weight), exact, {"y": y, "x + residual": z}


def rms_norm(op: Any, dtype: str, device: str, width: int, residual: bool = True) -> Rows:
    (x, rest, weight), exact, eager = _norm(dtype, width, residual)

    def call(take: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        y, z = op(take(x), weight.to(device), eps=1e-6, residual_MI=take(rest) if residual else None)
        return {"y": y, "x + residual": z}

    return Rows(call, exact, eager)


@cache
def _gate(dtype: str, width: int, activation: str) -> tuple[Any, Any, Any]:
    x = kinds(2 * width if activation == "silu" else width, 4).to(getattr(torch, dtype))
    exact, eager = (reference.gate(t, activation=activation) for t in (x.double(), x.clone()))
    return x, {"y": exact}, {"y": eager}


def gate(op: Any, dtype: str, device: str, width: int, activation: str = "silu") -> Rows:
    x, exact, eager = _gate(dtype, width, activation)
    return Rows(lambda take: {"y": op(take(x), activation=activation)}, exact, eager)


@cache
def _norm_silu(dtype: str, width: int) -> tuple[Any, Any, Any]:
    x, weight, bias = wider((kinds(width, 5), _weight(width, 6), normal(width, seed=7)), getattr(torch, dtype))
    z = x.double() + bias.double()
    y = width**0.5 * z / z.norm(dim=1, keepdim=True).clamp_min(1e-12) * weight.double()
    return (x, weight, bias), {"y": y * y.sigmoid()}, {"y": reference.norm_silu(x, weight, bias_I=bias)}


def norm_silu(op: Any, dtype: str, device: str, width: int) -> Rows:
    (x, weight, bias), exact, eager = _norm_silu(dtype, width)
    return Rows(lambda take: {"y": op(take(x), weight.to(device), bias_I=bias.to(device))}, exact, eager)


def _tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angles = 3 * normal(tokens, width // 2, seed=8)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@cache
def _rope(dtype: str, layout: Layout) -> tuple[Any, Any, Any]:
    heads, keys, width = layout
    x = kinds((heads + keys) * width, 9).view(PERIOD, heads + keys, width)
    given = wider((x, _weight(width, 10), _weight(width, 11), *_tables(PERIOD, width)), getattr(torch, dtype))

    def compute(x: Tensor, norms: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, exact: bool) -> dict[str, Tensor]:
        q, k = x.unsqueeze(0).split([heads, keys], dim=2)
        parts = [(q, norms[0]), (k, norms[1]), (k, None)]
        if exact:
            parts, cos, sin = [(_normed(*part), None) for part in parts], cos.double(), sin.double()
        found = reference.norm_rope(parts, cos[None], sin[None], eps=1e-6)
        return dict(zip(("q", "k", "k without a norm"), (t[0] for t in found), strict=True))

    x, *norms, cos, sin = given
    exact, eager = (compute(x, (norms[0], norms[1]), cos, sin, precise) for precise in (True, False))
    return given, exact, eager


def norm_rope(op: Any, dtype: str, device: str, layout: Layout) -> Rows:
    (x, norm_q, norm_k, cos, sin), exact, eager = _rope(dtype, layout)

    def call(take: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        q, k = take(x).unsqueeze(0).split(list(layout[:2]), dim=2)
        heads = [(q, norm_q.to(device)), (k, norm_k.to(device)), (k, None)]
        found = op(heads, take(cos)[None], take(sin)[None], eps=1e-6)
        return dict(zip(("q", "k", "k without a norm"), (t[0] for t in found), strict=True))

    return Rows(call, exact, eager)


@lru_cache(64)  # the largest are of 131 million elements, and the formats share them
def _linear(
    dtype: str, out: int, width: int, rows: Sequence[int]
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """x, weight and bias, the truth, and what each output is divided by. What an output of zeros gives is the bias, and
    is judged with the rest."""
    x, weight, bias = (
        t.to(getattr(torch, dtype)) for t in (kinds(width, 12)[[*rows]], _matrix(out, width, 13), normal(out, seed=14))
    )
    wide = weight.double()
    scale_O = wide.norm(dim=1)
    return (x, weight, bias), reference.pack_linear(wide, bias.double())(x.double()), scale_O.where(scale_O > 0, 1.0)


@cache
def _eager_linear(dtype: str, out: int, width: int, rows: Sequence[int], meaning: Format | None) -> Tensor:
    (x, weight, bias), *_ = _linear(dtype, out, width, rows)
    linear = reference.LinearPacker({meaning.name: meaning} if meaning else {})
    return linear(handed(weight, meaning), bias, format=meaning.name if meaning else "none")(x)


def pack_linear(
    op: Any, dtype: str, device: str, out: int, width: int, meaning: Format | None, rows: Sequence[int] = range(PERIOD)
) -> Rows:
    (x, weight, bias), exact, scale_O = _linear(dtype, out, width, rows)
    format = meaning.name if meaning else "none"
    linear = op(handed(weight.to(device), meaning), bias.to(device, copy=True), format=format)
    eager = _eager_linear(dtype, out, width, rows, meaning)
    return Rows(lambda take: {"y": linear(take(x))}, {"y": exact}, {"y": eager}, scale_O)


class Sides(NamedTuple):
    """A layer's heads, its hidden width and its MLP's, and how many rows have a truth."""

    layout: Layout
    hidden: int
    inner: int
    rows: int = FEW

    def __str__(self) -> str:
        heads, keys, width = self.layout
        return f"a layer {self.hidden} wide, heads {heads}/{keys} of {width}, MLP {self.inner}"

    @property
    def weights(self) -> float:
        """Elements of both halves' matrices."""
        return float(self.hidden * (_wide(self.layout) + self.layout[0] * self.layout[2] + 3 * self.inner))


@lru_cache(96)  # the models' layers are large, and the formats share them
def _half(kind: str, dtype: str, half: Sides) -> tuple[Any, dict[str, Tensor]]:
    """Weights, inputs and the layer, and the truth."""
    (heads, keys, width), hidden, inner, rows = half
    layer = Layer(heads=heads, kv_heads=keys, head_dim=width, eps=1e-6, weight_fp32=False, activation="silu")
    x, delta, attended = (
        0.3 * normal(rows, hidden, seed=15),
        normal(rows, hidden, seed=16),
        normal(rows, heads * width, seed=17),
    )
    weights: Any
    inputs: Any
    if kind == "project":
        norms = (_weight(width, seed) for seed in (18, 19))
        qkv = normal((heads + 2 * keys) * width, hidden, seed=20) / hidden**0.5
        weights = ProjectWeights(_weight(hidden, 21), qkv, *norms)
        inputs = x, delta, *_tables(rows, width)
    else:
        parts = ((hidden, heads * width), (2 * inner, hidden), (hidden, inner))
        out, up, down = (normal(*shape, seed=22 + i) / shape[1] ** 0.5 for i, shape in enumerate(parts))
        weights, inputs = FinishWeights(out, _weight(hidden, 25), up, down), (x, attended)
    weights, inputs = wider((weights, inputs), getattr(torch, dtype))
    exact = _computed(kind, layer, wider(weights, torch.float64), wider(inputs, torch.float64), None)
    return (weights, inputs, layer), exact


@cache
def _eager_half(kind: str, dtype: str, half: Sides, meaning: Format | None) -> dict[str, Tensor]:
    (weights, inputs, layer), _ = _half(kind, dtype, half)
    return _computed(kind, layer, weights, moved(inputs), meaning)


def _computed(kind: str, layer: Layer, weights: Any, inputs: Any, meaning: Format | None) -> dict[str, Tensor]:
    """The reference's."""
    format = meaning.name if meaning else "none"
    return call_half(getattr(layers, kind)(weights, layer, in_format(meaning), format=format), layer, inputs)


def call_half(made: Any, layer: Layer, inputs: Any) -> dict[str, Tensor]:
    """A composite's outputs by name, rows first. The stream is what it comes to."""
    x, *rest = inputs
    if len(rest) == 3:
        residual = Residual(x.clone(), rest[0].clone())
        q, k, v, _ = made(residual, rest[1][None], rest[2][None])
        named = {"q": q[0], "k": k[0], "v": v[0]}
    else:
        residual, named = Residual(x.clone()), {}
        made(residual, rest[0].view(1, len(x), layer.heads, layer.head_dim))
    stream = residual.x_MI if residual.delta_MI is None else residual.x_MI + residual.delta_MI
    return named | {"stream": stream}


def composite(kind: str, op: Any, here: Any, half: Sides, format: str, ops: Ops) -> Rows:
    (weights, inputs, layer), exact = _half(kind, here.dtype, half)
    eager = _eager_half(kind, here.dtype, half, here.meaning(format))
    made = op(moved(weights, device=here.device), layer, ops, format=format)
    return Rows(lambda take: call_half(made, layer, [take(t) for t in inputs]), exact, eager)


def _sweep(
    pace: Pace,
    make: Callable[[Any], Rows],
    sizes: Iterable[tuple[int, Any, float]],
    dtype: str,
    device: str,
    format: str,
) -> None:
    """Judge what `make(what)` gives for each (rows, what, work of a row) that is worth its time."""
    calls = []
    for rows, what, work in dict.fromkeys(sizes):
        calls.append((f"{rows} rows of {_said(what)}", rows * work, _elements(what), (rows, what)))
    for rows, what in pace.worth(calls):
        try:
            check_rows(make(what), rows, device, dtype, format != "none")
        except AssertionError as error:
            raise AssertionError(f"{_said(what)}: {error}") from None
        except Exception as error:
            raise AssertionError(f"{_said(what)}, {rows} rows: {type(error).__name__}: {error}") from error


def _elements(what: Any) -> float:
    """Of what is drawn for a width, a layout, a weight or half a layer."""
    if isinstance(what, int):
        return 2.0 * PERIOD * what
    if isinstance(what, Sides):
        return what.weights
    return float(PERIOD * _wide(what) if len(what) == 3 else what[0] * what[1])


def _said(what: Any) -> str:
    return str(what) if isinstance(what, int | Sides) else " x ".join(map(str, what))


def _rows_and_widths(pace: Pace, narrow: int, widths: Iterable[int], seed: int) -> Iterator[tuple[int, int, float]]:
    """Every number of rows at a narrow width, every width with few rows, and the largest of both."""
    for rows in (*pace.depth.rows, *drawn(pace.depth, seed, MOST_ROWS)):
        yield rows, narrow, narrow
    for width in widths:
        for rows in (FEW, 1, 300, MOST_ROWS):
            yield rows, width, width


@over("rms_norm")
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_rms_norm_sizes(kernel, dtype, op, device, pace, residual):
    sizes = _rows_and_widths(pace, 64, (*HIDDENS, *ODD_WIDTHS), 1)
    _sweep(pace, lambda width: rms_norm(op, dtype, device, width, residual), sizes, dtype, device, "none")


@over("gate")
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_sizes(kernel, dtype, op, device, pace, activation):
    sizes = _rows_and_widths(pace, 64, INNERS, 2)
    _sweep(pace, lambda width: gate(op, dtype, device, width, activation), sizes, dtype, device, "none")


@over("norm_silu")
def test_norm_silu_sizes(kernel, dtype, op, device, pace):
    sizes = _rows_and_widths(pace, 96, VAE_WIDTHS, 3)
    _sweep(pace, lambda width: norm_silu(op, dtype, device, width), sizes, dtype, device, "none")


@over("norm_rope")
def test_norm_rope_sizes(subject, kernel, dtype, op, device, pace):
    """In every layout of heads that the row does not refuse."""
    served = layouts(subject, kernel, dtype)
    first = served[0]
    sizes = [(rows, first, _wide(first)) for rows in (*pace.depth.rows, *drawn(pace.depth, 4, MOST_ROWS))]
    sizes += [(rows, layout, _wide(layout)) for layout in served for rows in (1, 37, MOST_ROWS)]
    _sweep(pace, lambda layout: norm_rope(op, dtype, device, layout), sizes, dtype, device, "none")


def layouts(subject: Any, kernel: Any, dtype: str, format: str | None = None) -> list[Layout]:
    """Those that the row does not refuse, the narrowest first. Skips where there is none."""
    served = []
    for heads, keys, width in sorted(LAYOUTS, key=_wide):
        if subject.why_not(kernel, dtype, format, heads=heads, kv_heads=keys, head_dim=width) is None:
            served.append((heads, keys, width))
    if not served:
        pytest.skip("the row refuses every layout of heads")
    return served


def _wide(layout: Layout) -> int:
    return (layout[0] + 2 * layout[1]) * layout[2]


@over("pack_linear")
def test_linear_sizes(kernel, dtype, format, op, here, device, pace):
    """Every number of rows with a small weight, then weights as high and as wide as the models' with one row, few and
    many."""
    meaning = here.meaning(format)
    small = (256, 256)
    sizes = [(rows, small, 256.0**2) for rows in (*pace.depth.rows, *drawn(pace.depth, 5, MOST_ROWS))]
    shapes = [
        *((256, width) for width in (*HIDDENS, *INNERS, 8192)),
        *((out, 256) for out in (*HIDDENS, *INNERS, 6144)),
    ]
    models = [(6144, 4096), (4096, 12288), (10240, 5120), (5120, 25600)]
    calls = [(rows, shape) for shape in (*shapes, *models) for rows in (len(ONE_OF_EACH), 1, 300)]
    calls += [(LONG, shape) for shape in ((256, 2048), (2048, 256), *models)]
    # To draw the weight and to pack it takes as long as 200 rows do, and is said of each of them.
    sizes += [(rows, (out, width), out * width * (200 / rows + 1)) for rows, (out, width) in calls]

    @cache
    def made(shape: tuple[int, int]) -> Rows:
        return pack_linear(op, dtype, device, *shape, meaning, range(PERIOD) if shape == small else ONE_OF_EACH)

    _sweep(pace, made, sizes, dtype, device, format)


@over("project", "finish")
def test_composite_sizes(subject, kernel, dtype, format, op, here, device, pace):
    """Every number of rows in a narrow layer, then every layout of heads that the row does not refuse, with few rows,
    and wide layers, wide MLPs, and the models' layers with few rows and many."""
    if (meaning := here.meaning(format)) and meaning.static:
        pytest.skip("its scales of the activations are a trained checkpoint's")
    try:
        ops = with_defaults(here.ops(format, "silu"))
    except InputError as error:
        pytest.skip(str(error))
    served = layouts(subject, kernel, dtype, format)
    narrow = Sides(served[0], 256, 768, PERIOD)
    sizes = [(rows, narrow, narrow.weights) for rows in (*pace.depth.rows, *drawn(pace.depth, 6, MOST_ROWS))]
    halves = [Sides(layout, 256, 256) for layout in served]
    halves += [Sides(served[0], hidden, 256) for hidden in HIDDENS[1:]] + [Sides(served[0], 256, INNERS[-1])]
    models = zip(LAYOUTS[:3], HIDDENS[1:], INNERS[1:], strict=True)
    halves += [Sides(*model) for model in models if model[0] in served]
    sizes += [(rows, half, 40 * half.weights) for half in halves for rows in (1, FEW)]
    sizes += [(LONG, half, half.weights) for half in halves if half.hidden > 256 or half.inner > 256]
    made = cache(lambda half: composite(kernel.op, op, here, half, format, ops))
    _sweep(pace, made, sizes, dtype, device, format)


@over("patch_embed")
def test_patch_embed_sizes(kernel, dtype, op, device, pace):
    """From one token to a clip's, of a picture, of many frames, of sides that no patch divides."""
    sides = [
        (1, 1, 1),
        (1, 2, 2),
        (1, 1, 129),
        (3, 5, 7),
        (1, 64, 64),
        (17, 11, 6),
        (129, 2, 2),
        (5, 45, 80),
        (48, 45, 80),
    ]
    calls = [(_said(size), float(size[0] * size[1] * size[2]), 0.0, size) for size in sides]
    for frames, height, width in pace.worth(calls):
        latent = normal(4, frames, height, width, seed=26)
        out = 64
        rest = normal(out, 16, seed=27) / 4, normal(out, seed=28), normal(1, out, seed=29)
        noisy = torch.arange(frames) % 3 != 0
        inputs = latent, *(t.to(getattr(torch, dtype)) for t in rest)
        exact, eager = (
            reference.patch_embed(*given, patch=2, noisy_T=noisy) for given in (wider(inputs, torch.float64), inputs)
        )
        found = op(*moved(inputs, device=device), patch=2, noisy_T=noisy.to(device))
        check(found, exact, eager, dtype)
