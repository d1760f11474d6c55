"""What somebody wants to run, as far as it was said."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract import InputError
from ..plan.placement import ALL_RESIDENT, ALL_STAGED, Placement, typed
from ..plan.resolve import dtype_named
from ..quant.steps import OPTION
from ..scenarios.aliases import spelled
from ..scenarios.defaults import PROFILES
from ..spelling import shown
from .objectives import LATENCY, OBJECTIVES


def zero() -> int:
    """The seed of a run whose pixels nobody looks at."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """`model` is "embedded", a folder, a hub id or its short form ("nano", "super", "edge"), at a `revision`; with
    `described`, and without one, a published model's facts come from the table here, so that nothing is downloaded.

    `given` are request fields as `scenarios.request.resolve` takes them; a task that is not among them follows from
    the inputs and from `suffix`, that of the output file. A `partial` request may lack its prompt and its input file,
    on which no plan depends. `profile` names whose defaults fill the rest; `pick_seed` is asked where they leave the
    seed to chance.

    `backend` None takes the accelerator that is here, none of those that are `disabled`. `kernels` and `formats` by op
    are met or refused, `required` kernels asserted. `high_precision_steps` are those in which activations stay in 16
    bits, as `StepPolicy.typed` reads them; None follows the checkpoint. `dtype` None is the checkpoint's. `memory` in
    bytes stands in the place of the device's own. `device`, a known one by its everyday name, or `arch` asks for a
    forecast: the plan of a device that need not be here; of an architecture that no package knows a device of, with a
    `backend` and a `memory`. `decodes`: the video is wanted, and not its sound or its actions alone. `resident`: what
    is loaded stays for the next request. `placement` says where parts of the model lie, as `plan.placement.typed` reads
    it; with `chooses` others lie where they fit. The run may take no more of the device than `memory_limit` bytes; the
    host has `host_memory` bytes to spare (None: what is free here). `parallel` says how several devices share the
    request, as `plan.mesh.typed` reads it, or `devices` how many there are to share it for an `objective` of
    OBJECTIVES; `started` is how many processes a launcher has started, on this host and others, each with a device.
    Other programs' names of a profile, a backend and a dtype become ours.
    """

    model: str
    revision: str | None = None
    described: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    suffix: str | None = None
    partial: bool = False
    profile: str = PROFILES[0]
    pick_seed: Callable[[], int] = zero
    backend: str | None = None
    disabled: Collection[str] = ()
    dtype: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    high_precision_steps: str | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    device: str | None = None
    arch: str | None = None
    resident: bool = False
    placement: str | None = None
    chooses: bool = False
    memory_limit: int | None = None
    host_memory: int | None = None
    decodes: bool = True
    parallel: str | None = None
    devices: int | None = None
    objective: str = LATENCY
    started: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for what is of another kind than it says above."""
        for name in ("given", "kernels", "formats", "required"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InputError(f"{name} = {shown(value)}", "it is no mapping by name", f"Pass {name} as a dict", name)
        always = ("model", "profile")
        for name in (
            *always,
            "revision",
            "suffix",
            "backend",
            "dtype",
            "device",
            "arch",
            OPTION,
            "placement",
            "parallel",
        ):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in always):
                raise InputError(f"{name} = {shown(value)}", "it is not text", f"Pass {name} as a string", name)
        if isinstance(self.disabled, str):
            found = "it is one text, and each of its letters would be a name"
            raise InputError(f"disabled = {shown(self.disabled)}", found, f"Pass [{shown(self.disabled)}]", "disabled")
        object.__setattr__(self, "profile", spelled("profile", self.profile, PROFILES))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", None if self.dtype == "auto" else dtype_named(self.dtype))
        if self.backend is not None:
            object.__setattr__(self, "backend", _backend_named(self.backend))
        if self.objective not in OBJECTIVES:
            next_step = f"Type {' or '.join(OBJECTIVES)}"
            raise InputError(f"`objective` {shown(self.objective)}", "no such objective", next_step, "objective")
        if self.objective != LATENCY and self.devices is None:
            found = "no number of devices is given, so that it would change nothing"
            raise InputError(f"`objective` {self.objective}", found, "Add `devices` N, or drop it", "objective")
        if self.device is not None and self.arch is not None:
            found = "each names a device that need not be here"
            raise InputError(f"`device` {self.device} with `arch` {self.arch}", found, "Give one of them")
        for name in ("memory", "memory_limit", "host_memory"):
            size = getattr(self, name)
            if size is not None and not (type(size) in (int, float) and 0 < size < math.inf):
                raise InputError(f"{name} = {shown(size)}", "that is no memory", "Give it in bytes", name)
        self.named_parts  # noqa: B018 - raises

    @property
    def forecast(self) -> bool:
        """Whether it is of a device that need not be here."""
        return self.device is not None or self.arch is not None

    @property
    def named_parts(self) -> dict[str, str]:
        """Where parts lie that were named. Raises InputError."""
        return {} if self.placement is None else typed(self.placement)

    @property
    def placed(self) -> Placement:
        """Where all parts lie, if nothing is chosen."""
        return (ALL_RESIDENT if self.resident else ALL_STAGED).with_parts(self.named_parts)


def _backend_named(text: str) -> str:
    """A backend by one of its other names, or by torch's string for its first device. Raises InputError for another
    device than the first."""
    name, _, number = text.partition(":")
    if number and number != "0":
        found = "a run takes the first device that it sees"
        raise InputError(f"`backend` {text}", found, f"Hide the others from it, and name {name} alone")
    return spelled("backend", name)
