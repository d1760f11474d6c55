"""The forward passes of a generation's steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.packing import Packing
from ..model.transformer import Branches, GenerationTower
from ..plan.execution import Execution
from ..sampling.guidance import combined, guided, inside, normalized
from ..sampling.state import Context, State, views
from ..scenarios.branches import PROMPT, UNCONTROLLED, text_of

Pass = Callable[[Tensor, Tensor], list[Tensor]]
"""(flat fp32 latents, timestep as fp32 [1]), both on the device, to a flat fp32 velocity for each branch. What it
returns may be overwritten by its next call."""


def pass_of(tower: GenerationTower, branches: Branches, whole: Packing, captured: bool) -> Pass:
    """The forward pass of these branches, captured or not. Of the `whole` sequence's latents it takes the items that
    the branches have; the velocity of the others is zero."""
    taken = [whole.items.index(item) for item in branches.packing.items]

    def run(x: Tensor, timestep: Tensor) -> list[Tensor]:
        latents = views(x, whole.items)
        predicted = tower.forward(branches, [latents[i] for i in taken], timestep)
        return [_flat(latents, dict(zip(taken, per_item, strict=True))) for per_item in predicted]

    return tower.ops.capture(run) if captured else run


def _flat(latents: list[Tensor], predicted: dict[int, Tensor]) -> Tensor:
    parts = [predicted[i] if i in predicted else torch.zeros_like(latent) for i, latent in enumerate(latents)]
    return torch.cat([part.flatten() for part in parts]).float()


class Passes:
    """The passes of a context's steps, without guidance and with it, as `execution` has them. They hold the tower, and
    the memory of those that are captured, as long as anybody holds them."""

    def __init__(self, tower: GenerationTower, context: Context, execution: Execution):
        self.execution, self._made = execution, {}
        texts = dict(zip(execution.branches, context.texts, strict=True))
        whole = context.packing
        for one in execution.passes:
            alone = one.branches == (UNCONTROLLED,)
            packing = whole.without_controls(tower.device) if alone else whole
            branches = tower.branches(packing, [texts[text_of(name)] for name in one.branches])
            self._made[one] = pass_of(tower, branches, whole, one.captured)

    def velocity(self, state: State) -> Tensor:
        """What the solver is handed for the state's next step: flat, fp32 and of its own memory."""
        request, timestep = state.request, state.solver.timesteps[state.index]
        timestep_1 = torch.full((1,), timestep, device=state.x.device)
        with_text = guided(request.guidance, request.guidance_interval, timestep, request.interval_ends)
        passes = self.execution.guided if with_text else self.execution.unguided
        interval, used = request.control_guidance_interval, request.control_guidance != 1
        if used and (interval is None or inside(interval, timestep, request.interval_ends)):
            passes = (*passes, *self.execution.control)
        velocities: dict[str, Tensor] = {}
        for one in passes:
            velocities |= zip(one.branches, self._made[one](state.x, timestep_1), strict=True)
        velocity = combined(velocities, request.guidance, request.control_guidance, request.control_formula)
        if request.normalize_guidance and len(velocities) > 1:
            velocity = normalized(velocity, velocities[PROMPT], state.items)
        return velocity.clone() if len(velocities) == 1 else velocity
