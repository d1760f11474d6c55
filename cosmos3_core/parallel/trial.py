"""Whether collectives move what they should, seen before the first step: a vendor's all_to_all has succeeded and moved
nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..contract import Comm, RunError


def try_out(comm: Comm, group: ProcessGroup | None, number: int, count: int, device: torch.device, where: str) -> None:
    """Each collective once with known values, among `count` processes of which this is `number`. Raises RunError that
    names the first one whose result is wrong, or that fails."""

    def of(process: int, rows: int) -> Tensor:
        """A process's rows, unlike any other's."""
        return (torch.arange(rows * 2, dtype=torch.float32).view(rows, 2) + 100 * process).to(device)

    everyone, mine = range(count), of(number, count)
    sent = [1 + (number + process) % 2 for process in everyone]  # the sum is symmetric: as many are received
    starts = [sum(1 + (process + other) % 2 for other in range(number)) for process in everyone]
    after, before = (number + 1) % count, (number - 1) % count
    tried: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "all_to_all": (
            lambda: comm.all_to_all(mine, group).wait(),
            torch.cat([of(process, count)[number : number + 1] for process in everyone]),
        ),
        "all_to_all of unequal parts": (
            lambda: comm.all_to_all(of(number, sum(sent)), group, sent=sent, received=sent).wait(),
            torch.cat(
                [of(process, 2 * count)[starts[process] : starts[process] + sent[process]] for process in everyone]
            ),
        ),
        "all_gather": (
            lambda: comm.all_gather(mine, group).wait(),
            torch.stack([of(process, count) for process in everyone]),
        ),
        "reduce_scatter": (
            lambda: comm.reduce_scatter(mine, group).wait(),
            torch.stack([of(process, count)[number] for process in everyone]).sum(0),
        ),
        "all_reduce": (
            lambda: comm.all_reduce(mine.clone(), group).wait(),
            torch.stack([of(process, count) for process in everyone]).sum(0),
        ),
        "all_reduce by max": (
            lambda: comm.all_reduce(mine.clone(), group, op="max").wait(),
            torch.stack([of(process, count) for process in everyone]).amax(0),
        ),
        "broadcast": (lambda: comm.broadcast(mine.clone(), count - 1, group).wait(), of(count - 1, count)),
        "exchange": (lambda: comm.exchange(mine, after, before, group).wait(), of(before, count)),
    }
    wrong: list[RunError] = []
    for name, (call, expected) in tried.items():  # all of them, also after a wrong one: others may see nothing wrong
        asked = f"trying out {name} among the {count} processes of {where}"
        try:
            found = call()
        except RuntimeError as error:
            raise RunError(asked, " ".join(str(error).split()), "Update the collective library") from error
        if found.shape != expected.shape or not torch.equal(found, expected):
            told = f"it succeeded and gave {found.flatten().tolist()} where {expected.flatten().tolist()} was due"
            wrong.append(RunError(asked, told, "Update the collective library, or leave `parallel` out"))
    if wrong:
        raise wrong[0]
