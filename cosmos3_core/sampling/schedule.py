"""Noise schedules: what `scheduler/scheduler_config.json` may say, and the timesteps and noise levels that follow.

docs/model.md, section 4.5. The numbers are bit-equal to those of diffusers' UniPCMultistepScheduler and
FlowMatchEulerDiscreteScheduler, so they are made in the same precision: fp64, or fp32 for fixed sigmas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contract import InputError

UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
"""`_class_name` of a scheduler_config: a model's, and a distilled model's."""
TIMESTEPS = 1000
"""The timestep of noise level 1."""
KARRAS_EXPONENT = 7.0
LARGEST = 1000.0
"""Of the numbers in a scheduler_config: beyond it fp32 does not tell its first noise level from 1."""
LEAST_SIGNAL = 1e-6
"""What the first noise level leaves of the data: without any, the logarithm of the signal is infinite."""

SUPPORTED: dict[str, dict[str, Any]] = {
    UNIPC: {
        "num_train_timesteps": TIMESTEPS,
        "solver_order": 2,
        "solver_type": "bh2",
        "solver_p": None,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "thresholding": False,
        "lower_order_final": True,
        "disable_corrector": [],
        "final_sigmas_type": "zero",
    },
    EULER: {
        "num_train_timesteps": TIMESTEPS,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "invert_sigmas": False,
    },
}
"""Settings that have one value in every Cosmos3 checkpoint; there are no others here."""
ABSENT: dict[str, Any] = {"prediction_type": "epsilon", "use_flow_sigmas": False}
"""What diffusers takes a missing key of `SUPPORTED` for, where that is another value."""
READ: dict[str, dict[str, Any]] = {
    UNIPC: {"use_karras_sigmas": False, "flow_shift": 1.0, "sigma_min": None, "sigma_max": None},
    EULER: {"shift": 1.0, "stochastic_sampling": False},
}
"""Settings that are read, with what they are where they are missing."""
UNUSED: dict[str, set[str]] = {
    UNIPC: {
        *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
        *("dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset", "time_shift_type"),
    },
    EULER: {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"},
}
"""Settings without effect beside those of `SUPPORTED`."""
NOTES = ("_", "fixed_step_")
"""How keys begin that are no settings: diffusers' own, and a distilled model's sigmas, which the checkpoint reads."""


@dataclass(frozen=True)
class Schedule:
    """`timesteps` are what the model is told, `sigmas` the noise levels, fp32 [steps + 1], of which the last is 0."""

    timesteps: tuple[float, ...]
    sigmas: np.ndarray


def settings_of(config: dict[str, Any], kind: str, source: str) -> dict[str, Any]:
    """The settings of `READ[kind]` in a scheduler_config. Raises InputError that names every setting which is unknown
    or has a value that is not Cosmos3's; `source` names the folder in it."""
    found = config.get("_class_name", kind)
    problems = [] if found == kind else [f"_class_name is {found!r}, and this schedule's is {kind!r}"]
    if not problems:
        problems = [*_unsupported(config, kind), *_unreadable(read := READ[kind] | _settings(config, READ[kind]))]
    if problems:
        raise _refused("; ".join(problems), source)
    return read


def schedule_of(name: str, steps: int, shift: float, settings: dict[str, Any], source: str) -> Schedule:
    """The schedule "native", "flow" or "karras" of UniPC's settings. Timesteps are whole numbers. Raises InputError
    where two noise levels are one number."""
    levels = _karras(steps, settings, source) if name == "karras" else _flow(name, steps, shift)
    sigmas = np.append(levels, 0.0).astype(np.float32)
    if not (np.diff(sigmas) < 0).all():
        raise _refused(f"sigma_min and sigma_max are too close for {steps} steps", source)
    return Schedule(tuple((levels * TIMESTEPS).astype(np.int64).tolist()), sigmas)


def fixed(sigmas: tuple[float, ...], settings: dict[str, Any]) -> Schedule:
    """A distilled model's schedule. Timesteps are not rounded."""
    levels = _shifted(np.array(sigmas, dtype=np.float32), settings["shift"])
    return Schedule(tuple((levels * TIMESTEPS).tolist()), np.append(levels, np.float32(0)))


def _refused(found: str, source: str) -> InputError:
    next_step = "Use the scheduler folder of the model's own repository"
    return InputError(f"loading {source}", f"in its scheduler_config.json {found}", next_step)


def _karras(steps: int, settings: dict[str, Any], source: str) -> np.ndarray:
    """Karras et al. 2022 (arXiv 2206.00364), equation 5, as noise levels of a flow. A config without such sigmas stands
    for the flow schedule with its own shift."""
    if not settings["use_karras_sigmas"]:
        return _flow("flow", steps, settings["flow_shift"])
    ends = settings["sigma_min"], settings["sigma_max"]
    if None in ends or ends[0] >= ends[1]:
        raise _refused(f"sigma_min is {ends[0]} and sigma_max {ends[1]}, which is no range", source)
    low, high = (sigma ** (1 / KARRAS_EXPONENT) for sigma in ends)
    sigmas = (high + np.linspace(0, 1, steps) * (low - high)) ** KARRAS_EXPONENT
    return sigmas / (sigmas + 1)


def _flow(name: str, steps: int, shift: float) -> np.ndarray:
    first, last = (0.999, 0.0) if name == "native" else (1.0, 1 / TIMESTEPS)
    levels = _shifted(np.linspace(first, last, steps + 1)[:-1], shift)
    if 1 - levels[0] < LEAST_SIGNAL:
        levels[0] -= LEAST_SIGNAL
    return levels


def _shifted(levels: np.ndarray, shift: float) -> np.ndarray:
    """Esser et al. 2024 (arXiv 2403.03206), equation 23."""
    return shift * levels / (1 + (shift - 1) * levels)


def _settings(config: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Those of the names that the config has a value for."""
    return {name: config[name] for name in names if config.get(name) is not None}


def _unsupported(config: dict[str, Any], kind: str) -> list[str]:
    problems = []
    for name, value in SUPPORTED[kind].items():
        if (found := config.get(name, ABSENT.get(name, value))) != value:
            said = f"is {found!r}" if name in config else "is missing"
            problems.append(f"{name} {said}, and Cosmos3's is {value!r}")
    known = {*SUPPORTED[kind], *READ[kind], *UNUSED[kind]}
    names = [name for name in config if name not in known and not name.startswith(NOTES)]
    return problems + [f"the setting {name!r} is unknown" for name in names]


def _unreadable(settings: dict[str, Any]) -> list[str]:
    problems = []
    for name, value in settings.items():
        if name in ("use_karras_sigmas", "stochastic_sampling"):
            if type(value) is not bool:
                problems.append(f"{name} is {value!r}, not true or false")
        elif value is not None and (type(value) not in (int, float) or not 0 < value <= LARGEST):
            problems.append(f"{name} is {value!r}, not a positive number up to {LARGEST:g}")
    return problems
