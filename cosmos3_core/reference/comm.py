"""contract.Comm on torch.distributed, for whichever backend the process group was made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Group = ProcessGroup | None
Rows = Sequence[int] | None
REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
# torch 2.13 has new names for these, and warns of the old ones.
gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Arriving:
    """The `result` of the `works` under way."""

    result: Tensor
    works: Sequence[Any]

    def wait(self) -> Tensor:
        for work in self.works:
            work.wait()
        return self.result


class TorchComm:
    """See contract.Comm."""

    def all_to_all(
        self,
        x: Tensor,
        group: Group = None,
        *,
        sent: Sequence[int] | None = None,
        received: Sequence[int] | None = None,
    ) -> Arriving:
        out = x.new_empty(len(x) if received is None else sum(received), *x.shape[1:])
        splits = None if received is None else list(received), None if sent is None else list(sent)
        return Arriving(out, [dist.all_to_all_single(_plain(out), _plain(x), *splits, group=group, async_op=True)])

    def all_gather(self, x: Tensor, group: Group = None) -> Arriving:
        out = x.new_empty(dist.get_world_size(group), *x.shape)
        work = gather(_plain(out).view(-1), _plain(x).view(-1), group=group, async_op=True)
        return Arriving(out, [work])

    def reduce_scatter(self, x: Tensor, group: Group = None) -> Arriving:
        out = x.new_empty(x.shape[1:])
        return Arriving(out, [scatter(out.view(-1), x.view(-1), group=group, async_op=True)])

    def all_reduce(self, x: Tensor, group: Group = None, *, op: str = "sum") -> Arriving:
        return Arriving(x, [dist.all_reduce(x, REDUCTIONS[op], group=group, async_op=True)])

    def broadcast(self, x: Tensor, source: int, group: Group = None) -> Arriving:
        return Arriving(x, [dist.broadcast(_plain(x), _rank(source, group), group=group, async_op=True)])

    def exchange(self, x: Tensor, target: int, source: int, group: Group = None) -> Arriving:
        out = torch.empty_like(x)
        # Sends are posted first: with receives first, two processes of oneCCL wait for each other (oneCCL#193).
        sent = dist.P2POp(dist.isend, _plain(x), _rank(target, group), group)
        received = dist.P2POp(dist.irecv, _plain(out), _rank(source, group), group)
        return Arriving(out, dist.batch_isend_irecv([sent, received]))

    def barrier(self, group: Group = None) -> None:
        dist.barrier(group)


def _plain(x: Tensor) -> Tensor:
    """The same memory in a type that every backend moves: gloo knows no float of 8 bits."""
    return x.view(torch.uint8) if x.is_floating_point() and x.element_size() == 1 else x


def _rank(rank: int, group: Group) -> int:
    """A process of a group by its number among all processes."""
    return rank if group is None else dist.get_global_rank(group, rank)
