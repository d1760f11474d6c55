"""The solvers that follow a noise schedule: UniPC and flow-match Euler, bit-equal to diffusers'.

docs/model.md, section 4.6. The update is elementwise, so one solver steps all modalities as a single flat fp32 vector.
UniPC's is also linear with coefficients that depend on the schedule alone: they are made once, and a step is then one
small matrix product, which never makes the host wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .schedule import EULER, UNIPC, fixed, schedule_of, settings_of

if TYPE_CHECKING:
    from ..checkpoint.model import Model
    from ..scenarios.request import Request

SCHEDULES = 16
"""Schedules whose steps are remembered: those of 35 steps take 10 ms to work out, and a policy has one."""
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
        cls,
        schedule: str,
        steps: int,
        shift: float,
        config: dict[str, Any],
        sigmas: tuple[float, ...] | None = None,
        source: str = "scheduler",
    ) -> Solver:
        """Schedules: "native", 0.999 to 0, shifted (NVIDIA's framework); "flow", 1 to 0.001, shifted; "karras", the
        published scheduler_config as it stands, which has no shift; "distilled", the fixed sigmas of a distilled
        checkpoint. `config` is `scheduler/scheduler_config.json`, of the folder that `source` names in messages;
        `sigmas` the fixed ones. Raises InputError for a config of other solvers or schedules."""
        if schedule == "distilled":
            settings = settings_of(config, EULER, source)
            made, update, stochastic = fixed(sigmas or (), settings), None, settings["stochastic_sampling"]
        else:
            made = schedule_of(schedule, steps, shift, settings_of(config, UNIPC, source), source)
            update, stochastic = _unipc(tuple(made.sigmas.tolist())), False
        return cls(made.timesteps, tuple(made.sigmas.tolist()), update, stochastic)

    def to(self, device: torch.device | str) -> Solver:
        """The same solver, for latents on this device."""
        return self if self.update is None else replace(self, update=self.update.to(device))

    def start(self, x: Tensor) -> dict[str, Tensor]:
        """What the first step is handed as `memory`, for latents like x."""
        return {} if self.update is None else {MEMORY: x.new_zeros(self.update.shape[1] - 1, len(x))}

    def handed(self, index: int, memory: dict[str, Tensor]) -> bool:
        """Whether `memory` can be what the step `index` is handed: the first knows nothing, and the second one
        prediction of the model."""
        if self.update is None:
            return True
        older, newer = memory[MEMORY][-2:]
        nothing = not memory[MEMORY].any()
        return nothing if index == 0 else bool(newer.any()) and bool(older.any()) == (index > 1)

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


def solver_of(request: Request, model: Model) -> Solver:
    """The request's schedule on this model. Raises InputError where its scheduler_config.json describes none."""
    source = f"{model.name}/scheduler"
    return Solver.of(request.schedule, request.steps, request.shift, model.scheduler, model.distilled_sigmas, source)


@lru_cache(maxsize=SCHEDULES)
def _unipc(sigmas: tuple[float, ...]) -> Tensor:
    """UniPC-2's steps as matrices [steps, 4, 5], fp32: from the rows x, last sample, the two last predictions (older
    first) and velocity to all but the velocity as they are after the step. On the host, and not to be changed.

    Zhao et al. 2023 (arXiv 2302.04867), algorithms 1 and 2 with B(h) = exp(h) - 1 and predictions of the data. What
    depends on the noise levels alone is fp32, number by number, and the rest fp64, as diffusers has them on fp64 data.
    """
    x, last, older, newer, velocity = torch.eye(5, dtype=torch.float64, device="cpu")
    levels, steps = list(torch.tensor(sigmas, dtype=torch.float32, device="cpu")), []
    for i, sigma in enumerate(levels[:-1]):
        prediction = x - sigma * velocity
        sample, known = x, torch.zeros_like(x)
        if i:
            sample, known = _corrected(levels, i, last, older, newer, prediction), newer
        after = _predicted(levels, i, sample, known, prediction)
        steps.append(torch.stack((after, sample, known, prediction)))
    return torch.stack(steps).float()


def _second_order(levels: list[Tensor], i: int) -> bool:
    """Whether the step from level i is one: the first knows no prediction before, and the last goes to infinity."""
    return 0 < i < len(levels) - 2


def _corrected(levels: list[Tensor], i: int, x: Tensor, older: Tensor, newer: Tensor, prediction: Tensor) -> Tensor:
    """UniC: the sample at level i, again from the sample x at level i - 1, now that the prediction here is known."""
    base, scale, h = _first_order(levels, i - 1, x, newer)
    change = prediction - newer
    if not _second_order(levels, i - 1):
        return base - scale * (0.5 * change)
    r = (_half_log_snr(levels[i - 2]) - _half_log_snr(levels[i - 1])) / h
    growth = torch.expm1(-h)
    phi = growth / -h - 1
    one = torch.ones_like(r)
    matrix = torch.stack((torch.stack((one, one)), torch.stack((r, one))))
    rho = torch.linalg.solve(matrix, torch.stack((phi / growth, (phi / -h - 0.5) * 2 / growth)))
    return base - scale * (rho[0] * ((older - newer) / r) + rho[1] * change)


def _predicted(levels: list[Tensor], i: int, x: Tensor, newer: Tensor, prediction: Tensor) -> Tensor:
    """UniP: the sample at level i + 1, from the sample x at level i."""
    base, scale, h = _first_order(levels, i, x, prediction)
    if not _second_order(levels, i):
        return base
    r = (_half_log_snr(levels[i - 1]) - _half_log_snr(levels[i])) / h
    return base - scale * (0.5 * ((newer - prediction) / r))


def _first_order(levels: list[Tensor], i: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step from level i to the next one along a constant prediction; what multiplies its terms of higher order; and
    the distance h of the levels."""
    h = _half_log_snr(levels[i + 1]) - _half_log_snr(levels[i])
    scale = (1 - levels[i + 1]) * torch.expm1(-h)
    return levels[i + 1] / levels[i] * x - scale * prediction, scale, h


def _half_log_snr(sigma: Tensor) -> Tensor:
    return torch.log(1 - sigma) - torch.log(sigma)
