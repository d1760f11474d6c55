"""Picture sizes: WIDTHxHEIGHT, or a resolution tier with an aspect ratio; docs/model.md, section 4.3."""

from __future__ import annotations

import math
import re

from ..contract import InputError
from ..model.config import SPATIAL_COMPRESSION
from ..spelling import shown

TIERS: dict[str, dict[str, tuple[int, int]]] = {
    "256": {"1:1": (256, 256), "4:3": (320, 256), "3:4": (256, 320), "16:9": (320, 192), "9:16": (192, 320)},
    "480": {
        **{"1:1": (640, 640), "4:3": (736, 544), "3:4": (544, 736), "16:9": (832, 480), "9:16": (480, 832)},
        "2:3": (512, 768),  # of NVIDIA's framework alone
    },
    "704": {"1:1": (960, 960), "4:3": (1088, 832), "3:4": (832, 1088), "16:9": (1280, 704), "9:16": (704, 1280)},
    "720": {"1:1": (960, 960), "4:3": (1104, 832), "3:4": (832, 1104), "16:9": (1280, 720), "9:16": (720, 1280)},
    "768": {"1:1": (1024, 1024), "4:3": (1184, 880), "3:4": (880, 1184), "16:9": (1360, 768), "9:16": (768, 1360)},
}
"""Width and height of each tier. A tier is a name: "256" at 16:9 is 320x192, not 256 pixels of anything."""

SMALLEST, LARGEST = 32, 4096
AUTO = re.compile(r"\s*(?:(\d+)p?:)?auto\s*|\s*auto(\d{2,4})\s*")
LONGEST_STEP = 32
"""Of which the sides of a size like auto512 are multiples: those of NVIDIA's framework where it edits pictures."""
FORMS = "Type WIDTHxHEIGHT such as 1280x720, or TIER:ASPECT such as 720p:16:9"


def parse_size(text: str, default_aspect: str) -> tuple[int, int]:
    """(width, height) in pixels of "1280x720", "720p:16:9", "720:16:9" or "720p" (then of `default_aspect`)."""
    asked = f"size {shown(text)}"
    if match := re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text):
        return check_size(int(match[1]), int(match[2]), asked)
    if match := re.fullmatch(r"\s*(\d+)p?(?::(\d+[:,/]\d+))?\s*", text):
        tier, aspect = match[1], re.sub("[,/]", ":", match[2] or default_aspect)
        if tier not in TIERS:
            raise InputError(asked, f"there is no tier {tier[:9]}p", f"Tiers are {', '.join(f'{t}p' for t in TIERS)}")
        if aspect not in TIERS[tier]:
            raise InputError(
                asked, f"there is no aspect ratio {aspect[:19]}", f"Aspect ratios are {', '.join(TIERS[tier])}"
            )
        return TIERS[tier][aspect]
    raise InputError(asked, "it is neither a size in pixels nor a tier", FORMS)


def without_input(text: str) -> str:
    """A size with auto in it, without that: for a run that has no input yet."""
    if (match := AUTO.fullmatch(text)) and match[2]:
        return f"{match[2]}x{match[2]}"
    return ":".join(part for part in text.split(":") if part != "auto")


def auto_size(text: str, source: tuple[int, int], default: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of "auto" or "720p:auto": of that tier, or of the one that `default` belongs to, the aspect
    nearest to that of the `source`. Of "auto512": as the `source`, with that longer side, both rounded down. Raises
    InputError for an unknown tier."""
    tier, longest = AUTO.fullmatch(text).groups()  # type: ignore[union-attr]
    if longest is not None:
        width, height = longest_side(source, int(longest))
        return check_size(width, height, f"size {text}")
    if tier is None:
        return keeping(source, default)
    parse_size(f"{tier}:1:1", "")  # raises for an unknown tier
    return _nearest(source, tier)


def longest_side(source: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) like the `source`'s, with this longer side, both rounded down to multiples of `LONGEST_STEP`
    (NVIDIA cosmos-framework 5eee9ed5, resize_pil_image)."""
    width, height = (max(side * longest // max(source) // LONGEST_STEP, 1) * LONGEST_STEP for side in source)
    return width, height


def keeping(source: tuple[int, int], like: tuple[int, int]) -> tuple[int, int]:
    """The size (width, height) that shows most of a `source`: of the tier of `like`, or, where that is a size of no
    tier, as large as it."""
    for tier, sizes in TIERS.items():
        if like in sizes.values():
            return _nearest(source, tier)
    aspect, area, step = source[0] / source[1], like[0] * like[1], SPATIAL_COMPRESSION
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    width, height = (min(max(round(side / step) * step, SMALLEST), LARGEST) for side in sides)
    return width, height


def _nearest(source: tuple[int, int], tier: str) -> tuple[int, int]:
    aspect = math.log(source[0] / source[1])
    return min(TIERS[tier].values(), key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


def check_size(width: int, height: int, asked: str) -> tuple[int, int]:
    """The same size, or InputError that names the nearest valid one."""
    step = SPATIAL_COMPRESSION
    nearest = [min(max((n + step // 2) // step * step, SMALLEST), LARGEST) for n in (width, height)]
    if [width, height] != nearest:
        raise InputError(
            asked,
            f"width and height must be multiples of {step} from {SMALLEST} to {LARGEST}",
            f"The nearest is {nearest[0]}x{nearest[1]}",
        )
    return width, height
