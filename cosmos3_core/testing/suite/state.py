"""A call computes from what it is given: nothing is taken from an earlier call, and nothing is left behind."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ...contract import Residual, Segment
from ...reference import build_ops
from ...reference import ops as reference
from ..cases import Here, Loss, OpCase, moved, tensors_in
from .marks import over

COMPUTE = ("attention", "pack_linear", "rms_norm", "norm_rope", "gate", "patch_embed", "norm_silu", "project", "finish")
"""The ops that the reference computes, too."""
STALE = 0.2
"""Relative error of a result: one of other data is wrong by about all of it, one in a coarse format by less."""
HELD = 256 << 10
"""Bytes of Python's that repetitions may keep: counters, and names of what was compiled. There are so many repetitions
that their results are twice as much."""


@dataclass
class Use:
    """A call of a row with what it was called with, and the same by the reference."""

    function: Callable[..., Any]
    twin: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """Each once, in the order of the arguments."""
        found = tensors_in([*self.arguments, *self.options.values()])
        return list({id(t): t for t in found if t.is_floating_point()}.values())

    def again(self, function: Callable[..., Any], **place: Any) -> list[Tensor]:
        """Every output of a call with these arguments, the stream that it leaves among them."""
        arguments, options = moved(self.arguments, **place), {k: moved(v, **place) for k, v in self.options.items()}
        result = function(*arguments, **options)
        streams = [one for one in arguments if isinstance(one, Residual)]
        for stream in streams:
            total = stream.x_MI if stream.delta_MI is None else stream.x_MI + stream.delta_MI
            result = [result, total]
        return [t.clone() for t in tensors_in(result)]

    def elsewhere(self) -> Use:
        """The same with copies of the tensors."""
        return replace(
            self, arguments=_copied(self.arguments), options={k: _copied(v) for k, v in self.options.items()}
        )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.preserve_format)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _copied(getattr(value, field.name)) for field in fields(value)})
    return type(value)(_copied(part) for part in value) if isinstance(value, list | tuple) else value


def uses(case: OpCase, op: Any, here: Here) -> Iterator[Use]:
    """Every call of an ordinary use of the row, before it is made."""
    twin: Callable[..., Any] = getattr(build_ops(), case.op)
    packer = reference.LinearPacker(here.known)
    found: list[Use] = []

    def of(function: Any, twin: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            use = Use(function, twin, arguments, options)
            found.append(use.elsewhere())
            return function(*arguments, **options)

        return call

    def make(*arguments: Any, **options: Any) -> Any:
        weights, *rest = moved(_copied(arguments[:1]), device="cpu") + arguments[1:]
        if case.op == "pack_linear":
            bias = rest[0] if rest[0] is None else rest[0].cpu().clone()
            return of(op(*arguments, **options), packer(weights, bias, **options))
        ops = replace(build_ops(), pack_linear=packer)
        return of(op(*arguments, **options), twin(weights, rest[0], ops, **options))

    if case.make is None:
        case.job(of(op, twin), here)
        yield from found
        return
    for format in here.formats:
        found.clear()
        case.make(make, here, format).call()
        yield from list(found)


def _other(use: Use, by: float) -> list[Tensor]:
    """Other data for each tensor: turned around and scaled."""
    return [by * t.flip(-1) for t in use.tensors]


def _written(use: Use, data: list[Tensor]) -> None:
    for tensor, new in zip(use.tensors, data, strict=True):
        tensor.copy_(new)


def _check(use: Use, data: list[Tensor], what: str) -> None:
    """Fail unless the row gives what the reference gives for this data, at the tensors' own addresses."""
    _written(use, data)
    expected = use.again(use.twin, device="cpu")
    _written(use, data)  # the reference's gate overwrites its rows where the device is the host
    found = use.again(use.function)
    for ours, theirs in zip(found, expected, strict=True):
        loss = Loss.of(ours, theirs).whole
        assert loss < STALE, (
            f"{what}, shape {list(ours.shape)}: relative error {loss:.1e}, which an earlier call explains"
        )


@over(*COMPUTE)
def test_other_data_at_the_same_address(kernel, dtype, op, op_cases, here):
    """What was made of a tensor is made anew when the tensor has other contents."""
    for use in uses(op_cases[kernel.op], op, here):
        kept = [t.clone() for t in use.tensors]
        use.again(use.function)
        for by in (0.75, -0.5):
            _written(use, kept)
            _check(use, _other(use, by), "other data at the same address")


