"""Noise schedules and the solvers that follow them: diffusers' UniPC and flow-match Euler behind one small class.

Spec sections 4.5 and 4.6. The update is elementwise, so one solver steps all modalities as a single flat fp32 vector.
UniPC's is also linear with coefficients that depend on the schedule alone: they are read off diffusers' scheduler once,
and a step is then one small matrix product, which never makes the host wait for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract import InputError

if TYPE_CHECKING:
    from ..checkpoint.model import Model
    from ..scenarios.request import Request


class Solver:
    """Follows one schedule from noise to data. `timesteps` are what the model is told, `sigmas` the noise levels.

    Schedules: "native", 0.999 to 0, shifted (NVIDIA's framework); "flow", 1 to 0.001, shifted; "karras", the published
    scheduler_config as it stands, which has no shift; "distilled", the fixed sigmas of a distilled checkpoint.
    """

    def __init__(
        self, schedule: str, steps: int, shift: float, config: dict[str, Any], sigmas: tuple[float, ...] | None = None
    ):
        """`config` is `scheduler/scheduler_config.json`; `sigmas` the fixed ones of a distilled checkpoint. A config
        that describes no such schedule raises whatever diffusers raises."""
        import numpy as np

        # Distilled configs repeat the fixed sigmas under fixed_step_*, which diffusers would warn about.
        config = {key: value for key, value in config.items() if not key.startswith(("_", "fixed_step_"))}
        if schedule == "distilled":
            from diffusers import FlowMatchEulerDiscreteScheduler

            self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
            self.scheduler.set_timesteps(sigmas=list(sigmas or ()))
        else:
            from diffusers import UniPCMultistepScheduler

            karras = {} if schedule == "karras" else {"use_karras_sigmas": False, "flow_shift": shift}
            self.scheduler = UniPCMultistepScheduler.from_config({**config, **karras})
            if (kind := self.scheduler.config.prediction_type) != "flow_prediction":
                raise ValueError(f"its prediction_type is {kind}, and Cosmos3 predicts flow_prediction")
            base = np.linspace(0.999, 0.0, steps + 1)[:-1] if schedule == "native" else None
            self.scheduler.set_timesteps(steps, sigmas=base)
        # Without this the first step is looked up by its timestep, which is off by one where two timesteps coincide.
        self.scheduler.set_begin_index(0)
        self.timesteps: list[float] = self.scheduler.timesteps.tolist()
        self.sigmas: list[float] = self.scheduler.sigmas.tolist()
        self.update = None if schedule == "distilled" else _update(self.scheduler)
        self.memory: Tensor | None = None

    def step(self, velocity: Tensor, x: Tensor, index: int, stream: torch.Generator) -> Tensor:
        """x at sigmas[index] to x at sigmas[index + 1]; flat fp32 vectors. `stream` feeds the stochastic sampler."""
        if self.update is None:
            timestep = self.scheduler.timesteps[index]
            return self.scheduler.step(velocity, timestep, x, return_dict=False, generator=stream)[0]
        if self.memory is None:
            self.memory = x.new_zeros(self.update.shape[1] - 1, len(x))
        self.update = self.update.to(x.device)
        known = torch.cat((x[None], self.memory, velocity[None]))
        x, self.memory = (self.update[index] @ known).split([1, len(self.memory)])
        return x[0]

    def history(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What the solver remembers between steps, as (tensors, numbers); `restore` takes it back."""
        if self.update is None:
            return {}, {"step_index": self.scheduler.step_index}
        return ({} if self.memory is None else {"memory": self.memory}), {}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Continue from another solver's `history` on the same schedule."""
        self.memory = tensors.get("memory")
        if self.update is None:
            self.scheduler.set_begin_index(numbers["step_index"])


def solver_of(request: Request, model: Model) -> Solver:
    """The request's schedule on this model. Raises InputError where its scheduler_config.json describes none."""
    try:
        return Solver(request.schedule, request.steps, request.shift, model.scheduler, model.distilled_sigmas)
    except Exception as error:  # diffusers builds from whatever it is given, so anything can go wrong
        raise InputError(
            f"loading {model.name}/scheduler",
            f"no schedule can be built from its scheduler_config.json ({error})",
            "Get the scheduler folder again from the model's repository",
        ) from None


def _update(scheduler: Any) -> Tensor:
    """UniPC's steps as matrices [steps, R, R + 1], fp32: from the rows x, last sample, model outputs (oldest first) and
    velocity to all but the velocity as they are after the step. Found by stepping on unit vectors."""
    order = scheduler.config.solver_order
    x, last, *outputs, velocity = torch.eye(order + 3, dtype=torch.float64).unsqueeze(1)  # a batch axis of one
    nothing, steps = torch.zeros_like(x), []
    for i, timestep in enumerate(scheduler.timesteps):
        if i:
            scheduler.last_sample, scheduler.model_outputs = last, list(outputs)
        after = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        rows = (after, scheduler.last_sample, *scheduler.model_outputs)
        steps.append(torch.cat([nothing if row is None else row for row in rows]))
    return torch.stack(steps).float()
