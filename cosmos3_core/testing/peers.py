"""Run in processes of its own by the kit: whether a backend's collectives move what they should.

    python -m cosmos3_core.testing.peers NAME ROW FOLDER COUNT

starts COUNT processes. Each writes a line for each of CHECKS to FOLDER/RANK.out, when it has been tried: that it was
right, or what went wrong. They meet over a file in FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..contract import Comm, Device
from ..plan.choice import rows
from .subject import TOLD, Subject

SECONDS = 60
"""How long a process waits for the others in one call."""
SENT = ((1, 3, 0, 2), (2, 0, 1, 1), (4, 1, 2, 0), (0, 2, 3, 1))
"""Rows that each process sends to each, where parts are not equal."""
SUMMED = (torch.float32, torch.bfloat16)
MOVED = (*SUMMED, torch.int64, torch.float8_e4m3fn, torch.uint8)


@dataclass(frozen=True)
class Peer:
    """One of the processes, of which there are `count`, and what it has."""

    comm: Comm
    rank: int
    count: int
    device: torch.device
    store: dist.Store

    @property
    def everyone(self) -> range:
        return range(self.count)

    @property
    def after(self) -> int:
        """The next process of the ring."""
        return (self.rank + 1) % self.count

    @property
    def before(self) -> int:
        return (self.rank - 1) % self.count

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
    rows = 2 * peer.count
    for dtype in MOVED:
        x = peer.mine(dtype, rows)
        found = peer.comm.all_to_all(x).wait()
        mine = slice(2 * peer.rank, 2 * peer.rank + 2)
        expect(found, torch.cat([peer.of(rank, dtype, rows)[mine] for rank in peer.everyone]), "all_to_all")
        expect(x, peer.mine(dtype, rows), "what was sent")


def all_to_all_uneven(peer: Peer) -> None:
    """Process 0 keeps one row and sends three to the next, which sends two back and keeps none."""
    sent = [parts[: peer.count] for parts in SENT[: peer.count]]
    for dtype in MOVED:
        x = peer.mine(dtype, sum(sent[peer.rank]))
        received = [parts[peer.rank] for parts in sent]
        found = peer.comm.all_to_all(x, sent=sent[peer.rank], received=received).wait()
        parts = [peer.of(rank, dtype, sum(sent[rank])).split(list(sent[rank]))[peer.rank] for rank in peer.everyone]
        expect(found, torch.cat(parts), "an uneven all_to_all")


def all_gather(peer: Peer) -> None:
    """Two under way at once, each with a result of its own."""
    for dtype in MOVED:
        x, y = peer.mine(dtype), peer.mine(dtype, 2)
        first, second = peer.comm.all_gather(x), peer.comm.all_gather(y)
        found = first.wait(), second.wait()
        for result, count in zip(found, (4, 2), strict=True):
            expect(result, torch.stack([peer.of(rank, dtype, count) for rank in peer.everyone]), "all_gather")
        expect(x, peer.mine(dtype), "what was gathered")


def reduce_scatter(peer: Peer) -> None:
    for dtype in SUMMED:
        x = torch.stack([peer.mine(dtype) + 4 * part for part in peer.everyone])
        kept = x.clone()
        found = peer.comm.reduce_scatter(x).wait()
        parts = torch.stack([peer.of(rank, dtype) + 4 * peer.rank for rank in peer.everyone])
        expect(found, parts.sum(0, dtype=parts.dtype), "reduce_scatter")
        expect(x, kept, "what was summed")


def all_reduce(peer: Peer) -> None:
    """The sum and the maximum, in x's place."""
    for dtype in SUMMED:
        all_of_them = torch.stack([peer.of(rank, dtype).flip(0) * (1 - 2 * rank) for rank in peer.everyone])
        for op, expected in (("sum", all_of_them.sum(0)), ("max", all_of_them.amax(0))):
            x = all_of_them[peer.rank].clone()
            found = peer.comm.all_reduce(x, op=op).wait()
            assert found is x, f"all_reduce by {op} is not in x's place"
            expect(x, expected, f"all_reduce by {op}")


def broadcast(peer: Peer) -> None:
    for dtype in MOVED:
        for source in peer.everyone:
            x = peer.mine(dtype)
            assert peer.comm.broadcast(x, source).wait() is x, "broadcast is not in x's place"
            expect(x, peer.of(source, dtype), f"broadcast from {source}")


def exchange(peer: Peer) -> None:
    """Around the ring. Between two processes the next one is the one before, too: it takes three to tell them apart."""
    for dtype in MOVED:
        x = peer.mine(dtype)
        found = peer.comm.exchange(x, peer.after, peer.before).wait()
        expect(found, peer.of(peer.before, dtype), f"x is for process {peer.after}; exchange from {peer.before}")
        expect(x, peer.mine(dtype), "what was sent")


