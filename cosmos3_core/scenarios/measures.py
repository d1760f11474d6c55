"""The size and the length that another program's request asks for, out of the many keys that may say them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..contract import InputError
from ..model.config import TEMPORAL_COMPRESSION
from ..spelling import shown
from .aliases import known
from .conversion import Work, number_of
from .fields import FIELDS
from .kinds import size_spelled
from .sizes import TIERS, parse_size
from .transfer import hints_of

SIDES = ("width", "height", "resolution", "aspect_ratio")
ROUNDING: dict[str, Callable[[float], int]] = {"F": math.ceil, "V": math.ceil, "O": math.ceil, "S": math.floor}
"""What a program makes of a number of frames that is not 4k+1; the others refuse it."""
FPS = 24
SHORTEST = 1 + TEMPORAL_COMPRESSION
"""Frames of a clip; 1 is a picture."""
ROUNDED = 0.5
"""Seconds by which a length in whole seconds is off beside a number of frames."""
MOST = 1e6
"""Frames or seconds above any that a request can have."""


def sides(work: Work, keys: dict[str, Any]) -> None:
    """The size out of the keys that say one side, a tier or an aspect ratio."""
    said = {name: number_of(keys[name]) for name in SIDES if keys.get(name) is not None}
    if keys.get("size") == "auto":
        work.drop("size auto", "the profile's size")
        keys.pop("size")
    elif keys.get("size") is not None:
        _agree(work, "size", keys["size"], said)
        return
    width, height, tier, aspect = (said.get(name) for name in SIDES)
    if width is not None and height is not None:
        work.given["size"] = f"{width}x{height}"
        _agree(work, "width and height", work.given["size"], {k: said[k] for k in SIDES[2:] if k in said})
        said = {"width": width, "height": height}
    elif width is not None or height is not None:
        work.wrong.append("one of width and height alone is no size: give both")
    elif tier is not None:
        shape = aspect or ("16:9" if work.owner == "N" and "_" not in str(tier) else None)
        work.given["size"] = f"{str(tier).removesuffix('p')}p:{shape}" if shape else str(tier)
    elif aspect is not None:
        work.wrong.append("aspect_ratio alone is no size: give resolution too, such as 720")
    if "size" in work.given:
        work.said.append(f"{', '.join(said)} → size {work.given['size']}")


def _agree(work: Work, key: str, size: Any, said: Mapping[str, Any]) -> None:
    """Other keys beside the one that has the size: they say the same, or there is no telling what is wanted."""
    sizes = _sizes(size)
    for name, value in said.items():
        if name in SIDES[:2]:
            sides = [pair for pair in sizes if pair[SIDES.index(name)] == value]
        elif name == "resolution":
            sides = [pair for pair in sizes if pair in _sizes(value)]
        else:
            sides = [pair for pair in sizes if _has_aspect(pair, value)]
        if sides or not sizes:  # a size that is none has an error of its own
            work.drop(name, f"{key} {'say' if ' and ' in key else 'says'} it")
        else:
            work.wrong.append(f"{key} {shown(size)} and {name} {shown(value)} do not agree")
        sizes = sides or sizes


def _sizes(size: Any) -> list[tuple[int, int]]:
    """(width, height) of every size that these words may mean; none where they are none."""
    try:
        text = size_spelled(str(size))
        tier = text.strip().removesuffix("p")
        return list(TIERS[tier].values()) if tier in TIERS else [parse_size(text, "")]
    except InputError:
        return []


def _has_aspect(size: tuple[int, int], aspect: Any) -> bool:
    """Whether a size has this aspect ratio: a tier's is its own, 832x480 being 16:9."""
    sides = re.fullmatch(r"\s*(\d{1,4})\s*[:,/_x]\s*(\d{1,4})\s*", str(aspect))
    if sides is None:
        return False
    tiers = [tier.get(f"{sides[1]}:{sides[2]}") for tier in TIERS.values()]
    return size in tiers or size[0] * int(sides[2]) == size[1] * int(sides[1])


def frames_of(work: Work, keys: Mapping[str, Any]) -> None:
    """The number of frames: where seconds are given, of that many; where it is not 4k+1, what their program takes."""
    rows = {key: row for key in keys if key not in FIELDS and (row := known(key)) and row.means == "frames"}
    counts = {key: number_of(keys[key]) for key in rows if keys[key] is not None}
    lasting = [key for key in counts if key in ("seconds", "duration")]
    beside = {key: counts.pop(key) for key in lasting} if len(counts) > len(lasting) else {}
    for key, count in counts.items():
        possible = isinstance(count, int | float) and not isinstance(count, bool) and 0 < count <= MOST
        if not possible or (count < 1 and key not in lasting):
            work.wrong.append(
                f"{key} = {shown(keys[key])}: it is no number of {'seconds' if key in lasting else 'frames'}"
            )
            continue
        rate = work.given.get("fps", FPS)
        if key in lasting and not (isinstance(rate, int | float) and 0 < rate <= MOST):
            continue  # fps has an error of its own
        whole = int(count * rate) if key in lasting else int(count)
        rounded = ROUNDING.get(work.owner, math.ceil if key in lasting else None)
        if hints_of(work.given) and key not in lasting:  # a limit then, which need not be 4k+1
            rounded = None
        number = rounded((whole - 1) / TEMPORAL_COMPRESSION) * TEMPORAL_COMPRESSION + 1 if rounded else whole
        if key in lasting and number < SHORTEST:
            work.wrong.append(f"{key} = {shown(keys[key])}: at {rate:g} fps a clip has at least {SHORTEST} frames")
            continue
        work.put(key, "frames", number)
        if key != "frames" and number != count:
            work.said[-1] += f" {number}"
    for key, seconds in beside.items():
        _lasts(work, key, seconds)


def _lasts(work: Work, key: str, seconds: Any) -> None:
    """Seconds beside a number of frames, which has more to say: whole seconds are rounded."""
    frames, rate = work.given.get("frames"), work.given.get("fps", FPS)
    if not all(isinstance(number, int | float) and 0 < number <= MOST for number in (frames, rate)):
        return  # these have errors of their own
    off = abs(frames / rate - seconds) if isinstance(seconds, int | float) and seconds <= MOST else MOST
    if off <= ROUNDED:
        work.drop(key, "the number of frames says it")
    else:
        work.wrong.append(f"{key} {shown(seconds)} and {frames} frames at {rate:g} a second do not agree")
