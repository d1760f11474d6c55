"""What a request would take: bytes, seconds, and whether it fits, before a weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cosmos3_core.plan.cost.units import ceiling_of
from cosmos3_core.settle import Settled


@dataclass(frozen=True)
class Stage:
    """One part of a run: what the device holds at its worst moment, in bytes, and how long it takes by the estimate;
    `seconds` is None where no peak rate of the device is known."""

    name: str
    peak_bytes: int
    weight_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a request would take on this machine, by the estimate of `cosmos3 plan`.

    `peak_bytes` is that of the worst of the `stages`, `device_bytes` the device's memory, and `fits` whether it
    suffices. `seconds` sums up the stages without loading, `step_seconds` is the slowest step; both are None where no
    peak rate of the device is known. `kernels` are the rows that run, by op. `nearest` are the changes that would make
    it fit, in words. `request` has every field and `origin` where each is from.
    """

    fits: bool
    peak_bytes: int
    device_bytes: int
    seconds: float | None
    step_seconds: float | None
    stages: tuple[Stage, ...]
    kernels: dict[str, str]
    nearest: tuple[str, ...]
    request: dict[str, Any]
    origin: dict[str, str]


def plan_of(settled: Settled) -> Plan:
    """The numbers of what was settled."""
    estimate, plan = settled.estimate, settled.plan
    seconds = estimate.seconds(ceiling_of(plan.backend, plan.device)) or {}
    stages = [Stage(one.name, one.peak, one.weights, seconds.get(one.name)) for one in estimate.stages]
    return Plan(
        fits=settled.fits,
        peak_bytes=estimate.peak,
        device_bytes=plan.device.memory,
        seconds=seconds.get("total"),
        step_seconds=seconds.get("step"),
        stages=tuple(stages),
        kernels=plan.to_json(settled.execution.tokens)["kernels"],
        nearest=tuple(str(change) for change in settled.nearest()),
        request=json.loads(json.dumps(settled.request.to_json())),
        origin=settled.origin,
    )
