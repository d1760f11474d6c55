"""What every row owes to the rest of the program, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ...checkpoint.tensors import tensor_digest
from ..cases import OpCase, same_bits, tensors_in
from ..returns import returned, unlike
from ..subject import FORK_SECONDS, row_id

SLOW_SECONDS = 4
"""What probing may take, and importing a plugin: on a busy machine both take a tenth of it."""
POISON = 77
"""What no op gives everywhere."""
REPEATED = 9
"""After which a ring of up to eight results has come around."""


def _watched(case: OpCase, op: Any, before: Callable[[Any], None], after: Callable[[Any, Any], None]) -> Any:
    """The op with `before(arguments)` and `after(result, annotation)` around each of its calls, where it makes
    something around each call of that. The weights are the packed form's: only what is given to that has to stay."""
    made = case.make is not None
    annotation = returned(case.protocol.__call__)

    def call_of(function: Any, annotation: Any) -> Any:
        def call(*arguments, **options):
            before([*arguments, *options.values()])
            result = function(*arguments, **options)
            after(result, annotation)
            return result

        return call

    if not made:
        return call_of(op, annotation)
    inner = get_args(annotation)[1] if case.makes is None else returned(case.makes.__call__)

    def make(*arguments, **options):
        thing = op(*arguments, **options)
        after(thing, annotation)
        return call_of(thing, inner)

    return make


def test_results_are_what_the_protocol_says(kernel, op, op_cases, job, here):
    """Tensors on the device, in the containers that the protocol names."""
    if not callable(op):
        pytest.skip("its own tests look at what its methods return")

    def look(result: Any, annotation: Any) -> None:
        if wrong := unlike(result, annotation):
            pytest.fail(f"{row_id(kernel)} returns {wrong}: see {op_cases[kernel.op].protocol.__name__}", pytrace=False)
        for tensor in tensors_in(result):
            if tensor.device.type != torch.device(here.device).type:
                found = f"a tensor on {tensor.device}, and its inputs are on {here.device}"
                pytest.fail(f"{row_id(kernel)} returns {found}", pytrace=False)

    job(_watched(op_cases[kernel.op], op, lambda arguments: None, look))


def test_inputs_are_left_alone(kernel, dtype, op, op_cases, job):
    """But those that the protocol lets a row overwrite. What lies around a view is nobody's to write to, either."""
    case = op_cases[kernel.op]
    if case.overwrites == (0,) and case.make is None:
        pytest.skip("its protocol allows it")
    if not callable(op):
        pytest.skip("its own tests look at what its methods are given")
    kept: list[tuple[Tensor, Tensor]] = []
    around: list[tuple[Tensor, Tensor]] = []
    lists: list[tuple[list, list]] = []

    def keep(arguments):
        given = [argument for i, argument in enumerate(arguments) if i not in case.overwrites]
        written = {t.untyped_storage().data_ptr() for i in case.overwrites for t in tensors_in(arguments[i : i + 1])}
        kept.extend((tensor, tensor.clone()) for tensor in tensors_in(given))
        wholes = [_whole(t) for t in tensors_in(given) if t.untyped_storage().data_ptr() not in written]
        around.extend((whole, whole.clone()) for whole in wholes)
        lists.extend((argument, [*argument]) for argument in given if isinstance(argument, list))

    job(_watched(case, op, keep, lambda result, annotation: None))
    assert kept
    changed = [list(now.shape) for now, before in kept if not torch.equal(now, before)]
    assert not changed, f"an input was overwritten, shape {changed[0]}"
    assert same_bits(*([pair[i] for pair in around] for i in (0, 1))), (
        "what lies around an input, which is a view, was overwritten"
    )
    same = all([*map(id, now)] == [*map(id, before)] for now, before in lists)
    assert same, "a list among the inputs has other elements than before"


