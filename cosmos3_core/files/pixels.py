"""The numbers of an opened picture as 8-bit sRGB: profiles, depths, palettes and alpha."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from .colour import are_srgb, from_primaries

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageCms

GREY = ("1", "L", "LA", "La")
DEEP = ("I", "F")
"""Modes of 32 bits; those of 16 begin with I;16."""
PHOTOMETRIC, BITS = 262, 258
"""TIFF tags: whether 0 is white, and bits per sample."""
SQUARE = 0.01
"""By which a pixel's sides may differ without a note."""
MOST_DENSE = 1e6
"""Pixels of an inch; what says more is damaged."""
SRGB_GAMMA = 0.45455
"""In the gAMA chunk of a PNG."""


def in_srgb(image: Image.Image, facts: dict[str, Any], notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """An RGB image and its alpha ("L", or None without one). Adds to `facts` what was found and to `notes` what was
    assumed or visibly changed. Raises ValueError for numbers without a known range."""
    from PIL import ImageCms

    profile, alpha = image.info.get("icc_profile"), None
    if image.mode.startswith("I;16") or image.mode in DEEP:
        image, alpha = _shallow(image, facts, notes)
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
    if image.mode in GREY:
        image = image.convert("L")
    elif image.mode not in ("CMYK", "LAB"):
        # By way of RGBA, where a palette has entries with alpha.
        image = (image.convert("RGBA") if alpha else image).convert("RGB")
    if profile:
        return _through_profile(image, profile, facts, notes), alpha
    if image.mode == "LAB":
        return _transformed(image, ImageCms.createProfile("LAB")), alpha
    if image.mode == "CMYK":
        notes.append("the picture is CMYK without a profile: its colours are a guess")
    grey, image = image.mode == "L", image.convert("RGB")
    gamma = image.info.get("gamma")
    if not grey and "srgb" not in image.info and (converted := _from_chromaticities(image, gamma, facts, notes)):
        return converted, alpha
    if gamma and "srgb" not in image.info and abs(gamma - SRGB_GAMMA) > 0.01:
        return _from_gamma(image, gamma, facts, notes), alpha
    return image, alpha


def _through_profile(image: Image.Image, profile: bytes, facts: dict[str, Any], notes: list[str]) -> Image.Image:
    """By the embedded ICC profile. One that cannot be used leaves the numbers as they are, with a note."""
    import numpy as np
    from PIL import ImageChops, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        name = facts["icc_profile"] = ImageCms.getProfileDescription(source).strip()[:80]
        if source.profile.xcolor_space.strip() == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        converted = _transformed(image, source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        facts["icc_profile"] = f"unusable ({error})"
        notes.append("the picture's colour profile cannot be used: its colours are taken as sRGB")
        return image.convert("RGB")
    plain = image.convert("RGB")
    largest = int(np.asarray(ImageChops.difference(plain, converted)).max())
    if image.mode != "CMYK" and largest <= 1:  # sRGB itself, or as good as
        return plain
    facts["converted_to"] = "sRGB"
    notes.append(f"the picture's colours were converted from {name!r} to sRGB")
    return converted


def _transformed(image: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    """From a profile to sRGB. Raises PyCMSError where the profile does not fit the picture's mode."""
    from PIL import ImageCms

    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, srgb, image.mode, "RGB", intent, flags).apply(image)


def _from_gamma(image: Image.Image, gamma: float, facts: dict[str, Any], notes: list[str]) -> Image.Image:
    """By the gAMA chunk of a PNG: a sample is light to the power of `gamma`."""
    facts |= {"gamma": gamma, "converted_to": "sRGB"}
    notes.append(f"the picture's colours were converted from gamma {gamma:g} to sRGB")
    light = [(value / 255) ** (1 / gamma) for value in range(256)]
    srgb = [12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in light]
    return image.point([round(255 * value) for value in srgb] * 3)


def _from_chromaticities(
    image: Image.Image, gamma: float | None, facts: dict[str, Any], notes: list[str]
) -> Image.Image | None:
    """By the cHRM chunk of a PNG; None without one, and of one that says sRGB or cannot be used."""
    import numpy as np
    from PIL import Image

    if len(found := image.info.get("chromaticity") or ()) != 8:
        return None
    white, red, green, blue = zip(found[::2], found[1::2], strict=True)
    facts["primaries"] = [list(place) for place in (red, green, blue, white)]
    if are_srgb(primaries := (red, green, blue, white)):
        return None
    try:
        pixels = from_primaries(np.asarray(image), primaries, gamma)
    except ValueError:
        notes.append("the picture's primaries (cHRM) cannot be used: its colours are taken as sRGB")
        return None
    facts["converted_to"] = "sRGB"
    notes.append("the picture's colours were converted from primaries of its own (cHRM) to sRGB")
    return Image.fromarray(pixels)


def whole_range(pixels: np.ndarray) -> np.ndarray:
    """uint8 from 16 (black) to 235 (white) as uint8 over the full range."""
    import numpy as np

    return ((pixels.astype(np.float32) - 16) * (255 / 219)).round().clip(0, 255).astype(np.uint8)


def note_aspect(image: Image.Image, facts: dict[str, Any], notes: list[str]) -> None:
    """What the file says of the shape of its pixels (pHYs, JFIF, a TIFF's resolution), where they are not square:
    picture viewers show them square, and so are they taken."""
    found = image.info.get("aspect") or image.info.get("dpi") or image.info.get("jfif_density") or (1, 1)
    across, down = (round(float(value), 2) for value in found)
    if not (0 < across < MOST_DENSE and 0 < down < MOST_DENSE) or abs(down / across - 1) < SQUARE:
        return
    facts["pixel_density"] = [across, down]
    notes.append(f"the picture says that its pixels are not square ({across:g} x {down:g}): they are taken as square")


def _shallow(image: Image.Image, facts: dict[str, Any], notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 or 32 bits as 8 bits ("L"), and the alpha of the one value that stands for nothing, if any."""
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and tags.get(BITS) == (32,) and tags.get(339, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow holds them as signed
    white = facts["white"] = _white(image, values)
    if image.mode in DEEP:
        notes.append(f"the picture's 32-bit values are taken to reach from 0 (black) to {white:,} (white)")
    alpha = None
    if isinstance(clear := image.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    grey = (values * (255 / white)).round().astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # Pillow turns 8 bits round and no others
        grey = 255 - grey
    return Image.fromarray(grey), alpha


def _white(image: Image.Image, values: np.ndarray) -> float:
    """The value of white. 32 bits say nothing of it: it is the end of the smallest usual range that holds them."""
    if image.mode.startswith("I;16"):
        return 4095 if getattr(image, "tag_v2", {}).get(BITS) == (12,) else 65535
    if image.format == "PPM":
        return 65535  # scaled so by Pillow
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255, 65535) if image.mode == "F" else (255, 65535, 2**31 - 1, 2**32 - 1)
    for white in ranges:
        if 0 <= low and high <= white:  # and not for NaN
            return white
    raise ValueError(f"its 32-bit values, from {low:g} to {high:g}, have no known range; save it with 8 or 16 bits")
