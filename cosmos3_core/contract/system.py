"""What a run asks of a device besides arithmetic: its memory, and its peers. Both are ops like the others: the
reference rows are torch's, and a device that torch's own interfaces do not know brings its own. Methods take the device
or the process group, so that one object serves a process with several of either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    Group = ProcessGroup | None


class Bytes(NamedTuple):
    """What tensors take and what the allocator holds for them; None where it is not counted."""

    allocated: int | None
    reserved: int | None


class Pending(Protocol):
    """Work under way. `wait()` returns its result: of a copy once the host may read it, of a collective once the
    device's later work may."""

    def wait(self) -> Tensor: ...


class Memory(Protocol):
    """Device memory, in bytes, and the way between it and the host.

    free, total  what allocations can still get, and what there is, or what `limit` left of it
    used, peak   by this process: now, when all work is done; at most, since it started or since the last `reset`
    empty        give back what the allocator holds and no tensor uses
    limit        let allocations fail that would take more than `size` in all; Unavailable where there is no such limit
    pinned       an empty tensor on the host that the device copies to and from without a detour
    copy         start to copy, after the device's work so far; `wait()` returns the target
    synchronize  wait until the device has done everything it was given
    """

    def free(self, device: torch.device) -> int: ...
    def total(self, device: torch.device) -> int: ...
    def used(self, device: torch.device) -> Bytes: ...
    def peak(self, device: torch.device, *, reset: bool = False) -> Bytes: ...
    def empty(self, device: torch.device) -> None: ...
    def limit(self, device: torch.device, size: int) -> None: ...
    def pinned(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor: ...
    def copy(self, target: Tensor, source: Tensor) -> Pending: ...
    def synchronize(self, device: torch.device) -> None: ...


class Comm(Protocol):
    """Collectives over a group of P processes (None: all of them), which all make the same calls in the same order.
    Tensors are contiguous and of any dtype; floats of 8 bits travel as bytes. Every call starts the work; `wait()`
    returns the result, fresh unless it is said to be x.

    all_to_all      the p-th part of x's rows (its first axis) goes to process p, and the parts that are received follow
                    each other; parts are equal, or of `sent` and `received` rows
    all_gather      [P, *x.shape]: everyone's x, all of one shape
    reduce_scatter  x is [P, ...]; process p gets the sum of everyone's x[p]
    all_reduce      x becomes the "sum" or the "max" over all processes
    broadcast       x becomes what the group's process `source` has
    exchange        x goes to the group's process `target` while one of its shape comes from `source`: a step of a ring
    barrier         waits until all processes are here
    """

    def all_to_all(
        self,
        x: Tensor,
        group: Group = None,
        *,
        sent: Sequence[int] | None = None,
        received: Sequence[int] | None = None,
    ) -> Pending: ...
    def all_gather(self, x: Tensor, group: Group = None) -> Pending: ...
    def reduce_scatter(self, x: Tensor, group: Group = None) -> Pending: ...
    def all_reduce(self, x: Tensor, group: Group = None, *, op: str = "sum") -> Pending: ...
    def broadcast(self, x: Tensor, source: int, group: Group = None) -> Pending: ...
    def exchange(self, x: Tensor, target: int, source: int, group: Group = None) -> Pending: ...
    def barrier(self, group: Group = None) -> None: ...
