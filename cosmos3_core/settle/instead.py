"""What to ask for in the place of a request that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..plan.cost.fit import Estimate
from ..plan.cost.nearest import Change, nearest
from ..plan.cost.placing import Room
from ..plan.placement import Placement


def instead(
    asked: Estimate,
    room: Room,
    formats: Callable[[bool], Mapping[str, bool]],
    elsewhere: Iterable[Placement],
    *,
    acts: bool,
) -> list[Change]:
    """The changes that make it fit, the least harmful first, with a placement of those `elsewhere` where none does
    without. `formats` of the weights are those that kernels do, or with True those that eager torch does, which are
    among the changes where none of the others makes it fit. Who `acts` asked for actions, which frames are told in."""
    found = _nearest(asked, room, formats)
    for one in elsewhere if not found else ():
        changes = _nearest(replace(asked, placement=one), room, formats)
        if found := [replace(change, values={"placement": one, **change.values}) for change in changes]:
            break
    return [replace(change, values=_in_actions(change.values)) for change in found] if acts else found


def _nearest(asked: Estimate, room: Room, formats: Callable[[bool], Mapping[str, bool]]) -> list[Change]:
    """In one placement."""
    found = nearest(asked, room, formats(False))
    if any("format" in change.values for change in found):
        return found
    return nearest(asked, room, formats(True), unpacks=True)


def _in_actions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Frames as the actions between them: both at once contradict each other."""
    shorter = {"chunk": values["frames"] - 1} if "frames" in values else {}
    return {name: value for name, value in values.items() if name != "frames"} | shorter
