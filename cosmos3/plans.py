"""What a request would take: bytes, seconds, and whether it fits, before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cosmos3_core.plan.cost.units import ceiling_of, gib
from cosmos3_core.plan.placement import ALL_STAGED
from cosmos3_core.settle import Settled

from .questions import as_json
from .words import in_arguments


@dataclass(frozen=True)
class Stage:
    """One part of a run: what the device holds at its worst moment, in bytes, and how long it takes by the estimate;
    `seconds` is None where no peak rate of the device is known."""

    name: str
    peak_bytes: int
    weight_bytes: int
    seconds: float | None


@dataclass(frozen=True, repr=False)
class Plan:
    """What a request would take on a device, by the estimate of `cosmos3 plan`.

    `peak_bytes` is that of the worst of the `stages`, `device_bytes` the device's memory, and `fits` whether it
    suffices. `seconds` sums up the stages without loading, `step_seconds` is the slowest step; both are None where no
    peak rate of the device is known. `kernels` are the rows that run, by op. `nearest` are the changes that would make
    it fit, in words. `request` has every field, None where it is not known yet, and `origin` where each is from.
    `notes` say how the request lies outside of what the model was trained for. `device` is the device's name; a
    `forecast` is of one that need not be here. `parallel` is how several share the request, as `load` takes it, "" for
    one alone; bytes and seconds are then of the one that has most to do.
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
    notes: tuple[str, ...] = ()
    device: str = ""
    forecast: bool = False
    parallel: str = ""

    def __repr__(self) -> str:
        request, fits = self.request, "fits" if self.fits else "does not fit"
        fits += f", a forecast for {self.device}" if self.forecast else ""
        fits += f", as {self.parallel}" if self.parallel else ""
        what = f"{request['task']} {request['size']}, {request['frames']} frames, {request['steps']} steps"
        lasts = "" if self.seconds is None else f" and {self.seconds:.1f} s"
        return f"<cosmos3 plan: {what}: {gib(self.peak_bytes)} of {gib(self.device_bytes)}{lasts}, {fits}>"

    def __str__(self) -> str:
        """A line for the whole, one for each stage, for each change that would make it fit, and for each note."""
        lines = [repr(self)[len("<cosmos3 plan: ") : -1]]
        for stage in self.stages:
            lasts = "" if stage.seconds is None else f", {stage.seconds:.1f} s"
            lines.append(f"  {stage.name}: {gib(stage.peak_bytes)}{lasts}")
        lines += [f"  {change} would fit" for change in self.nearest]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def plan_of(settled: Settled) -> Plan:
    """The numbers of what was settled."""
    estimate, plan = settled.estimate, settled.plan
    lower = settled.lower
    apart = [f"`placement` {lower}"] if lower else []
    if lower == ALL_STAGED and settled.wish.resident:
        apart = ["`resident` False"]
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
        nearest=(*apart, *(in_arguments(str(change)) for change in settled.nearest())),
        request=as_json(settled.known()),
        origin=settled.origin,
        notes=settled.notes,
        device=plan.device.name,
        forecast=settled.forecast,
        parallel=str(plan.layout) if plan.layout.size > 1 else "",
    )
