"""What every row owes to the rest of the program, whatever it computes."""

from __future__ import annotations

import pytest
import torch

from ...checkpoint.tensors import tensor_digest
from ..cases import same_bits
from ..subject import live_bytes, row_id


def test_inputs_are_left_alone(kernel, op, op_cases, job):
    """Of an op whose protocol does not let it overwrite them."""
    if op_cases[kernel.op].overwrites:
        pytest.skip("its protocol allows it")
    kept = []

    def spy(*arguments, **options):
        tensors = _tensors([arguments, *options.values()])
        kept.extend((tensor, tensor.clone()) for tensor in tensors)
        found = op(*arguments, **options)
        return spy_made(found) if op_cases[kernel.op].makes else found

    def spy_made(made):
        def call(*arguments):
            kept.extend((tensor, tensor.clone()) for tensor in arguments)
            return made(*arguments)

        # The weight is the packed form's from now on: only what is multiplied by it has to stay.
        kept.clear()
        return call

    job(spy)
    assert kept and all(torch.equal(now, before) for now, before in kept), "an input was overwritten"


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def test_building_twice_is_harmless(subject, kernel, op, job):
    first = job(op)
    job(kernel.build(subject.device))
    again = job(op)
    for before, after in zip(first, again, strict=True):
        same = (
            torch.equal(before, after) if kernel.deterministic else torch.allclose(before, after, rtol=0.05, atol=0.05)
        )
        assert same, "what the first build gives is not what it gave before the second"


def test_deterministic_rows_are_in_one_process(kernel, op, job, record_property):
    first = job(op)
    same = all(same_bits(first, job(op)) for _ in range(7))
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and a repetition gives other bits"


def test_deterministic_rows_are_across_processes(subject, kernel, op, job, record_property):
    there = subject.watched["rows"][row_id(kernel)]
    assert "digest" in there, f"in a fresh process it raised {there.get('error')}"
    same = there["digest"] == tensor_digest(*job(op))
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and another process gives other bits"


def test_memory_is_returned_after_a_job(kernel, op, job, device):
    """Tables and workspaces of a first job may stay; what comes with every further job may not."""
    for _ in range(2):
        job(op)
    before = live_bytes(device)
    for _ in range(3):
        job(op)
    kept = live_bytes(device) - before
    assert kept <= 0, f"3 jobs left {kept} bytes of tensors behind"


def test_probe_changes_nothing_global(subject, device):
    changed = subject.watched["probe"]
    assert not changed, f"probe() changed {'; '.join(changed)}"


def test_kernels_change_nothing_global(subject, kernel, op):
    """Building and calling, watched in a fresh process: environment, torch's settings, random streams, folders."""
    changed = subject.watched["rows"][row_id(kernel)]["changed"]
    assert not changed, f"building or calling this row changed {'; '.join(changed)}"
