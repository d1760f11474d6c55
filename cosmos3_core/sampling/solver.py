"""Noise schedules and the solvers that follow them: UniPC and flow-match Euler as diffusers builds them.

docs/model.md, sections 4.5 and 4.6. The update is elementwise, so one solver steps all modalities as a single flat fp32
vector. UniPC's is also linear with coefficients that depend on the schedule alone: they are read off diffusers'
scheduler once, and a step is then one small matrix product, which never makes the host wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract import InputError

if TYPE_CHECKING:
    from ..checkpoint.model import Model
    from ..scenarios.request import Request

MEMORY = "solver.memory"
"""The name of what UniPC remembers, fp32 [R - 1, N]: the last sample and the model outputs, oldest first."""


@dataclass(frozen=True)
class Solver:
    """One schedule from noise to data. It remembers nothing: what a step needs of the steps before, it is handed.

    `timesteps` are what the model is told, `sigmas` the noise levels, one more. `update` is UniPC's steps as matrices
    [steps, R, R + 1], None for flow-match Euler, which draws new noise in every step if it is `stochastic`.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    update: Tensor | None
    stochastic: bool

    @classmethod
    def of(
        cls, schedule: str, steps: int, shift: float, config: dict[str, Any], sigmas: tuple[float, ...] | None = None
    ) -> Solver:
        """Schedules: "native", 0.999 to 0, shifted (NVIDIA's framework); "flow", 1 to 0.001, shifted; "karras", the
        published scheduler_config as it stands, which has no shift; "distilled", the fixed sigmas of a distilled
        checkpoint. `config` is `scheduler/scheduler_config.json`; `sigmas` the fixed ones. A config that describes no
        such schedule raises whatever diffusers raises."""
        # Distilled configs repeat the fixed sigmas under fixed_step_*, which diffusers would warn about.
        config = {key: value for key, value in config.items() if not key.startswith(("_", "fixed_step_"))}
        if schedule == "distilled":
            from diffusers import FlowMatchEulerDiscreteScheduler

            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
            scheduler.set_timesteps(sigmas=list(sigmas or ()))
            update, stochastic = None, scheduler.config.stochastic_sampling
        else:
            scheduler = _unipc(schedule, steps, shift, config)
            update, stochastic = _update(scheduler), False
        return cls(tuple(scheduler.timesteps.tolist()), tuple(scheduler.sigmas.tolist()), update, stochastic)

    def to(self, device: torch.device | str) -> Solver:
        """The same solver, for latents on this device."""
        return self if self.update is None else replace(self, update=self.update.to(device))

    def start(self, x: Tensor) -> dict[str, Tensor]:
        """What the first step is handed as `memory`, for latents like x."""
        return {} if self.update is None else {MEMORY: x.new_zeros(self.update.shape[1] - 1, len(x))}

    def step(
        self, velocity: Tensor, x: Tensor, index: int, memory: dict[str, Tensor], stream: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x at sigmas[index] to x at sigmas[index + 1], and what the next step is handed as `memory`. x and velocity
        are flat fp32 vectors and stay as they are. `stream` feeds the stochastic sampler."""
        if self.update is None:
            return self._euler(velocity, x, index, stream), memory
        known = torch.cat((x[None], memory[MEMORY], velocity[None]))
        x, remembered = (self.update[index] @ known).split([1, len(memory[MEMORY])])
        return x[0], {MEMORY: remembered}

    def _euler(self, velocity: Tensor, x: Tensor, index: int, stream: torch.Generator) -> Tensor:
        # In fp32 on the host, as diffusers has them: 1 - sigma of a Python float would be another number.
        now, after = torch.tensor(self.sigmas[index : index + 2], dtype=torch.float32)
        if not self.stochastic:
            return x + (after - now) * velocity
        noise = torch.randn(x.shape, generator=stream, dtype=x.dtype).to(x.device)
        return (1 - after) * (x - now * velocity) + after * noise


def _unipc(schedule: str, steps: int, shift: float, config: dict[str, Any]) -> Any:
    """diffusers' UniPC scheduler before its first step."""
    import numpy as np
    from diffusers import UniPCMultistepScheduler

    karras = {} if schedule == "karras" else {"use_karras_sigmas": False, "flow_shift": shift}
    scheduler = UniPCMultistepScheduler.from_config({**config, **karras})
    if (kind := scheduler.config.prediction_type) != "flow_prediction":
        raise ValueError(f"its prediction_type is {kind}, and Cosmos3 predicts flow_prediction")
    base = np.linspace(0.999, 0.0, steps + 1)[:-1] if schedule == "native" else None
    scheduler.set_timesteps(steps, sigmas=base)
    # Without this the first step is looked up by its timestep, which is off by one where two timesteps coincide.
    scheduler.set_begin_index(0)
    return scheduler


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
