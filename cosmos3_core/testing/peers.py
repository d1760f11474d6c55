"""Run in two processes of its own by the kit: whether a backend's collectives move what they should.

    python -m cosmos3_core.testing.peers NAME ROW STORE RANK

prints a line for each of CHECKS, when it has been tried: that it was right, or what went wrong. The processes meet over
the file STORE.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..contract import Comm, Device
from ..plan.choice import rows
from .subject import TOLD, Subject

PEERS = 2
SECONDS = 60
"""How long a process waits for the other in one call."""
SUMMED = (torch.float32, torch.bfloat16)
MOVED = (*SUMMED, torch.int64, torch.float8_e4m3fn, torch.uint8)


@dataclass(frozen=True)
class Peer:
    """One of the two processes, and what it has."""

    comm: Comm
    rank: int
    device: torch.device
    store: dist.Store

    @property
    def other(self) -> int:
        return 1 - self.rank

    def of(self, rank: int, dtype: torch.dtype, rows: int = 4) -> Tensor:
        """A process's rows: small numbers that every dtype has, no two processes' alike."""
        return (torch.arange(rows * 3).view(rows, 3) % 7 + 8 * rank).to(dtype).to(self.device)

    def mine(self, dtype: torch.dtype, rows: int = 4) -> Tensor:
        return self.of(self.rank, dtype, rows)


def expect(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: the shape is {[*found.shape]}, not {[*expected.shape]}"
    assert found.dtype == expected.dtype, f"{what}: the dtype is {found.dtype}, not {expected.dtype}"
    assert torch.equal(found.float().cpu(), expected.float().cpu()), f"{what} of {found.dtype} is {found.tolist()}"


def all_to_all(peer: Peer) -> None:
    for dtype in MOVED:
        x = peer.mine(dtype)
        found = peer.comm.all_to_all(x).wait()
        half = slice(2 * peer.rank, 2 * peer.rank + 2)
        expect(found, torch.cat([peer.of(rank, dtype)[half] for rank in range(PEERS)]), "all_to_all")
        expect(x, peer.mine(dtype), "what was sent")


def all_to_all_uneven(peer: Peer) -> None:
    """Process 0 keeps one row and sends three, process 1 sends two and keeps none."""
    sent = ((1, 3), (2, 0))
    for dtype in MOVED:
        x = peer.mine(dtype, sum(sent[peer.rank]))
        received = [parts[peer.rank] for parts in sent]
        found = peer.comm.all_to_all(x, sent=sent[peer.rank], received=received).wait()
        parts = [peer.of(rank, dtype, sum(sent[rank])).split(list(sent[rank]))[peer.rank] for rank in range(PEERS)]
        expect(found, torch.cat(parts), "an uneven all_to_all")


def all_gather(peer: Peer) -> None:
    """Two under way at once, each with a result of its own."""
    for dtype in MOVED:
        x, y = peer.mine(dtype), peer.mine(dtype, 2)
        first, second = peer.comm.all_gather(x), peer.comm.all_gather(y)
        found = first.wait(), second.wait()
        for result, count in zip(found, (4, 2), strict=True):
            expect(result, torch.stack([peer.of(rank, dtype, count) for rank in range(PEERS)]), "all_gather")
        expect(x, peer.mine(dtype), "what was gathered")


def reduce_scatter(peer: Peer) -> None:
    for dtype in SUMMED:
        x = torch.stack([peer.mine(dtype) + 4 * part for part in range(PEERS)])
        kept = x.clone()
        found = peer.comm.reduce_scatter(x).wait()
        parts = torch.stack([peer.of(rank, dtype) + 4 * peer.rank for rank in range(PEERS)])
        expect(found, parts.sum(0, dtype=parts.dtype), "reduce_scatter")
        expect(x, kept, "what was summed")


def all_reduce(peer: Peer) -> None:
    """The sum and the maximum, in x's place."""
    for dtype in SUMMED:
        all_of_them = torch.stack([peer.of(rank, dtype).flip(0) * (1 - 2 * rank) for rank in range(PEERS)])
        for op, expected in (("sum", all_of_them.sum(0)), ("max", all_of_them.amax(0))):
            x = all_of_them[peer.rank].clone()
            found = peer.comm.all_reduce(x, op=op).wait()
            assert found is x, f"all_reduce by {op} is not in x's place"
            expect(x, expected, f"all_reduce by {op}")


