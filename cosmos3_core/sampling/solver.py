"""Noise schedules and the solvers that follow them: diffusers' UniPC and flow-match Euler behind one small class.

Spec sections 4.5 and 4.6. The update is elementwise, so one solver steps all modalities as a single flat fp32 vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
        self.stochastic = schedule == "distilled"
        self.timesteps: list[float] = self.scheduler.timesteps.tolist()
        self.sigmas: list[float] = self.scheduler.sigmas.tolist()

    def step(self, velocity: Tensor, x: Tensor, index: int, stream: torch.Generator) -> Tensor:
        """x at sigmas[index] to x at sigmas[index + 1]; flat fp32 vectors. `stream` feeds the stochastic sampler."""
        extra = {"generator": stream} if self.stochastic else {}
        # The solver's einsum wants a batch axis.
        return self.scheduler.step(
            velocity[None], self.scheduler.timesteps[index], x[None], return_dict=False, **extra
        )[0][0]

    _HISTORY = ("last_sample", "lower_order_nums", "this_order", "_step_index")

    def history(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What the solver remembers between steps, as (tensors, numbers); `restore` takes it back."""
        values: dict[str, Any] = {name: getattr(self.scheduler, name, None) for name in self._HISTORY}
        for i, output in enumerate(getattr(self.scheduler, "model_outputs", ())):
            values[f"model_output.{i}"] = output
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in values.items() if isinstance(value, int)}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, int]) -> None:
        """Continue from another solver's `history` on the same schedule."""
        for name, value in (tensors | numbers).items():
            if name.startswith("model_output."):
                self.scheduler.model_outputs[int(name.partition(".")[2])] = value
            else:
                setattr(self.scheduler, name, value)
