"""What many requests leave in memory."""

from __future__ import annotations

import gc
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED, DISK, RESIDENT, STREAMED, Placement
from cosmos3_core.settle import Wish, ground_of, settle

SETTLED = 300
"""Requests after which caches of allocators and libraries are as large as they get."""
LEFT = 16 << 20


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def tensors() -> int:
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize(
    ("placement", "count"),
    [
        (ALL_RESIDENT, 10_000),
        (Placement(STREAMED, STREAMED, RESIDENT), 10_000),
        (Placement(DISK, DISK, RESIDENT), 10_000),
        (ALL_STAGED, 1_000),  # which loads everything for each
    ],
    ids=str,
)
def test_requests_of_alternating_sizes_leave_memory_where_it_was(placement, count):
    """Prompts change, too, so that what is kept is turned over. Some 13 minutes of one core."""
    wish = {"model": TINY_MODEL, "backend": "reference"}
    ground = ground_of(Wish(**wish))
    running = Engine(open_model(TINY_MODEL), ground.plan, placement=placement)
    given = {"task": "t2i", "steps": 1, "guidance": 1.0, "seed": 1}
    requests = [
        settle(Wish(**wish, given=given | {"size": size, "prompt": text}), ground=ground).request
        for size in ("64x64", "96x64", "128x64")
        for text in ("a cup", "a red ball " * 20)
    ]
    before = 0, 0
    for number in range(count):
        if number == SETTLED:
            before = resident(), tensors()
        state = running.step(running.start(requests[number % len(requests)]))
        list(islice(running.finish(state), 1))
    assert tensors() <= before[1]
    assert resident() < before[0] + LEFT
