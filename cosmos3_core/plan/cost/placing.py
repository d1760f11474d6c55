"""Which placement of a model's parts fits, and why no other was taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from ..placement import Placement
from .fit import Estimate
from .nearest import fitting_tile
from .units import gib

SHARE = 0.9
"""Of the host's free memory, what weights may take: a run needs the rest for pictures, prompts and files."""


class Room(NamedTuple):
    """Bytes that a device and its host have for a run; None where the host is not known."""

    device: int
    host: int | None


def lack(estimate: Estimate, room: Room) -> str:
    """What there is too little of for a job, the decode in tiles if it takes them; "" if there is enough of all."""
    if estimate.job.tile is None and (tile := fitting_tile(estimate, room.device)) is not None:
        estimate = replace(estimate, job=replace(estimate.job, tile=tile))
    worst = max(estimate.stages, key=lambda stage: stage.peak)
    if worst.peak > room.device:
        return f"stage {worst.name!r} takes {gib(worst.peak)}, and there are {gib(room.device)}"
    return host_lack(estimate, room.host)


def host_lack(estimate: Estimate, host: int | None) -> str:
    """The same of the host's memory."""
    if host is None or estimate.host <= SHARE * host:
        return ""
    return f"weights take {gib(estimate.host)} of the host's memory, of which {gib(host)} are free"


def placed(estimate: Estimate, options: Iterable[Placement], room: Room) -> tuple[Estimate, tuple[str, ...]]:
    """The job in the first of the placements that fits, or in the last one, and what was too little for each before."""
    lacks: list[str] = []
    for placement in options:
        estimate = replace(estimate, placement=placement)
        if not (found := lack(estimate, room)):
            break
        lacks.append(f"{placement}: {found}")
    return estimate, tuple(lacks)
