"""The two halves of a decoder layer around attention, by a row that does them or parts of them itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ... import contract
from ...contract import FinishWeights, InputError, Layer, Ops, ProjectWeights, Residual
from ...quant import Format
from ...reference import build_ops, layers, with_defaults
from ...reference.ops import LinearPacker
from .. import cases
from ..cases import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, Here, Made, OpCase, check, moved, normal, wider
from ..near_zero import check_near_zero, near_zero
from .marks import each, over

INSIDE = {"project": ("rms_norm", "pack_linear", "norm_rope"), "finish": ("rms_norm", "pack_linear", "gate")}
"""The ops that a composite is made of: those that it can fuse."""
WIDTH = HEADS * HEAD_DIM
REFERENCE = build_ops()


def in_format(format: Format | None) -> Ops:
    """The reference's ops, with products in this format among them."""
    return replace(REFERENCE, pack_linear=LinearPacker({format.name: format} if format else {}))


def _matrix(out: int, width: int, seed: int) -> Tensor:
    return normal(out, width, seed=seed) / width**0.5


def _norm(width: int, seed: int) -> Tensor:
    return 1 + 0.2 * normal(width, seed=seed)


@dataclass(frozen=True)
class Half:
    """A half of a layer at Cosmos3's heads, and what it is called with: `branches` prompts of 37 tokens, each with
    tables of its own, as rows whose mean is not 0. `norms` has a letter for each norm of heads: of q, of k, and of k
    for gen. An `eps` as large as the squares shows in every norm."""

    id: str
    activation: str = "silu"
    branches: int = 2
    delta: bool = True
    norms: str = "qk"
    weight_fp32: bool = False
    eps: float = 1e-6

    @property
    def layer(self) -> Layer:
        return Layer(
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            eps=self.eps,
            weight_fp32=self.weight_fp32,
            activation=self.activation,
        )

    def rows(self, width: int, seed: int) -> Tensor:
        return normal(37 * self.branches, width, seed=seed)

    def residual(self, delta: bool) -> Residual:
        return Residual(self.rows(HIDDEN, 1) + 0.5, self.rows(HIDDEN, 2) if delta else None)

    def project_weights(self) -> ProjectWeights:
        norms = (_norm(HEAD_DIM, 10 + i) if letter in self.norms else None for i, letter in enumerate("qkg"))
        return ProjectWeights(_norm(HIDDEN, 3), _matrix(WIDTH + 2 * KV_HEADS * HEAD_DIM, HIDDEN, 4), *norms)

    def finish_weights(self) -> FinishWeights:
        """What each product adds to the stream is about as large as the stream."""
        up = INNER * (2 if self.activation == "silu" else 1)
        large = 1.7 if self.activation == "silu" else 0.8  # a gate leaves 0.6 of normal rows, a square 1.2
        parts = _matrix(HIDDEN, WIDTH, 5), _norm(HIDDEN, 6), _matrix(up, HIDDEN, 7), large * _matrix(HIDDEN, INNER, 8)
        return FinishWeights(*parts)

    def project_inputs(self) -> tuple[Residual, Tensor, Tensor]:
        angles = 3 * normal(self.branches, 37, HEAD_DIM // 2, seed=9)
        angles = torch.cat((angles, angles), dim=-1)
        return self.residual(self.delta), angles.cos(), angles.sin()

    def finish_inputs(self) -> tuple[Residual, Tensor]:
        """What was attended lies as attention leaves it: head by head."""
        return self.residual(False), normal(self.branches, HEADS, 37, HEAD_DIM, seed=9).transpose(1, 2)


@dataclass(frozen=True)
class Kind:
    """A composite: its weights and inputs, what it is in the reference, and the outputs of a call by name. The stream
    that a call leaves is one of them, as a sum."""

    weights: Callable[[Half], Any]
    inputs: Callable[[Half], Any]
    pack: Callable[..., Any]

    def call(self, made: Any, inputs: Any) -> dict[str, Tensor]:
        residual, *rest = inputs
        found = made(residual, *rest)
        named = {} if found is None else {name: t for name, t in found._asdict().items() if t is not None}
        return named | {"x": residual.x_MI} | ({} if residual.delta_MI is None else {"delta": residual.delta_MI})

    @lru_cache  # noqa: B019 (cases are module constants; every row is compared with the same truth)
    def expected(self, case: Half, dtype: str, format: Format | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(outputs in fp64, outputs of eager torch in the dtype and format), on the same rounded weights and inputs."""
        given = wider((self.weights(case), self.inputs(case)), getattr(torch, dtype))
        (exact_weights, exact_inputs), (weights, inputs) = wider(given, torch.float64), given
        exact = self.call(self.pack(exact_weights, case.layer, REFERENCE), exact_inputs)
        made = self.pack(weights, case.layer, in_format(format), format=format.name if format else "none")
        return exact, self.call(made, inputs)


KINDS = {
    "project": Kind(Half.project_weights, Half.project_inputs, layers.project),
    "finish": Kind(Half.finish_weights, Half.finish_inputs, layers.finish),
}
PROJECTS = (
    Half("two_branches"),
    Half("one_branch-no_delta", branches=1, delta=False, eps=0.5),
    Half("k_for_gen", norms="g"),
    Half("all_norms-round_once", norms="qkg", weight_fp32=True, eps=0.5),
    Half("no_norms", norms="", delta=False),
)
FINISHES = (
    Half("gated"),
    Half("gated-one_branch", branches=1, eps=0.5),
    Half("relu2", activation="relu2"),
    Half("relu2-round_once", activation="relu2", weight_fp32=True, eps=0.5),
)
MOVED = tuple(
    Half(f"{name}{order}", activation=activation, norms="qk", delta=False, weight_fp32=order == "round_once")
    for name, activation in (("", "relu2"), ("silu-", "silu"))
    for order in ("round_first", "round_once")
)


def _made(kind: str, op: Any, case: Half, here: Here, format: str, ops: Ops | None = None) -> Any:
    """What a row makes of a case's weights, with the plan's ops or with those given."""
    if (meaning := here.meaning(format)) and meaning.static:
        pytest.skip("its scales of the activations are a trained checkpoint's")
    weights = moved(KINDS[kind].weights(case), **here.cast)
    return op(weights, case.layer, ops or _ops(here, format, case.activation), format=format)


def _ops(here: Here, format: str, activation: str) -> Ops:
    """The plan's, as a composite gets them."""
    try:
        return with_defaults(here.ops(format, activation))
    except InputError as error:
        pytest.skip(str(error))


def _case(kind: str, protocol: type, makes: type, case: Half, overwrites: tuple[int, ...]) -> OpCase:
    shapes = tuple(tuple(t.shape) for t in vars(KINDS[kind].weights(case)).values() if t is not None and t.dim() == 2)

    def make(op: Any, here: Here, format: str) -> Made:
        thing = _made(kind, op, case, here, format)
        return Made(thing, lambda: [*KINDS[kind].call(thing, moved(KINDS[kind].inputs(case), **here.cast)).values()])

    return OpCase(op=kind, protocol=protocol, makes=makes, make=make, overwrites=overwrites, matrices=shapes)


PROJECT = _case("project", contract.PackProject, contract.Project, replace(PROJECTS[0], norms="qkg"), ())
FINISH = _case("finish", contract.PackFinish, contract.Finish, FINISHES[0], (0,))


def _check(kind: str, found: dict[str, Tensor], case: Half, dtype: str, meaning: Format | None) -> None:
    """Every output within the bound; of the stream, what it comes to."""
    exact, eager = KINDS[kind].expected(case, dtype, meaning)
    assert all(t.dtype == getattr(torch, dtype) for t in found.values()), "results are in the dtype of the stream"
    found, exact, eager = (_summed(outputs) for outputs in (found, exact, eager))
    assert found.keys() == eager.keys(), f"the results are {', '.join(found)}, not {', '.join(eager)}"
    for name, ours in found.items():
        try:
            check(ours, exact[name], eager[name], dtype, multiple=cases.LOST if meaning else cases.MULTIPLE)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def _summed(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the host, which has fp64, with what the stream comes to in place of its parts."""
    outputs = {name: t.cpu() for name, t in outputs.items()}
    rest = {name: t for name, t in outputs.items() if name not in ("x", "delta")}
    stream = outputs["x"].double()
    return rest | {"stream": stream + outputs["delta"].double() if "delta" in outputs else stream}


@over("project")
@each(*PROJECTS)
def test_project_parity(kernel, dtype, format, op, here, case):
    """q, k and v, k for gen where there is a norm for it, and the stream, against the reference's primitives."""
    inputs = moved(KINDS["project"].inputs(case), **here.cast)
    _check(
        "project",
        KINDS["project"].call(_made("project", op, case, here, format), inputs),
        case,
        dtype,
        here.meaning(format),
    )


@over("project")
@each(*PROJECTS[:2])
def test_project_leaves_the_sum_in_the_stream(kernel, dtype, format, op, here, case):
    """x + delta as x, and no delta: whoever comes next adds to it."""
    inputs = moved(KINDS["project"].inputs(case), **here.cast)
    residual = inputs[0]
    summed = residual.x_MI if residual.delta_MI is None else residual.x_MI + residual.delta_MI
    _made("project", op, case, here, format)(*inputs)
    assert residual.delta_MI is None, "the stream still has a delta, which would be added once more"
    assert torch.equal(residual.x_MI, summed), "the stream is not x + delta"


@over("finish")
@each(*FINISHES)
def test_finish_parity(kernel, dtype, format, op, here, case):
    """The stream after both sums, the last of which may be left as its delta."""
    inputs = moved(KINDS["finish"].inputs(case), **here.cast)
    _check(
        "finish",
        KINDS["finish"].call(_made("finish", op, case, here, format), inputs),
        case,
        dtype,
        here.meaning(format),
    )


@over("project", "finish")
def test_composites_of_views(kernel, dtype, format, op, here):
    """Rows of the stream and tables that lie within wider ones, and what was attended within a longer tensor, token by
    token: the results are those of copies."""
    case = PROJECTS[0] if kernel.op == "project" else FINISHES[0]
    kind = KINDS[kernel.op]
    residual, *rest = moved(kind.inputs(case), **here.cast)
    residual.x_MI = _within(residual.x_MI)
    residual.delta_MI = None if residual.delta_MI is None else _within(residual.delta_MI)
    found = kind.call(_made(kernel.op, op, case, here, format), (residual, *(_within(t.contiguous()) for t in rest)))
    _check(kernel.op, found, case, dtype, here.meaning(format))


def _within(t: Tensor) -> Tensor:
    """The same elements as a view: after a first row or batch, and with others between its rows."""
    wide = torch.cat((9 + t, t, 9 - t), dim=-1)
    return torch.cat((wide[:1], wide))[1:, ..., t.shape[-1] : 2 * t.shape[-1]]


@over("project", "finish")
def test_composites_of_rows_near_zero(kernel, dtype, format, op, here):
    """Zeros, subnormal numbers and a dtype's smallest ones, in the stream and in what was attended, give something
    between zero and the truth, and leave their neighbours alone."""
    case = replace((PROJECTS if kernel.op == "project" else FINISHES)[0], branches=1)
    kind, meaning, cast = KINDS[kernel.op], here.meaning(format), here.cast["dtype"]
    made, weights = _made(kernel.op, op, case, here, format), wider(kind.weights(case), cast)
    residual, *rest = kind.inputs(case)
    residual.x_MI = near_zero(residual.x_MI[:8], cast)
    if residual.delta_MI is not None:
        residual.delta_MI = near_zero(residual.delta_MI[:8], cast)
    rest = [t[:, :8].to(cast) for t in rest]
    if kernel.op == "finish":
        rest = [near_zero(rest[0][0], cast).unsqueeze(0)]
    inputs, exact_weights = (residual, *rest), wider(weights, torch.float64)
    exact = kind.call(kind.pack(exact_weights, case.layer, REFERENCE), wider(inputs, torch.float64))
    eager = kind.call(kind.pack(weights, case.layer, in_format(meaning), format=format), moved(inputs, dtype=cast))
    found, exact, eager = map(_summed, (kind.call(made, moved(inputs, device=here.device)), exact, eager))
    for name, ours in found.items():
        first = [t.flatten(end_dim=t.dim() - 2) if name == "stream" else t[0] for t in (ours, exact[name], eager[name])]
        try:
            check_near_zero(*first, dtype=dtype, multiple=cases.LOST if meaning else cases.MULTIPLE)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@over("project", "finish")
@each(*MOVED)
def test_composites_round_in_the_order_asked(kernel, dtype, format, op, here, case):
    """Products that only move features, and no rotation, leave the norms' own roundings to be seen."""
    if dtype == "float32" or format != "none":
        pytest.skip("nothing is rounded in between, or all of it is")
    if kernel.op == "project" and case.activation == "silu":
        pytest.skip("it has no gate: the other activation has shown its order")
    kind = KINDS[kernel.op]
    weights, (residual, *rest) = moved((kind.weights(case), kind.inputs(case)), dtype=here.cast["dtype"])
    for name in ("qkv_OI", "out_OI", "up_OI", "down_OI"):
        if (weight := getattr(weights, name, None)) is not None:
            weight.copy_(torch.eye(weight.shape[1]).repeat(-(-len(weight) // weight.shape[1]), 1)[: len(weight)])
    if kernel.op == "project":
        rest = [torch.ones_like(rest[0]), torch.zeros_like(rest[1])]
    else:  # what the first product adds is nothing, and what the last one adds drowns the rest
        residual.x_MI, rest = residual.x_MI * 2**-10, [torch.zeros_like(rest[0])]
    eager, other = (
        kind.call(
            kind.pack(weights, replace(case.layer, weight_fp32=case.weight_fp32 != flipped), REFERENCE),
            moved((residual, *rest), dtype=here.cast["dtype"]),
        )
        for flipped in (False, True)
    )
    here_weights = moved(weights, device=here.device)
    made = op(here_weights, case.layer, _ops(here, format, case.activation), format=format)
    found = kind.call(made, moved((residual, *rest), device=here.device))
    for name, theirs in _summed(eager).items():
        ours, wrong = (_summed(one)[name].to(theirs.dtype).to(here.cast["dtype"]) for one in (found, other))
        right = theirs.to(here.cast["dtype"])
        share, bound = (ours != right).double().mean().item(), 0.1
        if case.activation == "silu":  # whose own value is rounded too: it is nearer to the order that was asked
            bound += (ours != wrong).double().mean().item() / 2
        assert share < bound, (
            f"{name}: {share:.0%} of the elements differ from eager with weight_fp32={case.weight_fp32}, "
            f"bound {bound:.0%}"
        )


@over("project", "finish")
def test_composites_fuse_what_they_say(kernel, dtype, format, op, here):
    """They do not ask the plan's ops for what they fuse, and ask them for all the rest."""
    ops, asked = _ops(here, format, "silu"), set()

    def watched(name: str) -> Callable[..., Any]:
        def call(*arguments, **options):
            asked.add(name)
            return getattr(ops, name)(*arguments, **options)

        return call

    case = PROJECTS[0] if kernel.op == "project" else FINISHES[0]
    inside = INSIDE[kernel.op]
    spied: dict[str, Any] = {name: watched(name) for name in inside}
    made = _made(kernel.op, op, case, here, format, replace(ops, **spied))
    inputs = moved(KINDS[kernel.op].inputs(case), **here.cast)
    _check(kernel.op, KINDS[kernel.op].call(made, inputs), case, dtype, here.meaning(format))
    wrongly, unasked = sorted(asked & set(kernel.fuses)), sorted(set(inside) - asked - set(kernel.fuses))
    assert not wrongly, f"it says that it fuses {', '.join(wrongly)}, and asks the plan's row for it"
    assert not unasked, f"it does {', '.join(unasked)} itself, and does not say so in `fuses`"
