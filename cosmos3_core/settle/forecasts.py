"""What a wish comes to on every device that an installed package knows, without one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..contract import Backend, Device, InputError
from ..plan.discovery import extras, pip_install
from ..plan.known import ALL, known_devices
from .settle import Settled, settle
from .wish import Wish


@dataclass(frozen=True)
class Forecast:
    """A known device, its backend, and what the wish comes to there, or why it cannot run."""

    backend: Backend
    device: Device
    settled: Settled | InputError


def forecasts(wish: Wish) -> list[Forecast]:
    """A forecast for each known device, of the wish's backend alone if it names one. Raises InputError where no
    package knows one, and for what is wrong on all of them."""
    found = []
    for backend, device in known_devices(wish.backend, wish.disabled):
        one = replace(wish, device=device.name, backend=backend.name)
        try:
            found.append(Forecast(backend, device, settle(one, on=(backend, device))))
        except InputError as error:
            found.append(Forecast(backend, device, error))
    if not found and wish.backend:
        raise InputError(f"`device` {ALL}", f"backend {wish.backend} knows no device", "Drop `backend`", "device")
    if not found:
        packages = " or ".join(map(pip_install, extras()))
        raise InputError(f"`device` {ALL}", "no installed package knows a device", f"Type {packages}")
    faults = [one.settled for one in found if isinstance(one.settled, InputError)]
    if len(faults) == len(found) and len({str(fault) for fault in faults}) == 1:
        raise faults[0]
    return found