def fresh(peer: Peer) -> None:
    """No later call writes to what an earlier one returned, where that is not x."""
    float32 = torch.float32
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "all_to_all": lambda x: peer.comm.all_to_all(x).wait(),
        "all_gather": lambda x: peer.comm.all_gather(x).wait(),
        "reduce_scatter": lambda x: peer.comm.reduce_scatter(x).wait(),
        "exchange": lambda x: peer.comm.exchange(x, peer.after, peer.before).wait(),
    }
    for what, call in calls.items():
        first = call(peer.mine(float32, peer.count))
        kept = first.clone()
        call(-1 - peer.mine(float32, peer.count))
        expect(first, kept, f"{what}, after another one, the first result")


def group(peer: Peer) -> None:
    """In a group, processes are counted from its first: process 1 is number 0 of a group of its own, and the last is
    number 1 of a pair, of four processes with the second."""
    groups = [dist.new_group([rank]) for rank in peer.everyone]
    pair = dist.new_group(members := [peer.count // 2 - 1, peer.count - 1])
    x = peer.mine(torch.float32)
    mine = groups[peer.rank]
    expect(peer.comm.broadcast(x, 0, mine).wait(), peer.mine(torch.float32), "broadcast in a group of one")
    expect(peer.comm.all_gather(x, mine).wait(), peer.mine(torch.float32)[None], "all_gather in a group of one")
    expect(peer.comm.all_reduce(x, mine).wait(), peer.mine(torch.float32), "all_reduce in a group of one")
    if peer.rank in members:
        _in_a_pair(peer, pair, members)


def _in_a_pair(peer: Peer, pair: dist.ProcessGroup, members: list[int]) -> None:
    """Every call of a group of two, by the processes of which it consists."""
    where, number = f"in a group of processes {members}", members.index(peer.rank)
    both = torch.stack([peer.of(rank, torch.float32) for rank in members])
    halves = both.unflatten(1, (2, -1))
    for source in (0, 1):
        found = peer.comm.broadcast(both[number].clone(), source, pair).wait()
        expect(found, both[source], f"broadcast from {source} {where}")
    expect(peer.comm.all_gather(both[number].clone(), pair).wait(), both, f"all_gather {where}")
    expect(peer.comm.all_reduce(both[number].clone(), pair).wait(), both.sum(0), f"all_reduce {where}")
    found = peer.comm.reduce_scatter(halves[number].contiguous(), pair).wait()
    expect(found, halves.sum(0)[number], f"reduce_scatter {where}")
    found = peer.comm.all_to_all(both[number].clone(), pair).wait()
    expect(found, halves[:, number].flatten(0, 1), f"all_to_all {where}")
    found = peer.comm.exchange(both[number].clone(), 1 - number, 1 - number, pair).wait()
    expect(found, both[1 - number], f"exchange {where}")
    peer.comm.barrier(pair)


def barrier(peer: Peer) -> None:
    """Nobody leaves it before all are there."""
    if peer.rank == 1:
        time.sleep(0.3)
        peer.store.set("at the barrier", "yes")
    peer.comm.barrier()
    assert peer.store.check(["at the barrier"]), "it was left before process 1 had come"


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


def meet(name: str, row: str, file: str, rank: int, count: int) -> None:
    """Take part in all checks as process `rank`."""
    subject = Subject(name)
    backend, found = subject.backend, subject.device
    if not isinstance(found, Device):
        raise RuntimeError(found)
    kernel = next(kernel for kernel in rows(backend, "comm") if kernel.name == row)
    several = found.count >= count
    device = torch.device(backend.torch_device, rank) if several else torch.device(backend.torch_device)
    store = dist.FileStore(file, count)
    dist.init_process_group(
        backend.collectives,
        store=store,
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=SECONDS),
        device_id=device if several else None,
    )
    peer = Peer(kernel.build(found), rank, count, device, store)
    for what, check in CHECKS.items():
        try:
            check(peer)
            told = "right"
        except Exception as error:  # the other checks go on, where the other processes do
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{what}{TOLD}{told}", flush=True)
    dist.destroy_process_group()


def start(name: str, row: str, folder: Path, rank: int, count: int) -> int:
    """Start process `rank`, whose streams are the files RANK.out and RANK.err of the folder, and return its id. It is
    forked: torch is imported once for all of them, and no device has been touched yet."""
    if child := os.fork():
        return child
    status = 1
    try:
        for stream, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{suffix}", os.O_WRONLY | os.O_CREAT), stream)
        with torch.inference_mode():
            meet(name, row, str(folder / "store"), rank, count)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main(name: str, row: str, folder: str, count: str) -> None:
    """Start all of them. Where one dies the others would wait for it in every check: they are ended."""
    ranks = {start(name, row, Path(folder), rank, int(count)): rank for rank in range(int(count))}
    while ranks:
        child, status = os.wait()
        rank = ranks.pop(child)
        if status:
            print(f"process {rank} ended with status {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
