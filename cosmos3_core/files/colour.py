"""Colours that are not sRGB, brought to it: HDR transfer functions and wide primaries, as whole-picture arithmetic.

Numbers of H.273 (the code points that files carry), BT.2100 (PQ, HLG), BT.2408 (reference white) and IEC 61966-2-1
(sRGB). HDR is shown as an SDR screen beside it would show it: reference white is white, and what is brighter is white
as well.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PQ, HLG = 16, 18
"""Transfer functions of HDR, by H.273's code points."""
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
"""Primaries that reach visibly further than sRGB's, by H.273's code points."""
REFERENCE_WHITE = 203.0
"""cd/m2 of white in an HDR picture, BT.2408."""
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
"""cd/m2 of the nominal display of an HLG picture, and its system gamma, BT.2100."""

Primaries = tuple[tuple[float, float], ...]
"""Chromaticities (x, y) of red, green, blue and white."""
_RED_GREEN_BLUE_WHITE: dict[str, Primaries] = {
    "BT.709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), (0.3127, 0.3290)),
    "BT.2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    "DCI-P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}


def to_srgb(rgb: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 [..., 3] over the full range to uint8 sRGB. `transfer` and `primaries` are H.273's code points; a
    transfer that is not HDR counts as sRGB's own, which is how players show it."""
    import numpy as np

    light = _linear(transfer)[rgb]
    if transfer == HLG:
        # The scene's light to the display's: each pixel by its luminance.
        luminance = light @ np.asarray([0.2627, 0.6780, 0.0593], np.float32)
        light *= (HLG_PEAK / REFERENCE_WHITE) * luminance[..., None] ** (HLG_GAMMA - 1)
    if primaries in WIDE:
        light = light @ _to_bt709(_RED_GREEN_BLUE_WHITE[WIDE[primaries]]).T
    return _encode()[(light.clip(0, 1) * 65535 + 0.5).astype(np.uint16)]


def told(what: str, transfer: int, primaries: int) -> str:
    """A sentence on what `to_srgb` did to a "picture" or "clip"."""
    if transfer not in TRANSFERS:
        return f"the {what}'s colours were converted from {WIDE[primaries]} to sRGB"
    name = TRANSFERS[transfer]
    return f"the {what} is HDR ({name}): converted to sRGB, and what is brighter than reference white is white"


@cache
def _linear(transfer: int) -> np.ndarray:
    """Light of each 16-bit value, float32 [65536]: 1 is SDR white; for HLG it is the scene's, 0 to 1."""
    import numpy as np

    value = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power = value ** (1 / m2)
        light = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) / REFERENCE_WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def _encode() -> np.ndarray:
    """The sRGB value of each of 65536 steps of light, uint8."""
    import numpy as np

    light = np.arange(65536) / 65535
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (value * 255 + 0.5).astype(np.uint8)


def are_srgb(primaries: Primaries) -> bool:
    """Whether they are sRGB's but for rounding."""
    pairs = zip(primaries, _RED_GREEN_BLUE_WHITE["BT.709"], strict=True)
    return all(abs(own - theirs) <= 0.005 for pair in pairs for own, theirs in zip(*pair, strict=True))


def from_primaries(rgb: np.ndarray, primaries: Primaries, gamma: float | None) -> np.ndarray:
    """uint8 [..., 3] of these primaries to uint8 sRGB. A sample is light to the power of `gamma`, or sRGB's for None.
    Raises ValueError for primaries that span no colours."""
    import numpy as np

    value = np.arange(256)
    light = (_linear(0)[value * 257] if gamma is None else (value / 255) ** (1 / gamma)).astype(np.float32)[rgb]
    light = light @ _to_bt709(primaries).T
    return _encode()[(light.clip(0, 1) * 65535 + 0.5).astype(np.uint16)]


@cache
def _to_bt709(primaries: Primaries) -> np.ndarray:
    """The matrix of linear light from these primaries to BT.709's, float32 [3, 3]; white stays white."""
    import numpy as np

    try:
        to_xyz = _to_xyz(primaries)
    except (ZeroDivisionError, np.linalg.LinAlgError):
        raise ValueError("these primaries span no colours") from None
    return (np.linalg.inv(_to_xyz(_RED_GREEN_BLUE_WHITE["BT.709"])) @ to_xyz).astype(np.float32)


def _to_xyz(primaries: Primaries) -> np.ndarray:
    """Linear light of some primaries to CIE XYZ; white has the coordinates of BT.709's white."""
    import numpy as np

    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    matrix = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
    white = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (_RED_GREEN_BLUE_WHITE["BT.709"][3],)]).T[:, 0]
    return np.diag(white / xyz[:, 3]) @ matrix