@over(*COMPUTE)
def test_other_data_of_the_same_shape(kernel, dtype, op, op_cases, here):
    """What was made of a tensor is not taken for another one of its shape."""
    for use in uses(op_cases[kernel.op], op, here):
        other = use.elsewhere()
        data = _other(other, -0.75)
        use.again(use.function)
        _check(other, data, "other data of the same shape")


@over(*COMPUTE)
def test_results_stay_after_other_calls(kernel, dtype, op, op_cases, here):
    """With other data, at other addresses: no two calls share a result."""
    if not kernel.fresh:
        pytest.skip("the row declares fresh=False")
    for use in uses(op_cases[kernel.op], op, here):
        other = use.elsewhere()
        _written(other, _other(other, -0.75))
        first = tensors_in(use.function(*use.arguments, **use.options))
        before = [t.clone() for t in first]
        other.function(*other.arguments, **other.options)
        assert all(torch.equal(a, b) for a, b in zip(first, before, strict=True)), (
            "a later call with other data has written to an earlier result"
        )


@over(*COMPUTE)
def test_an_error_leaves_nothing(kernel, op, op_cases, here, alive):
    """A call without its last tensor fails, as often as one likes; the next right one is right."""
    use = next(uses(op_cases[kernel.op], op, here))
    expected = use.elsewhere().again(use.twin, device="cpu")
    wrong = use.elsewhere()
    arguments, options = _without_the_last(wrong.arguments), dict(wrong.options)
    if "activation" in options:
        arguments, options = wrong.arguments, {"activation": "an activation of next year"}

    def fail() -> None:
        try:
            use.function(*_copied(arguments), **options)
        except Exception:
            return
        pytest.skip("the row does not look at what it is given")

    fail()
    before = alive()
    for _ in range(3):
        fail()
    kept = alive() - before
    assert kept <= 0, f"3 calls that failed left {kept} bytes of tensors behind"
    for ours, theirs in zip(use.again(use.function), expected, strict=True):
        assert Loss.of(ours, theirs).whole < STALE, "after a call that failed, a right one gives something else"


def _without_the_last(value: Any) -> Any:
    """With None in the place of the last tensor."""
    nothing: Any = None
    parts = list(value)
    for i in reversed(range(len(parts))):
        if isinstance(parts[i], Tensor):
            parts[i] = None
            break
        if is_dataclass(parts[i]) or (isinstance(parts[i], list | tuple) and tensors_in(parts[i])):
            inner: Any = parts[i]
            if isinstance(inner, Segment):
                parts[i] = replace(inner, v_BTKD=nothing)
            else:
                parts[i] = _without_the_last(inner)
            break
    return type(value)(parts)


@over("attention", "rms_norm", "norm_rope", "gate", "norm_silu", "patch_embed")
def test_shapes_leave_little(kernel, op, op_cases, here, alive):
    """What every new shape leaves, be it a table, is less than its results."""
    (use, *_) = uses(op_cases[kernel.op], op, here)
    use.again(use.function)
    before, made = alive(), 0
    for less in range(1, 7):
        made += sum(t.nbytes for t in _shorter(use, less).again(use.function))
    kept = alive() - before
    assert kept <= made / 4, f"6 new shapes left {kept:,} bytes of tensors behind; their results were {made:,}"


def _shorter(use: Use, less: int) -> Use:
    """With fewer rows, queries or columns of every input that has as many as the first one."""
    axis = {4: 1, 2: 0, 3: 1}
    first = use.tensors[0]
    count = first.shape[axis[first.dim()]]
    if first.dim() == 4 and use.arguments[0] is first and len(use.arguments) > 3:  # a latent's columns
        cut = {id(first): first[..., :-less].clone()}
    else:
        cut = {
            id(t): t.narrow(axis[t.dim()], 0, count - less).clone()
            for t in use.tensors
            if t.dim() in axis and t.shape[axis[t.dim()]] == count
        }

    def swap(value: Any) -> Any:
        if isinstance(value, Tensor):
            return cut.get(id(value), value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: swap(getattr(value, field.name)) for field in fields(value)})
        return type(value)(swap(part) for part in value) if isinstance(value, list | tuple) else value

    return replace(use, arguments=swap(use.arguments), options={k: swap(v) for k, v in use.options.items()})


@over(*COMPUTE)
def test_nothing_else_grows(kernel, op, job):
    """Arrays, bytes and whatever else Python counts besides tensors."""
    for _ in range(2):
        size = sum(t.nbytes for t in job(op))
    jobs = min(100, max(3, 1 + 2 * HELD // size))
    tracemalloc.start()
    try:
        job(op)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(jobs):
            job(op)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= HELD, f"{jobs} jobs left {after - before:,} bytes that are no tensors behind"
