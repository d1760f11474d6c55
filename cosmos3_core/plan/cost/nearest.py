"""Whether a run fits, and the nearest request that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ...model.config import TEMPORAL_COMPRESSION
from ...scenarios.sizes import TIERS
from .fit import Estimate
from .job import Job
from .placing import Room, lack_as_it_is, tiles
from .units import weight_bytes

NO_CHOICE: Mapping[str, bool] = MappingProxyType({})
SHORTEST = 25
"""Fewest frames to propose: about a second of video."""


@dataclass(frozen=True)
class Change:
    """A smaller request that fits: the `values` that differ, of "placement", "format" (of the weights), "width",
    "height", "frames" or "chunk" (of actions) and "tile", and its estimate. With controls "frames" are those of a
    chunk."""

    values: Mapping[str, Any]
    estimate: Estimate

    def __str__(self) -> str:
        """As messages write it: `size` 832x480 `tile` 256."""
        values = dict(self.values)
        if "width" in values:
            values["size"] = f"{values.pop('width')}x{values.pop('height')}"
        if "frames" in values and self.estimate.job.controls:
            values["chunk_frames"] = values.pop("frames")
        names = ("placement", "format", "size", "frames", "chunk", "chunk_frames", "tile")
        return " ".join(f"`{name}` {values[name]}" for name in names if name in values)


def nearest(
    estimate: Estimate, room: Room, formats: Mapping[str, bool] = NO_CHOICE, *, unpacks: bool = False
) -> list[Change]:
    """The changes that make a job fit, the least harmful first: the largest tile, the widest of the
    weights' `formats`, the next smaller size, the longest clip; each after the first with a tile if it takes one, and
    the last two in the narrowest format if the weights alone do not fit otherwise. Empty if nothing does.

    `formats` say whether a row widens them. That saves memory alone, so of these only such count as are narrower than
    all others. `unpacks`: eager torch does the products in all of them."""
    job, widest_first = estimate.job, _widest_first(estimate, formats, unpacks)
    tiled = _fitting(estimate, {}, room, _tilings(job))
    quantized = (_fitting(changed, {}, room, _tilings(job)) for changed in widest_first)
    found = [tiled, next(filter(None, quantized), None)]
    bases = [
        base
        for base in (estimate, *widest_first[-1:])
        if max(stage.least for stage in base.stages) <= room.beside_host(base)
    ]
    for kind in (_sizes(job), _lengths(job)) if bases else ():
        tilings = [] if tiled else _tilings(job)
        fitting = (_fitting(bases[0], values, room, tilings) for values in kind)
        found.append(next(filter(None, fitting), None))
    return [change for change in found if change]


def _widest_first(estimate: Estimate, formats: Mapping[str, bool], unpacks: bool) -> list[Estimate]:
    """The job in each of these formats of the weights that is narrower than the one it has."""

    def width(name: str) -> float:
        return weight_bytes(estimate.dtype, estimate.known.get(name), estimate.config.hidden_size)

    now = width(estimate.format)
    least = min((width(name) for name, widens in formats.items() if not widens), default=now)
    narrower = [name for name, widens in formats.items() if width(name) < (min(now, least) if widens else now)]
    return [
        replace(estimate, formats={**estimate.formats, "pack_linear": name}, unpacks=unpacks, widens=formats[name])
        for name in sorted(narrower, key=width, reverse=True)
    ]


def _fitting(estimate: Estimate, values: dict[str, Any], room: Room, tilings: list[dict[str, Any]]) -> Change | None:
    """The job with these values, with the first of the tilings that it needs, or None."""
    changed = replace(estimate, job=replace(estimate.job, **values))
    if any(stage.peak > room.beside_host(changed) for stage in changed.stages if stage.name != "decode"):
        return None
    larger_side = max(changed.job.width, changed.job.height)
    for tile in ({}, *(tile for tile in tilings if tile["tile"] < larger_side)):
        tiled = replace(changed, job=replace(changed.job, **tile))
        if not lack_as_it_is(tiled, room):
            format = {} if changed.format == "none" else {"format": changed.format}
            return Change(format | values | tile, tiled)
    return None


def _tilings(job: Job) -> list[dict[str, Any]]:
    return [{"tile": tile} for tile in tiles(job)]


def _sizes(job: Job) -> list[dict[str, Any]]:
    """The tiers below the job's size, of the aspect ratio nearest to its."""
    sizes = [tier[_aspect(job)] for tier in TIERS.values()]
    # A tile no smaller than the picture is refused.
    smaller = {size for size in sizes if size[0] * size[1] < job.width * job.height and (job.tile or 0) < max(size)}
    return [{"width": w, "height": h} for w, h in sorted(smaller, reverse=True)]


def _aspect(job: Job) -> str:
    def distance(aspect: str) -> float:
        across, down = map(int, aspect.split(":"))
        return abs(across / down - job.width / job.height)

    return min(TIERS["256"], key=distance)


def _lengths(job: Job) -> list[dict[str, Any]]:
    shortest = max(SHORTEST, job.input_frames + TEMPORAL_COMPRESSION)
    return [
        {"frames": frames} for frames in range(job.frames - TEMPORAL_COMPRESSION, shortest - 1, -TEMPORAL_COMPRESSION)
    ]
