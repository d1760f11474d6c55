"""The device's memory: what is counted, and the way between it and the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ... import contract
from ...contract import Bytes, Unavailable
from ...reference.memory import whole
from ..cases import Here, OpCase, normal
from ..returns import returned, unlike
from .marks import over

LARGE = 64 << 20
"""Bytes of a tensor that shows in any count."""


def _there_and_back(op: contract.Memory, x: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """(x on the device, x on the host again), through tensors that the row has pinned."""
    host, there = (op.pinned(x.shape, x.dtype, device) for _ in range(2))
    host.copy_(x)
    on_device = op.copy(torch.empty_like(x, device=device), host).wait()
    return on_device, op.copy(there, on_device).wait()


def _use(op: contract.Memory, here: Here) -> list[Tensor]:
    return [*_there_and_back(op, normal(33, 64, seed=1).to(getattr(torch, here.dtype)), torch.device(here.device))]


MEMORY = OpCase(op="memory", protocol=contract.Memory, use=_use)


@over("memory")
@pytest.mark.parametrize("moving", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_memory_copies_arrive(kernel, op, place, moving):
    """Both ways, once they have been waited for; the result of a copy is its target."""
    x = (50 * normal(1000, 513, seed=1)).abs().to(moving)
    on_device, back = _there_and_back(op, x, place)
    assert on_device.device.type == place.type and back.is_cpu, "a copy's result is not its target"
    for found in (on_device.cpu(), back):
        assert torch.equal(found.view(torch.uint8), x.view(torch.uint8)), "not what was copied has arrived"
    across = op.copy(torch.zeros_like(x.T), on_device.T).wait()
    assert torch.equal(across.float(), x.T.float()), "a view has not arrived as it is"
    target = torch.zeros_like(x)
    assert op.copy(target, on_device).wait() is target, "a copy's result is not its target"


@over("memory")
def test_memory_copies_come_after_earlier_work(kernel, op, place):
    """What the device was given before is in the copy, and what it is given afterwards is not in the source."""
    x = torch.ones(512, 512, device=place)
    for _ in range(50):
        x = x @ torch.full_like(x, 1 / 512)
    started = op.copy(op.pinned(x.shape, x.dtype, place), x)
    assert bool((started.wait() - 1).abs().max() < 1e-3), "the copy holds what was there before the device's work"
    host = op.pinned(x.shape, x.dtype, place)
    host.fill_(3)
    on_device = op.copy(x, host).wait()
    host.fill_(4)
    assert float(on_device.sum()) == 3 * x.numel(), "what the host wrote after the wait is in the copy"


@over("memory")
def test_memory_fetches_beside_other_work(kernel, op, place):
    """What the device was given before reads what was there, and what it is given after `wait` what has arrived; also
    in a part of a target, of which nothing else is written."""
    fetch, target = whole(op).fetch, torch.full((4, 512, 512), 2.0, device=place)
    x, host = torch.ones(512, 512, device=place), op.pinned((512, 512), torch.float32, place)
    host.fill_(3)
    for _ in range(20):
        x = x @ torch.full_like(x, 1 / 512)
    before = target * x
    begun = fetch(target[1], host)
    arrived = begun.wait()
    after = target * x
    assert float((before - 2).abs().max()) < 1e-2, "it was written while earlier work still read it"
    assert float((arrived - 3).abs().max()) < 1e-2, "what was fetched is not the result"
    assert [round(float(part.mean())) for part in after] == [2, 3, 2, 2], "later work has not seen what was fetched"


@over("memory")
def test_memory_pins_what_the_host_can_write(kernel, op, place):
    for shape, dtype in (((3, 5), torch.bfloat16), ((0,), torch.float32), ((4,), torch.uint8)):
        host = op.pinned(shape, dtype, place)
        assert host.is_cpu and host.is_contiguous(), "a pinned tensor is dense and on the host"
        assert (tuple(host.shape), host.dtype) == (shape, dtype), f"asked for {dtype} {shape}, got {host.dtype}"
        assert bool((host.fill_(1).float() == 1).all())


@over("memory")
def test_memory_counts_what_tensors_take(kernel, op, place):
    """In `used` and `peak`: with a tensor more, without it less. None where it is not counted, and then always."""

    def seen() -> tuple[Bytes, Bytes]:
        return op.used(place), op.peak(place)

    op.empty(place)
    op.peak(place, reset=True)
    before, _ = seen()
    x = torch.ones(LARGE, dtype=torch.uint8, device=place)
    during = seen()
    del x
    after = seen()
    op.empty(place)
    told = op.peak(place, reset=True)
    emptied, reset = seen()
    for name in Bytes._fields:
        least, now, most, freed, high, last, final, low = (
            getattr(found, name) for found in (before, *during, *after, told, emptied, reset)
        )
        if least is None or now is None:
            assert {least, now, freed, final} == {None}, f"{name} bytes are counted at times only"
            counted = [peak for peak in (most, high, last) if peak is not None]
            assert min(counted, default=LARGE) >= LARGE, (
                f"{name}: a peak of {min(counted)} bytes, and a tensor took {LARGE}"
            )
            continue
        # An allocator takes and gives back whole pages, of which a tensor may share its first and its last with others.
        share = LARGE if name == "allocated" else LARGE // 2
        assert now >= least + share, f"{name}: {now} bytes are used with a tensor of {LARGE}, {least} without"
        assert final <= now - share, (
            f"{name}: {final} bytes are used when it is gone and the rest is given back, {now} with it, {least} before"
        )
        if most is not None:
            assert most >= now and high >= now and last >= now, f"{name}: at most {high} bytes, and {now} were used"
            assert low <= high - share, f"{name}: the peak is {low} after a reset"
    for found in (*during, *after):
        used, held = found
        assert used is None or held is None or held >= used, f"{found}: more is used than is held"


@over("memory")
def test_memory_free_is_part_of_the_total(kernel, op, place):
    """Less of it, by what a tensor takes."""
    held = torch.ones(LARGE, dtype=torch.uint8, device=place)
    free, total = op.free(place), op.total(place)
    assert type(free) is int and type(total) is int, f"free is {free!r}, total is {total!r}; both are bytes"
    assert 0 < free <= total, f"{free} bytes are free of {total}"
    assert free <= total - held.nbytes, f"{free} bytes are free of {total}, and a tensor takes {held.nbytes} of them"


@over("memory")
def test_memory_answers_as_its_protocol_says(kernel, op, place):
    """In bytes, tensors and nothing, by method."""
    x = normal(3, 5, seed=1)
    calls: dict[str, tuple] = dict.fromkeys(("free", "total", "used", "peak", "empty", "synchronize"), (place,))
    calls |= {"pinned": ((3, 5), torch.float32, place), "copy": (torch.empty(3, 5, device=place), x)}
    for name, given in calls.items():
        found = getattr(op, name)(*given)
        if wrong := unlike(found, returned(getattr(contract.Memory, name))):
            pytest.fail(f"Memory.{name} returns {wrong}", pytrace=False)
        if name == "copy" and (wrong := unlike(found.wait(), Tensor)):
            pytest.fail(f"Memory.copy(...).wait() returns {wrong}", pytrace=False)


@over("memory")
def test_memory_counts_in_bytes(subject, kernel, op, place):
    """`total` is about what the probe found, and what can be allocated was free."""
    total, found = op.total(place), subject.device.memory
    assert found / 64 < total < 64 * found, f"{total} bytes are there, and the probe found {found}"
    op.empty(place)
    free = op.free(place)
    held = torch.ones(LARGE, dtype=torch.uint8, device=place)
    assert free >= held.nbytes, f"{free} bytes were free, and {held.nbytes} are allocated"


@over("memory")
def test_memory_gives_back_what_nothing_uses(kernel, op, place):
    """And nothing that a tensor uses."""
    kept, idle = (torch.full((LARGE // 4,), float(n), device=place) for n in (1, 2))
    del idle
    held = op.used(place).reserved
    op.empty(place)
    op.synchronize(place)
    now = op.used(place).reserved
    assert held is None or now <= held, f"{now} bytes are held after empty(), {held} before"
    assert bool((kept == 1).all()), "a tensor has lost its contents"


@over("memory")
def test_memory_is_limited_or_says_that_it_cannot_be(kernel, op, place):
    total = op.total(place)
    limit = (op.used(place).reserved or 0) + 2 * LARGE
    try:
        op.limit(place, limit)
    except Unavailable as reason:
        assert len(str(reason).split()) > 2, f"Unavailable({str(reason)!r}) is no sentence a user can act on"
        return
    try:
        try:
            torch.empty(limit + LARGE, dtype=torch.uint8, device=place)
            pytest.fail(f"{limit + LARGE} bytes were allocated, and limit() was given {limit}", pytrace=False)
        except torch.OutOfMemoryError:
            pass
        assert torch.ones(3, device=place).sum() == 3, "nothing can be allocated within the limit"
    finally:
        op.limit(place, total)
