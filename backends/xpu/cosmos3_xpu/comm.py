"""contract.Comm on torch.distributed with oneCCL (xccl): whatever goes from process to process is posted as one group,
sends before receives. With receives first, two processes of oneCCL wait for each other (oneCCL#193)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Group = ProcessGroup | None
Parts = Sequence[int] | None
REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
# torch 2.13 has new names for these, and warns of the old ones.
gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Arriving:
    """The `result` of the `works` under way; `sent` is what they read, kept until they are done."""

    result: Tensor
    works: Sequence[Any]
    sent: Sequence[Tensor] = ()

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.result


class XcclComm:
    """See contract.Comm. Floats of 8 bits travel as bytes."""

    def all_to_all(self, x: Tensor, group: Group = None, *, sent: Parts = None, received: Parts = None) -> Arriving:
        if sent is None and received is None:
            out = torch.empty_like(x)
            return Arriving(out, [dist.all_to_all_single(_bytes(out), _bytes(x), group=group, async_op=True)], [x])
        count = dist.get_world_size(group)
        sent, received = (parts or [len(x) // count] * count for parts in (sent, received))
        out = x.new_empty(sum(received), *x.shape[1:])
        given, taken = _bytes(x).split(list(sent)), _bytes(out).split(list(received))
        here = dist.get_rank(group)
        taken[here].copy_(given[here])
        others = [rank for rank in range(count) if rank != here]
        return Arriving(
            out,
            _grouped(
                [(given[rank], rank) for rank in others if sent[rank]],
                [(taken[rank], rank) for rank in others if received[rank]],
                group,
            ),
            [x],
        )

    def all_gather(self, x: Tensor, group: Group = None) -> Arriving:
        out = x.new_empty(dist.get_world_size(group), *x.shape)
        flat = _bytes(out).view(-1), _bytes(x).view(-1)
        return Arriving(out, [gather(*flat, group=group, async_op=True)], [x])

    def reduce_scatter(self, x: Tensor, group: Group = None) -> Arriving:
        out = x.new_empty(x.shape[1:])
        return Arriving(out, [scatter(out.view(-1), x.view(-1), group=group, async_op=True)], [x])

    def all_reduce(self, x: Tensor, group: Group = None, *, op: str = "sum") -> Arriving:
        return Arriving(x, [dist.all_reduce(x, REDUCTIONS[op], group=group, async_op=True)])

    def broadcast(self, x: Tensor, source: int, group: Group = None) -> Arriving:
        return Arriving(x, [dist.broadcast(_bytes(x), _rank(source, group), group=group, async_op=True)])

    def exchange(self, x: Tensor, target: int, source: int, group: Group = None) -> Arriving:
        out = torch.empty_like(x)
        return Arriving(out, _grouped([(_bytes(x), target)], [(_bytes(out), source)], group), [x])

    def barrier(self, group: Group = None) -> None:
        dist.barrier(group)


def _grouped(sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], group: Group) -> list[Any]:
    """Start to send tensors to processes of the group and to receive others, as one group, the sends first."""
    posted = [dist.P2POp(dist.isend, tensor, _rank(rank, group), group) for tensor, rank in sends]
    posted += [dist.P2POp(dist.irecv, tensor, _rank(rank, group), group) for tensor, rank in receives]
    return dist.batch_isend_irecv(posted) if posted else []


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.is_floating_point() and x.element_size() == 1 else x


def _rank(rank: int, group: Group) -> int:
    """A process of a group by its number among all processes."""
    return rank if group is None else dist.get_global_rank(group, rank)
