"""What a request comes to on a model, item by item and pass by pass, and the passes themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..checkpoint.model import Model
from ..contract import InputError
from ..model.config import CAPTURE_ROWS, ONE_PASS_TOKENS
from ..model.packing import Packing
from ..model.transformer import Branches, GenerationTower
from ..sampling.guidance import combine, guided
from ..sampling.solver import Solver
from ..sampling.state import Context, State, views
from ..scenarios.items import items_of
from ..scenarios.request import Request

Pass = Callable[[Tensor, Tensor], list[Tensor]]
"""(flat fp32 latents, timestep as fp32 [1]), both on the device, to a flat fp32 velocity for each branch. What it
returns may be overwritten by its next call."""


def solver_of(request: Request, model: Model) -> Solver:
    """The request's schedule on this model. Raises InputError where its scheduler_config.json describes none."""
    try:
        return Solver.of(request.schedule, request.steps, request.shift, model.scheduler, model.distilled_sigmas)
    except Exception as error:  # diffusers builds from whatever it is given, so anything can go wrong
        raise InputError(
            f"loading {model.name}/scheduler",
            f"no schedule can be built from its scheduler_config.json ({error})",
            "Get the scheduler folder again from the model's repository",
        ) from None


def one_pass(request: Request, model: Model) -> bool:
    """Whether both guidance branches run as one batch."""
    return Packing(items_of(request, model.config), model.config, "meta").length <= ONE_PASS_TOKENS


def pass_of(tower: GenerationTower, branches: Branches) -> Pass:
    """The forward pass of these branches, captured if it is small."""
    items = branches.packing.items

    def run(x: Tensor, timestep: Tensor) -> list[Tensor]:
        predicted = tower.forward(branches, views(x, items), timestep)
        return [torch.cat([velocity.flatten() for velocity in per_item]).float() for per_item in predicted]

    rows = len(branches.texts) * branches.packing.length
    return tower.ops.capture(run) if rows <= CAPTURE_ROWS else run


class Passes:
    """The passes of a context's steps, without guidance and with it, both branches `together` or one after the other.
    They hold the tower, and the memory of those that are captured, as long as anybody holds them."""

    def __init__(self, tower: GenerationTower, context: Context, together: bool):
        packing, (prompt, *negative) = context.packing, context.texts
        self.unguided = [pass_of(tower, tower.branches(packing, [prompt]))]
        if not negative:
            self.guided = self.unguided
        elif together:
            self.guided = [pass_of(tower, tower.branches(packing, context.texts))]
        else:
            self.guided = [*self.unguided, pass_of(tower, tower.branches(packing, negative))]

    def velocity(self, state: State) -> Tensor:
        """What the solver is handed for the state's next step: flat, fp32 and of its own memory."""
        request, timestep = state.request, state.solver.timesteps[state.index]
        told = torch.full((1,), timestep, device=state.x.device)
        if not guided(request.guidance, request.guidance_interval, timestep):
            (run,) = self.unguided
            return run(state.x, told)[0].clone()
        return combine(*(velocity for run in self.guided for velocity in run(state.x, told)), request.guidance)
