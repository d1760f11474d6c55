"""One process among those of a run: where it lies in the mesh, with whom it exchanges what, and what they agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..contract import Comm, InputError, RunError
from ..plan import Plan
from .trial import try_out

WAITING = timedelta(minutes=30)
"""How long it waits for them in a collective: while one of them loads weights or decodes a chunk."""
NAMED = ("cfg", "pipeline", "ring", "ulysses", "tensor", "hsdp", "vae")
ROWS = ("ring", "ulysses")
"""The axes along which the media tokens are split."""


class Lost(RunError):
    """Another process ended, or does not answer: not the cause of what went wrong."""


def part(length: int, count: int, number: int) -> slice:
    """The part of so many rows that is `number`'s of `count`: as even as can be, the longer ones first."""
    each, more = divmod(length, count)
    start = number * each + min(number, more)
    return slice(start, start + each + (number < more))


def parts(length: int, count: int) -> list[int]:
    """How long each part is."""
    return [one.stop - one.start for one in (part(length, count, number) for number in range(count))]


@dataclass(frozen=True)
class Circle:
    """Processes that exchange something, such as those along an axis: this one is `number` of `count`."""

    comm: Comm
    group: ProcessGroup | None
    number: int
    count: int

    def part(self, length: int) -> slice:
        """This process's part of so many rows."""
        return part(length, self.count, self.number)

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        return self._waited(lambda: self.comm.all_to_all(x, self.group, sent=sent, received=received).wait())

    def gathered(self, x: Tensor) -> Tensor:
        """[count, *x.shape], of one shape."""
        return self.gathering(x)()

    def gathering(self, x: Tensor) -> Callable[[], Tensor]:
        """Begin to; what is returned waits for it."""
        pending = self._waited(lambda: self.comm.all_gather(x, self.group))
        return lambda: self._waited(pending.wait)

    def largest(self, x: Tensor) -> Tensor:
        """The largest of everyone's; x itself may become it."""
        return self._waited(lambda: self.comm.all_reduce(x, self.group, op="max").wait())

    def summed_rows(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Of everyone's x, summed, this process's rows: so many of them are each one's, one after the other."""
        longest = max(lengths)
        if min(lengths) < longest:
            each = x.split(list(lengths))
            x = torch.cat([row for one in each for row in (one, x.new_zeros(longest - len(one), *x.shape[1:]))])
        together = x.contiguous().view(self.count, longest, *x.shape[1:])
        found: Tensor = self._waited(lambda: self.comm.reduce_scatter(together, self.group).wait())
        return found[: lengths[self.number]]

    def sent(self, x: Tensor, source: int) -> Callable[[], Tensor]:
        """Begin to send what process `source` has to the others, whose x becomes it; what is returned waits for it."""
        pending = self._waited(lambda: self.comm.broadcast(x, source, self.group))
        return lambda: self._waited(pending.wait)

    def gathered_rows(self, x: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
        """Everyone's x, so many long along `dim`, one after the other. All travel at the longest one's size."""
        x, longest = x.movedim(dim, 0), max(lengths)
        if len(x) < longest:
            x = torch.cat((x, x.new_zeros(longest - len(x), *x.shape[1:])))
        found = self.gathered(x.contiguous())
        if min(lengths) == longest:
            return found.flatten(0, 1).movedim(0, dim)
        return torch.cat([one[:length] for one, length in zip(found, lengths, strict=True)]).movedim(0, dim)

    def passed_on(self, x: Tensor, *, back: bool = False) -> Callable[[], Tensor]:
        """Begin to send x to the next process of the ring, or `back` to the one before; what is returned waits for that
        of the one on the other side."""
        after, before = (self.number + 1) % self.count, (self.number - 1) % self.count
        after, before = (before, after) if back else (after, before)
        pending = self._waited(lambda: self.comm.exchange(x, after, before, self.group))
        return lambda: self._waited(pending.wait)

    @staticmethod
    def _waited(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found = f"another process of this run ended or does not answer: {' '.join(str(error).split())}"
            raise Lost("exchanging with the other processes", found, "See what that one said") from error


class Ranks:
    """This process among those of a plan's layout, all of which make one in the same order. `device` is where what they
    exchange lies. Each collective is tried out on each group. Raises InputError where there are no such processes, and
    RunError for a collective that does not do what it should."""

    def __init__(self, plan: Plan, comm: Comm, device: torch.device):
        layout, collectives = plan.layout, plan.backend.collectives
        if not dist.is_initialized() or dist.get_world_size() != layout.size:
            here = dist.get_world_size() if dist.is_initialized() else 1
            found = f"it takes {layout.size} processes, and {'this is one' if here == 1 else f'these are {here}'}"
            raise InputError(f"`parallel` {layout}", found, "Type cosmos3 run, which starts them", "parallel")
        self.layout, self.rank = layout, dist.get_rank()
        self.place = layout.coordinates(self.rank)
        self._comm, self._collectives, self._device = comm, collectives, device
        circles = (self._circle((axis,)) for axis in NAMED)
        self.cfg, self.pipeline, self.ring, self.ulysses, self.tensor, self.hsdp, self.vae = circles
        self.rows = self._circle(ROWS)

        stages, place = layout.groups("pipeline"), self.pipeline.number
        pairs = [[[g[i], g[i + 1]] for g in stages] for i in range(layout.pipeline - 1)]
        beside = [self._among(some, "neighbours of pipeline") for some in pairs]
        self.before = beside[place - 1] if place else None
        self.after = beside[place] if place < layout.pipeline - 1 else None

    def _circle(self, axes: Sequence[str]) -> Circle:
        circle = self._among(self.layout.groups(*axes), " and ".join(axes))
        assert circle is not None, "each process lies on every axis"
        return circle

    def _among(self, groups: Sequence[list[int]], where: str) -> Circle | None:
        """This process's of groups of one size, which all processes make."""
        count, members = len(groups[0]), next((group for group in groups if self.rank in group), None)
        key = str(groups), self._collectives, type(self._comm).__qualname__
        if count > 1 and key not in _MADE:
            for one in groups:  # every process makes every group, or those that are in it would wait for it
                group = dist.new_group(one, backend=self._collectives, timeout=WAITING)
                if one is members:
                    _MADE[key] = group
            if members:
                try_out(self._comm, _MADE[key], members.index(self.rank), count, self._device, where)
            else:
                _MADE[key] = None
        return Circle(self._comm, _MADE.get(key), members.index(self.rank), count) if members else None


_MADE: dict[tuple[str, str, str], ProcessGroup | None] = {}
"""Groups that this process has made and tried out: other engines have the same ones, and a group is threads and
memory. Each is found by all that were made with it, the backend of torch and who calls that."""


def check_agreed(decided: Any, what: str = "what was decided before the first step") -> None:
    """Raises RunError unless all processes have come to the same, which is JSON: the prompts, the seed, the kernels."""
    text = json.dumps(decided, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (digest, decided if isinstance(decided, dict) else {}))
    other = [rank for rank, (theirs, _) in enumerate(found) if theirs != found[0][0]]
    if other:
        names = sorted(_differing(found[0][1], found[other[0]][1]))
        told = f" ({', '.join(names)})" if names else ""
        where = f"process {other[0]} has another than process 0{told}"
        raise RunError(what, where, "Start all of them with the same command line, files and packages")


def _differing(one: dict[str, Any], other: dict[str, Any], under: str = "") -> list[str]:
    """The keys under which two nested dicts differ, with dots between."""
    found = []
    for key in {*one, *other}:
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differing(left, right, f"{under}{key}.")
        elif json.dumps(left, sort_keys=True, default=str) != json.dumps(right, sort_keys=True, default=str):
            found.append(f"{under}{key}")
    return found


def from_first(value: Any) -> Any:
    """What process 0 has."""
    held = [value]
    try:
        dist.broadcast_object_list(held, 0)
    except RuntimeError as error:
        found = f"process 0 ended or does not answer: {' '.join(str(error).split())}"
        raise Lost("asking process 0", found, "See what that one said") from error
    return held[0]
