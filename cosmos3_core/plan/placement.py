"""Where the parts of a model lie while it runs: on the device, on the host, in files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from ..contract import InputError
from ..spelling import did_you_mean, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

RESIDENT, STAGED, STREAMED, DISK = "resident", "staged", "streamed", "disk"
MEANING = {
    RESIDENT: "on the device, beside the others and for the next request",
    STAGED: "on the device while it is used, and then no longer",
    STREAMED: "in host memory, layer by layer through the device",
    DISK: "in the checkpoint's files, layer by layer through the device",
}
"""Ways to place a part, the one that takes most of the device first."""
LAYERED = (STREAMED, DISK)
"""Those in which layers pass through the device."""
TOWERS = ("understanding", "generation")
"""Parts that have layers."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "understanding": tuple(MEANING),
    "generation": tuple(MEANING),
    "codecs": (RESIDENT, STAGED),
}
"""How each part may be placed: the text tower, the media tower, and the halves of the VAE and of the sound codec."""


@dataclass(frozen=True)
class Placement:
    """Each part's way."""

    understanding: str = STAGED
    generation: str = STAGED
    codecs: str = STAGED

    @classmethod
    def alike(cls, way: str) -> Placement:
        """Every part placed in one way."""
        return cls(way, way, way)

    def of(self, component: str) -> str:
        """A component's way, by its name in the pool or a part's."""
        found: str = getattr(self, component if component in PARTS else "codecs")
        return found

    def with_parts(self, named: Mapping[str, str]) -> Placement:
        """This one, with some parts placed as they are `named`."""
        return replace(self, **named)

    @property
    def captures(self) -> bool:
        """Whether passes may be recorded: weights then lie where they lay."""
        return self.generation not in LAYERED

    @property
    def stays(self) -> bool:
        """Whether any part is there for the next request."""
        return bool({RESIDENT, STREAMED} & {self.understanding, self.generation, self.codecs})

    def __str__(self) -> str:
        """As `typed` reads it."""
        return ",".join(f"{part}={way}" for part, way in asdict(self).items())


OFFLOADED = f"understanding={STREAMED},generation={STREAMED}"
"""Both towers, as `typed` reads it."""
ALL_RESIDENT, ALL_STAGED = Placement.alike(RESIDENT), Placement.alike(STAGED)


def typed(text: str) -> dict[str, str]:
    """PART=WAY, several with commas between. Raises InputError."""
    named: dict[str, str] = {}
    for word in text.split(","):
        part, equals, way = (piece.strip() for piece in word.partition("="))
        asked = f"`placement` {text}"
        if not equals:
            next_step = f"Type {next(iter(PARTS))}={DISK}; parts are {', '.join(PARTS)}"
            raise InputError(asked, f"{shown(word)} is not PART=WAY", next_step, "placement")
        if part in named:
            raise InputError(asked, f"{part} is placed twice", "Keep one of them", "placement")
        if part not in PARTS:
            next_step = did_you_mean(part, PARTS, f"Parts are {', '.join(PARTS)}")
            raise InputError(asked, f"the model has no part {shown(part)}", next_step, "placement")
        if way not in PARTS[part]:
            next_step = did_you_mean(way, PARTS[part], f"It can be {', '.join(PARTS[part])}")
            raise InputError(asked, f"{part} cannot be placed {shown(way)}", next_step, "placement")
        named[part] = way
    return named


def candidates(resident: bool, named: Mapping[str, str], *, unified: bool) -> Iterator[Placement]:
    """Placements with the `named` parts as they are named, the one that costs least time first. With `resident` what is
    loaded stays where that is possible. Of a device whose memory is the host's (`unified`) nothing lies on the host."""
    tries = [ALL_RESIDENT] if resident else []
    if resident:
        tries += [Placement(STREAMED, RESIDENT, RESIDENT), Placement(DISK, RESIDENT, RESIDENT)]
        tries += [Placement(DISK, RESIDENT, STAGED)]
    tries += [ALL_STAGED, Placement(DISK, STAGED, STAGED)]
    tries += [Placement(DISK, STREAMED, STAGED), Placement(DISK, DISK, STAGED)]
    seen = set()
    for one in tries:
        if unified and STREAMED in (one.understanding, one.generation):
            continue
        if (placed := one.with_parts(named)) not in seen:
            seen.add(placed)
            yield placed
