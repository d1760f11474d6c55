"""The guidance branches of a step, dealt out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..plan.execution import Pass
from .ranks import Ranks


def dealt(
    passes: Sequence[Pass],
    run: Callable[[Pass], Sequence[Tensor]],
    idle: Callable[[], None],
    ranks: Ranks,
    like: Tensor,
) -> dict[str, Tensor]:
    """The velocity of each branch of these passes, each of one branch, by name: fp32 and like this flat tensor. Branch
    i is process i's, and of more branches than processes the first one's again; every process gets all of them, and
    from the one that computed it, so that all combine the same numbers. Who has no branch in a round is `idle`. Of a
    pipeline the last process has what they came to."""
    circle, pipeline = ranks.cfg, ranks.pipeline
    branches = [one.branches[0] for one in passes]
    rounds = -(-len(passes) // circle.count)
    mine = torch.zeros(rounds, len(like), dtype=torch.float32, device=like.device)
    for i, one in enumerate(passes[circle.number :: circle.count]):
        mine[i] = run(one)[0]
    if circle.number + circle.count * (rounds - 1) >= len(passes):
        idle()
    if pipeline.count > 1:
        mine = pipeline.sent(mine, pipeline.count - 1)()
    found = circle.gathered(mine) if circle.count > 1 else mine.unsqueeze(0)
    return {name: found[i % circle.count, i // circle.count] for i, name in enumerate(branches)}
