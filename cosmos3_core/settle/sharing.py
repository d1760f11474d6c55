"""How several devices share a request: as the estimate has it, for what is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..contract import Ceiling
from ..plan import Plan
from ..plan.cost.fit import Estimate
from ..plan.cost.placing import Room, lack
from ..plan.cost.units import ceiling_of, gib
from ..plan.mesh import Layout, Shared
from .objectives import MEMORY, OBJECTIVES, THROUGHPUT

NAMED, MOST_APART = 4, 24
"""Alternatives that are named to people, and meshes with a pipeline or split layers that are looked at."""
Place = Callable[[Layout], tuple[Estimate, tuple[str, ...], Room]]
"""A layout to the estimate of the request in it, why parts are not placed otherwise, and the room that there is."""


@dataclass(frozen=True)
class Alternative:
    """A layout, the seconds of a run in it (None where they are not known), the bytes of a device at most, and what
    there is too little of for it ("": of nothing)."""

    layout: Layout
    seconds: float | None
    peak: int
    lacks: str

    def __str__(self) -> str:
        time = "" if self.seconds is None else f"{self.seconds:.3g} s, "
        return f"{self.layout} {time}{gib(self.peak)}{' (does not fit)' if self.lacks else ''}"

    def to_json(self) -> dict[str, Any]:
        return {"layout": str(self.layout), "seconds": self.seconds, "peak": self.peak, "lacks": self.lacks}


def shared_out(devices: int, objective: str, shared: Shared, plan: Plan, place: Place) -> tuple[list[Alternative], str]:
    """How so many devices may share a request, the best for an objective first, and why that is. Layers are split, or
    follow each other in a pipeline, where nothing else fits, or where memory is to be the least; and no layers in a
    format are split, which not every one can be."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0] if objective == THROUGHPUT else [devices]
    meshes = [one for size in sizes for one in shared.layouts(size)]
    plain = [one for one in meshes if one.apart == 1]
    apart = [one for one in meshes if one.apart > 1 and (one.tensor == 1 or plan.format == "none")]
    ceiling = ceiling_of(plan.backend, plan.device)
    found = _estimated(plain, shared, place, ceiling)
    if objective == MEMORY or not found or all(one.lacks for one in found):
        found += _estimated(apart[:MOST_APART], shared, place, ceiling)
    return chosen(found, devices, objective)


def _estimated(meshes: Iterable[Layout], shared: Shared, place: Place, ceiling: Ceiling | None) -> list[Alternative]:
    """Each mesh with what may lie beside it."""
    found = []
    for layout in (one for mesh in meshes for one in beside(mesh, shared)):
        estimate, _, room = place(layout)
        seconds = estimate.seconds(ceiling)
        found.append(Alternative(layout, seconds["total"] if seconds else None, estimate.peak, lack(estimate, room)))
    return found


def beside(mesh: Layout, shared: Shared) -> Iterator[Layout]:
    """A mesh, and all of its devices sharing weights out, and as many as can be the rows of pictures."""
    rows = max(count for count in range(1, mesh.size + 1) if mesh.size % count == 0 and count <= shared.rows)
    for hsdp in sorted({1, mesh.size // mesh.apart}):
        yield replace(mesh, hsdp=hsdp, vae=rows)


def chosen(found: list[Alternative], devices: int, objective: str) -> tuple[list[Alternative], str]:
    """The best for an objective first, of equal ones that which was first; and why. One that fits comes before any that
    does not, and where times are not known the first one does, which exchanges least."""

    def rank(one: Alternative) -> tuple[bool, float]:
        if objective == MEMORY:
            return bool(one.lacks), one.peak
        beside = devices // one.layout.size if objective == THROUGHPUT else 1
        return bool(one.lacks), 0.0 if one.seconds is None else one.seconds / beside

    ordered = sorted(found, key=rank)
    best = ordered[0]
    why = f"of {devices} devices, {OBJECTIVES[objective]}: {str(best).removeprefix(f'{best.layout} ')}"
    if best.seconds is None:
        why += ", and times are not known here, so that which exchanges least"
    if best.layout.size < devices:
        why += f"; {devices // best.layout.size} such runs go beside each other"
    if others := ordered[1 : NAMED + 1]:
        why += f"; instead: {'; '.join(map(str, others))}"
    return ordered, why