def broadcast(peer: Peer) -> None:
    for dtype in MOVED:
        for source in range(PEERS):
            x = peer.mine(dtype)
            assert peer.comm.broadcast(x, source).wait() is x, "broadcast is not in x's place"
            expect(x, peer.of(source, dtype), f"broadcast from {source}")


def exchange(peer: Peer) -> None:
    for dtype in MOVED:
        x = peer.mine(dtype)
        found = peer.comm.exchange(x, peer.other, peer.other).wait()
        expect(found, peer.of(peer.other, dtype), "exchange")
        expect(x, peer.mine(dtype), "what was sent")


def fresh(peer: Peer) -> None:
    """No later call writes to what an earlier one returned, where that is not x."""
    float32 = torch.float32
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "all_to_all": lambda x: peer.comm.all_to_all(x).wait(),
        "all_gather": lambda x: peer.comm.all_gather(x).wait(),
        "reduce_scatter": lambda x: peer.comm.reduce_scatter(x).wait(),
        "exchange": lambda x: peer.comm.exchange(x, peer.other, peer.other).wait(),
    }
    for what, call in calls.items():
        first = call(peer.mine(float32, PEERS))
        kept = first.clone()
        call(-1 - peer.mine(float32, PEERS))
        expect(first, kept, f"{what}, after another one, the first result")


def group(peer: Peer) -> None:
    """In a group, processes are counted from its first: process 1 is number 0 of a group of its own."""
    groups = [dist.new_group([rank]) for rank in range(PEERS)]
    x = peer.mine(torch.float32)
    mine = groups[peer.rank]
    expect(peer.comm.broadcast(x, 0, mine).wait(), peer.mine(torch.float32), "broadcast in a group of one")
    expect(peer.comm.all_gather(x, mine).wait(), peer.mine(torch.float32)[None], "all_gather in a group of one")
    expect(peer.comm.all_reduce(x, mine).wait(), peer.mine(torch.float32), "all_reduce in a group of one")


def barrier(peer: Peer) -> None:
    """Nobody leaves it before all are there."""
    if peer.rank == 1:
        time.sleep(0.3)
        peer.store.set("at the barrier", "yes")
    peer.comm.barrier()
    assert peer.store.check(["at the barrier"]), "it was left before the other process had come"


CHECKS: dict[str, Callable[[Peer], None]] = {
    check.__name__: check
    for check in (
        all_to_all,
        all_to_all_uneven,
        all_gather,
        reduce_scatter,
        all_reduce,
        broadcast,
        exchange,
        fresh,
        group,
        barrier,
    )
}


def meet(name: str, row: str, file: str, rank: int) -> None:
    """Take part in all checks as process `rank`."""
    subject = Subject(name)
    backend, found = subject.backend, subject.device
    if not isinstance(found, Device):
        raise RuntimeError(found)
    kernel = next(kernel for kernel in rows(backend, "comm") if kernel.name == row)
    several = found.count >= PEERS
    device = torch.device(backend.torch_device, rank) if several else torch.device(backend.torch_device)
    store = dist.FileStore(file, PEERS)
    dist.init_process_group(
        backend.collectives,
        store=store,
        rank=rank,
        world_size=PEERS,
        timeout=timedelta(seconds=SECONDS),
        device_id=device if several else None,
    )
    peer = Peer(kernel.build(found), rank, device, store)
    for what, check in CHECKS.items():
        try:
            check(peer)
            told = "right"
        except Exception as error:  # the other checks go on, where the other process does
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{what}{TOLD}{told}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with torch.inference_mode():
        name, row, file, rank = sys.argv[1:]
        meet(name, row, file, int(rank))
