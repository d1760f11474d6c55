"""The forward passes of a generation's steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.transformer import Branches, GenerationTower
from ..plan.execution import Execution
from ..sampling.guidance import combine, guided
from ..sampling.state import Context, State, views

Pass = Callable[[Tensor, Tensor], list[Tensor]]
"""(flat fp32 latents, timestep as fp32 [1]), both on the device, to a flat fp32 velocity for each branch. What it
returns may be overwritten by its next call."""


def pass_of(tower: GenerationTower, branches: Branches, captured: bool) -> Pass:
    """The forward pass of these branches, captured or not."""
    items = branches.packing.items

    def run(x: Tensor, timestep: Tensor) -> list[Tensor]:
        predicted = tower.forward(branches, views(x, items), timestep)
        return [torch.cat([velocity.flatten() for velocity in per_item]).float() for per_item in predicted]

    return tower.ops.capture(run) if captured else run


class Passes:
    """The passes of a context's steps, without guidance and with it, as `execution` has them. They hold the tower, and
    the memory of those that are captured, as long as anybody holds them."""

    def __init__(self, tower: GenerationTower, context: Context, execution: Execution):
        texts = dict(zip(execution.branches, context.texts, strict=True))
        made = {
            one: pass_of(tower, tower.branches(context.packing, [texts[name] for name in one.branches]), one.captured)
            for one in execution.passes
        }
        self.unguided, self.guided = ([made[one] for one in kind] for kind in (execution.unguided, execution.guided))

    def velocity(self, state: State) -> Tensor:
        """What the solver is handed for the state's next step: flat, fp32 and of its own memory."""
        request, timestep = state.request, state.solver.timesteps[state.index]
        timestep_1 = torch.full((1,), timestep, device=state.x.device)
        if not guided(request.guidance, request.guidance_interval, timestep, request.interval_ends):
            (run,) = self.unguided
            return run(state.x, timestep_1)[0].clone()
        prompt, negative = (velocity for run in self.guided for velocity in run(state.x, timestep_1))
        return combine(prompt, negative, request.guidance)
