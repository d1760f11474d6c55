"""Which placement of a model's parts fits, and why no other was taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from ...scenarios.sizes import LARGEST
from ..placement import Placement
from .fit import Estimate
from .job import Job
from .units import gib

TILES = (1024, 768, 512, 384, 256, 192, 128, 64)
"""Tiles to propose, in pixels, largest first: seams are fewer and less is computed twice."""

SHARE = 0.9
"""Of the host's free memory, what weights may take: a run needs the rest for pictures, prompts and files."""


class Room(NamedTuple):
    """Bytes that a device and its host have for a run; None where the host is not known. `unified`: these are the same
    memory."""

    device: int
    host: int | None
    unified: bool = False

    def beside_host(self, estimate: Estimate) -> int:
        """What the device has for the stages of a job: of the host's own memory, what weights on the host leave."""
        return self.device - estimate.host if self.unified else self.device


def tiled(estimate: Estimate, room: Room) -> Estimate:
    """The job, its decode in tiles if it takes them to fit."""
    if estimate.job.tile is None and (tile := fitting_tile(estimate, room)) is not None:
        return replace(estimate, job=replace(estimate.job, tile=tile))
    return estimate


def lack(estimate: Estimate, room: Room) -> str:
    """What there is too little of for a job, the decode in tiles if it takes them; "" if there is enough of all."""
    return lack_as_it_is(tiled(estimate, room), room)


def lack_as_it_is(estimate: Estimate, room: Room) -> str:
    """The same of a job whose tile is settled."""
    worst = max(estimate.stages, key=lambda stage: stage.peak)
    if worst.peak > room.device:
        return f"stage {worst.name!r} takes {gib(worst.peak)}, and there are {gib(room.device)}"
    if worst.peak > room.beside_host(estimate):
        taken = f"stage {worst.name!r} takes {gib(worst.peak)} and weights on the host {gib(estimate.host)}"
        return f"{taken} of the same memory, and there are {gib(room.device)}"
    if room.host is None or estimate.host <= SHARE * room.host:
        return ""
    return f"weights take {gib(estimate.host)} of the host's memory, of which {gib(room.host)} are free"


def fitting_tile(estimate: Estimate, room: Room) -> int | None:
    """The largest tile with which the decode fits; None where whole frames do, or no tile does, and where nothing is
    decoded."""
    if not estimate.job.decoded:
        return None
    for tile in (None, *tiles(estimate.job)):
        tiled = replace(estimate, job=replace(estimate.job, tile=tile))
        if tiled.stage("decode").peak <= room.beside_host(estimate):
            return tile
    return None


def tiles(job: Job) -> list[int]:
    """Tiles that are smaller than a job's own, or its pictures."""
    smaller_than = min(job.tile or LARGEST, max(job.width, job.height))
    return [tile for tile in TILES if tile < smaller_than]


def placed(estimate: Estimate, options: Iterable[Placement], room: Room) -> tuple[Estimate, tuple[str, ...]]:
    """The job in the first of the placements that fits, or in the last one, and what was too little for each before."""
    lacks: list[str] = []
    for placement in options:
        estimate = replace(estimate, placement=placement)
        if not (found := lack(estimate, room)):
            break
        lacks.append(f"{placement}: {found}")
    return estimate, tuple(lacks)
