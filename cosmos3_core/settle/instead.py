"""What to ask for in the place of a request that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..plan.cost.fit import Estimate
from ..plan.cost.nearest import Change, nearest
from ..plan.placement import candidates

if TYPE_CHECKING:
    from .settle import Settled


def instead(settled: Settled) -> list[Change]:
    """The changes that make it fit, the least harmful first. Formats that eager torch does are among them where no
    format that a kernel does makes it fit; another placement, where the one that was named leaves room for no smaller
    request either."""
    found, wish = _nearest(settled, settled.asked), settled.wish
    named = wish.named_parts or not wish.chooses
    if named and not (found or settled.lower):
        for one in candidates(False, {}, unified=settled.plan.device.unified):
            if changes := _nearest(settled, replace(settled.asked, placement=one)):
                found = [replace(change, values={"placement": one, **change.values}) for change in changes]
                break
    if settled.origin["frames"] != "chunk":
        return found
    return [replace(change, values=_in_actions(change.values)) for change in found]


def _nearest(settled: Settled, asked: Estimate) -> list[Change]:
    """In one placement."""
    found = nearest(asked, settled.room, settled.formats(unpacks=False))
    if any("format" in change.values for change in found):
        return found
    return nearest(asked, settled.room, settled.formats(unpacks=True), unpacks=True)


def _in_actions(values: Mapping[str, Any]) -> dict[str, Any]:
    """Frames as the actions between them, where these were asked for: both at once contradict each other."""
    shorter = {"chunk": values["frames"] - 1} if "frames" in values else {}
    return {name: value for name, value in values.items() if name != "frames"} | shorter
