"""What a request would take, on this machine or on devices that are not here, without loading a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cosmos3_core.contract import InputError
from cosmos3_core.quant.steps import OPTION
from cosmos3_core.settle.forecasts import forecasts as of_all
from cosmos3_core.settle.objectives import LATENCY

from .inputs import media_of
from .pipeline import MODEL, check_typed, grounded, planned, wish_of
from .plans import Plan, plan_of
from .words import FORECASTS, PLAN, as_arguments, bound


@as_arguments(PLAN)
@bound
def plan(
    model: str | os.PathLike[str] = MODEL,
    *,
    backend: str | None = None,
    formats: Mapping[str, str] | None = None,
    high_precision_steps: str | None = None,
    kernels: Mapping[str, str | Callable[..., Any]] | None = None,
    dtype: str | None = None,
    profile: str | None = None,
    resident: bool = True,
    placement: str | None = None,
    device: str | None = None,
    arch: str | None = None,
    memory: int | None = None,
    host_memory: int | None = None,
    parallel: str | None = None,
    devices: int | None = None,
    objective: str = LATENCY,
    **fields: Any,
) -> Plan:
    """What a request would take with a model, which is not loaded: as `load` and then `Pipeline.plan`, and of a
    published model nothing is downloaded.

    `device`, such as "Arc B580", is one that an installed package knows and that need not be here, `arch` an
    architecture, such as "sm_90": then the plan is a forecast. `memory` in bytes stands in the place of the device's
    own, and `host_memory` in that of what the host has free. `parallel` is how several devices share the request, as
    for `load`; of so many `devices` the best layout is taken for an `objective`, "latency", "throughput" or "memory".
    Raises InputError.
    """
    more = {OPTION: high_precision_steps, "device": device, "arch": arch, "memory": memory}
    more |= {"placement": placement, "host_memory": host_memory}
    more |= {"parallel": parallel, "devices": devices, "objective": objective}
    wish = wish_of(model, backend, formats, kernels, dtype, profile, resident, described=True, **more)
    return plan_of(planned(*grounded(wish), fields))


@as_arguments(FORECASTS)
@bound
def forecasts(
    model: str | os.PathLike[str] = MODEL,
    *,
    backend: str | None = None,
    formats: Mapping[str, str] | None = None,
    high_precision_steps: str | None = None,
    kernels: Mapping[str, str] | None = None,
    dtype: str | None = None,
    profile: str | None = None,
    resident: bool = True,
    placement: str | None = None,
    **fields: Any,
) -> dict[str, Plan | InputError]:
    """By name, the plan for every device that the installed packages know, of a `backend` alone if one is named, or
    why there is none; as `cosmos3 plan --device all`. Raises InputError for what is wrong on all of them."""
    more = {OPTION: high_precision_steps, "described": True, "partial": True, "placement": placement}
    wish = wish_of(model, backend, formats, kernels, dtype, profile, resident, **more)
    check_typed(fields)
    found = of_all(replace(wish, given=fields | media_of(fields)[0]))
    return {
        one.device.name: one.settled if isinstance(one.settled, InputError) else plan_of(one.settled) for one in found
    }
