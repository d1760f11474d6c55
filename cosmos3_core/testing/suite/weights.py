"""What is made of weights names the tensors that it holds, so that whoever moves them need not pack anew."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from ... import contract
from ...quant import bytes_per_weight
from ..cases import same_bits
from ..returns import returned, unlike
from .marks import over

MAKERS = ("pack_linear", "project", "finish")
BLOCK, MARGIN, UNSPLIT = 512, 32, 1 << 20
"""Bytes. Allocators hand out whole blocks, some of them with a margin behind every tensor; torch's leaves a block whole
that has up to UNSPLIT to spare for a tensor of that size or more. Where the device's memory counts nothing, tensors
themselves are counted, to the byte."""

SPARE, EXTRA = 1.25, 8 << 10
"""What may come on top of a format's own bytes: a share for padding, and bytes for norms, biases and tables."""

BESIDE = 64 << 10
"""Bytes of Python's, besides tensors, that may come with what was made: less than the numbers of a weight in 8 bits."""


def unsplit(size: float) -> int:
    """What may be counted with a tensor of so many bytes."""
    return UNSPLIT if size >= UNSPLIT else 0


def _named(made) -> dict[str, torch.Tensor]:
    held = made.thing.tensors()
    if held is None:
        pytest.skip("it says that it cannot be moved")
    wrong = unlike(held, returned(contract.Linear.tensors))
    assert not wrong, f"tensors() returns {wrong}"
    assert held, "tensors() names none"
    return held


@over(*MAKERS)
def test_tensors_can_be_moved(kernel, dtype, format, op, made):
    """Other storage behind each of them, with the same contents: the results stay as they are."""
    held, before = _named(made), [t.clone() for t in made.call()]
    for tensor in held.values():
        moved, tensor.data = tensor.data.clone(), torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.data = moved
    same = same_bits(made.call(), before)
    assert same or not kernel.deterministic, "other storage with the same contents is not read"


@over(*MAKERS)
def test_tensors_are_what_a_call_reads(kernel, dtype, format, op, made):
    """Zeros behind any of them change the results."""
    for name, tensor in _named(made).items():
        before, kept = [t.clone() for t in made.call()], tensor.data
        tensor.data = torch.zeros_like(kept)
        unread = same_bits(made.call(), before)
        tensor.data = kept
        assert not unread, f"{name} is named, and a call does not read it"


@over(*MAKERS)
def test_tensors_are_all_that_is_held(subject, kernel, dtype, format, op, op_cases, here, alive):
    """Nothing else stays on the device with what was made: it would be left behind."""
    make = op_cases[kernel.op].make
    make(op, here, format).call()  # tables and workspaces of the first one may stay
    before = alive()
    made = make(op, here, format)
    made.call()
    held, kept = _named(made), alive() - before
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held.values()}
    blocks = subject.memory.used(torch.device(here.device)).allocated is not None
    named = sum(-(-(size + MARGIN) // BLOCK) * BLOCK + unsplit(size) if blocks else size for size in storages.values())
    assert kept <= named, f"{kept} bytes are held, and {named} are named"


@over(*MAKERS)
def test_weights_take_what_their_format_says(subject, kernel, dtype, format, op, op_cases, here, alive):
    """Bytes, named or not: a weight in 8 bits that is kept in 16 as well, or instead, saves nothing."""
    case = op_cases[kernel.op]
    case.make(op, here, format).call()  # tables and workspaces of the first one may stay
    before = alive()
    tracemalloc.start()
    try:
        made = case.make(op, here, format)
        made.call()
        beside, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = alive() - before
    size, meaning = getattr(torch, dtype).itemsize, here.meaning(format)
    matrices = [
        out * width * (size if meaning is None else bytes_per_weight(meaning, width)) for out, width in case.matrices
    ]
    asked, blocks = sum(matrices), subject.memory.used(torch.device(here.device)).allocated is not None
    bound = SPARE * asked + EXTRA + (sum(map(unsplit, matrices)) if blocks else 0)
    what = f"weights of {dtype}" if format == "none" else f"weights in {format}"
    assert kept <= bound, f"{kept:,} bytes are held, and {what} take {asked:,.0f}: is the full weight kept?"
    assert beside <= BESIDE, f"{beside:,} bytes are held that are no tensors: is the weight kept as an array?"