def _whole(tensor: Tensor) -> Tensor:
    """The bytes that a tensor lies in, those around a view among them."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def test_results_are_fresh(kernel, op, op_cases, job, here):
    """No later call writes to what an earlier one returned, nor is it read again."""
    if not kernel.fresh:
        pytest.skip("the row declares fresh=False")
    call = op_cases[kernel.op].calls(op, here)
    first = call()
    expected = [result.clone() for result in first]
    for result in first:
        result.fill_(POISON)
    again = call()
    for _ in range(REPEATED):
        call()
    assert all(bool((result == POISON).all()) for result in first), "a later call has written to an earlier result"
    if kernel.deterministic:
        assert same_bits(again, expected), "a call reads what the caller did to an earlier result"


def test_building_twice_is_harmless(subject, kernel, op, job):
    first = job(op)
    job(kernel.build(subject.device))
    again = job(op)
    for before, after in zip(first, again, strict=True):
        same = (
            torch.equal(before, after) if kernel.deterministic else torch.allclose(before, after, rtol=0.05, atol=0.05)
        )
        assert same, "what the first build gives is not what it gave before the second"


def test_rows_serve_a_second_device(subject, kernel, op_cases, here):
    """Built once for each of two devices, while that is the current one, a row gives the same results there, on the
    device of its inputs."""
    case = op_cases[kernel.op]
    if subject.present.count < 2:
        pytest.skip("it takes two devices, and there is one")
    if case.use is None and case.make is None:
        pytest.skip("it takes more than one process; its own tests use it")
    if not here.formats:
        pytest.skip(subject.why_not(kernel, here.dtype))
    found, devices = [], [torch.device(here.device, index) for index in (0, 1)]
    for device in devices:
        with torch.inference_mode(), _current(device):
            found.append(case.job(kernel.build(subject.present), replace(here, device=str(device))))
    for ours, device in zip(found, devices, strict=True):
        strange = [t.device for t in ours if t.device != device and not t.is_cpu]
        assert not strange, f"inputs are on {device}, and a result is on {strange[0]}"
    for first, second in zip(*found, strict=True):
        first, second = first.cpu(), second.cpu()
        near = torch.equal(first, second) or torch.allclose(first.float(), second.float(), rtol=0.05, atol=0.05)
        assert near, "the second device gives other results than the first"


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """With this as torch's current device, where torch knows a current one of its type."""
    with ExitStack() as stack:
        found = torch.accelerator.current_accelerator()
        if found is not None and found.type == device.type:
            with suppress(NotImplementedError):
                stack.enter_context(torch.accelerator.device_index(device.index))
        yield


def test_deterministic_rows_are_in_one_process(kernel, op, job, record_property):
    first = job(op)
    same = all(same_bits(first, job(op)) for _ in range(7))
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and a repetition gives other bits"


def test_deterministic_rows_are_across_processes(subject, kernel, op, job, record_property):
    first, there = job(op), subject.watched["rows"][row_id(kernel)]
    assert "digest" in there, f"in a fresh process it raised {there.get('error')}"
    same = there["digest"] == tensor_digest(*first)
    record_property("bit_equal", same)
    assert same or not kernel.deterministic, "declared deterministic, and another process gives other bits"


def test_memory_is_returned_after_a_job(kernel, op, job, alive):
    """Tables and workspaces of a first job may stay; what comes with every further job may not."""
    for _ in range(2):
        job(op)
    before = alive()
    for _ in range(3):
        job(op)
    kept = alive() - before
    assert kept <= 0, f"3 jobs left {kept} bytes of tensors behind"


def test_probe_changes_nothing_global(subject, device):
    changed = subject.watched["probe"]
    assert not changed, f"probe() changed {'; '.join(changed)}"


def test_a_fork_after_the_probe_ends(subject, device):
    """A process that is forked when the device has been looked for computes on the host and ends: no lock that the
    probe took, and nothing that it has registered for forks, holds it."""
    assert subject.watched["fork"], f"a process that was forked after probe() has not ended within {FORK_SECONDS} s"


def test_probe_takes_little_time(subject, device):
    """Once torch is there and the driver awake: every command of the program probes."""
    seconds = subject.watched["probe_seconds"]
    assert seconds <= SLOW_SECONDS, f"probe() takes {seconds:.1f} seconds the second time, bound {SLOW_SECONDS}"


def test_kernels_change_nothing_global(subject, kernel, op):
    """Building and calling, watched in a fresh process: environment, torch's and Python's settings, random streams,
    signals, threads, warnings, logging, folders, and what is printed."""
    changed = subject.watched["rows"][row_id(kernel)]["changed"]
    assert not changed, f"building or calling this row changed {'; '.join(changed)}"
