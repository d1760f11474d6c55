"""Functions that are recorded and replayed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ... import contract
from ..cases import Here, Loss, Made, OpCase, normal
from .marks import over
from .memory import LARGE


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


def _make(op: contract.Capture, here: Here, format: str) -> Made:
    step = Step.of(here.dtype, here.device)
    captured = op(step)
    return Made(captured, lambda: [t.clone() for seed in range(4) for t in captured(*step.input(seed))])


CAPTURE = OpCase(op="capture", protocol=contract.Capture, make=_make)


def _same(found, expected) -> bool:
    """Up to what another choice of matrix kernel may change."""
    return all(Loss.of(a, b.cpu()).whole < 0.02 for a, b in zip(found, expected, strict=True))


@over("capture")
def test_capture_follows_its_inputs(kernel, dtype, op, device):
    """New tensors in each call, then the same tensors with other contents, then what the last call returned."""
    step = Step.of(dtype, device)
    captured = op(step)
    for seed in range(5):
        given = step.input(seed)
        assert _same(captured(*given), step(*given)), f"call {seed + 1} does not give what the function gives"
    for _ in range(2):
        given[0].mul_(-1)
        assert _same(captured(*given), step(*given)), "inputs changed in place are not seen"
    ours, theirs = given, given
    for _ in range(2):
        ours, theirs = captured(*ours), step(*theirs)
    assert _same(ours, theirs), "results do not serve as inputs"


@over("capture")
def test_captures_are_apart(kernel, dtype, op, device):
    """Two functions with inputs of the same shapes, called by turns: the same kernels with other weights."""
    steps = [Step.of(dtype, device, seed) for seed in (1, 2)]
    captured = [op(step) for step in steps]
    for seed in range(4):
        found = [ours(*step.input(seed)) for ours, step in zip(captured, steps, strict=True)]
        for ours, step in zip(found, steps, strict=True):
            assert _same(ours, step(*step.input(seed))), "a captured function gives what another should"


@over("capture")
def test_capture_results_are_fresh(kernel, dtype, op, device):
    """Each call's, unless the row says that the next call overwrites them."""
    if not kernel.fresh:
        pytest.skip("the row declares fresh=False")
    step = Step.of(dtype, device)
    captured = op(step)
    found = [(seed, captured(*step.input(seed))) for seed in range(4)]
    for seed, results in found:
        assert _same(results, step(*step.input(seed))), "a later call has written to an earlier result"


@over("capture")
@pytest.mark.parametrize("run", [1, 2])
def test_capture_raises_what_its_function_raises(kernel, dtype, op, device, run):
    """Whenever it runs the function, for the first time or to record it; what is captured after that works."""
    step, runs = Step.of(dtype, device), 0

    def fails(x, y):
        nonlocal runs
        results, runs = step(x, y), runs + 1
        if runs == run:
            raise LookupError("on purpose")
        return results

    captured, raised = op(fails), []
    for seed in range(3):
        try:
            captured(*step.input(seed))
        except Exception as error:
            raised.append(error)
    expected = [LookupError] if runs >= run else []
    assert [type(error) for error in raised] == expected, f"the function raised {expected}, the callable {raised}"
    captured = op(step)
    for seed in range(3):
        assert _same(captured(*step.input(seed)), step(*step.input(seed))), "nothing can be captured after a failure"


@over("capture")
def test_capture_gives_its_memory_back(kernel, dtype, op, device, alive):
    """All of it, with the callable: whoever captures anew for every request must not run out."""

    step = Step.of(dtype, device)

    def use(calls: int) -> None:
        captured = op(step)
        for seed in range(calls):
            captured(*step.input(seed))

    use(3)
    before = alive()
    for calls in (1, 2, 4):
        use(calls)
        kept = alive() - before
        assert kept <= 0, f"{kept} bytes outlive a callable that was called {calls} times"


@over("capture")
def test_capture_that_cannot_be_recorded_leaves_memory_alone(subject, kernel, dtype, op, device):
    """Of a function that waits for the device, as no recording can: it raises or computes, and what is free then can be
    given back as before."""
    step, memory, place = Step.of(dtype, device), subject.memory, torch.device(device)

    def waits(x: Tensor, y: Tensor) -> list[Tensor]:
        return [result * float(result.isfinite().any()) for result in step(x, y)]

    captured = op(waits)
    for seed in range(3):
        try:
            found = captured(*step.input(seed))
        except Exception:
            continue
        assert _same(found, step(*step.input(seed))), "a function that waits for the device computes something else"
    held = torch.ones(LARGE, dtype=torch.uint8, device=device)
    most = memory.used(place).reserved
    del held
    memory.empty(place)
    left = memory.used(place).reserved
    assert most is None or left <= most - LARGE // 2, (
        f"after a recording that failed empty() gives nothing back: {left} bytes are reserved, {most} with {LARGE} more"
    )
