"""Pictures in and out, as uint8 sRGB arrays [H, W, 3]; what is written is a PNG that was read back."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from .atomic import atomic
from .colour import TRANSFERS, WIDE, to_srgb, told
from .frames import Reading, check_frame, flat_error, is_flat, read_back_error
from .pixels import in_srgb, note_aspect, whole_range
from .sources import called, head_of, open_source

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

IMAGE_SUFFIX = ".png"
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What is opened, by Pillow's names. Its other readers stay shut: one of them would start Ghostscript."""
NEXT_STEP = "Pass a whole PNG, JPEG or WebP file"
PAGES = ("MPO", "TIFF")
"""Formats whose further pictures are no animation: a phone's previews, or pages."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What the first box of a HEIC file says that it is."""
ORIENTATION = 0x0112
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What turns a picture of an EXIF orientation upright, by Pillow's names."""


def read_image(source: Path | bytes) -> Reading:
    """The picture in a file, or in a file's bytes, as it is meant to be seen: one uint8 sRGB frame
    [1, H, W, 3], upright; of an animation the first.

    Raises InputError if the file cannot be read, is no picture of `FORMATS` (or HEIC, where pillow-heif is installed),
    is broken or is too large to be safe to decode.
    """
    notes: list[str] = []
    with opened(source, notes) as file:
        if getattr(file, "is_animated", False) and file.format != "MPO":  # there the others are a phone's previews
            notes.append(f"{called(source)} is an animation or has several pages: its first picture is taken")
        reading = decoded(file, head_of(source, f"reading {called(source)}", NEXT_STEP))
    return Reading(reading.frames, {"file": called(source)} | reading.facts, (*notes, *reading.notes))


def decoded(image: Image.Image, head: bytes = b"") -> Reading:
    """An opened picture as uint8 sRGB [1, H, W, 3]: turned upright by its EXIF orientation, its ICC profile applied,
    deep grey scaled to 8 bits, transparent parts on white, as picture viewers show them. `head` is how its file begins,
    where there is one: Pillow does not know of HDR. Raises ValueError where its numbers have no known meaning, and what
    Pillow raises for broken data."""
    import numpy as np
    from PIL import Image

    facts: dict[str, Any] = {"format": image.format, "mode": image.mode, "width": image.width, "height": image.height}
    notes: list[str] = []
    try:
        image.getexif()
    except Exception as error:  # Pillow's reader lets anything through, as of a file; viewers show the picture
        image.info.pop("exif", None)
        notes.append(f"the picture's EXIF data is damaged ({error}): it is taken as upright")
    if _turn(image):
        facts["exif_orientation"] = image.getexif()[ORIENTATION]
    note_aspect(image, facts, notes)
    coded, tagged = None if image.info.get("icc_profile") and image.format != "PNG" else _coded(head), _cicp(head)
    if coded:
        image.info.pop("icc_profile", None)  # which a PNG's own tag overrules
    for overruled in ("gamma", "chromaticity") if tagged else ():
        image.info.pop(overruled, None)
    colours, alpha = in_srgb(image, facts, notes)
    if "icc_profile" not in facts and _by_adobe(image):
        notes.append("the picture says that it is in Adobe RGB and has no profile: its colours are taken as sRGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        notes.append("the picture's transparent parts are put on white")
        colours.putalpha(alpha)
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    if turn := _turn(image):  # a TIFF is upright once its pixels are read
        colours = colours.transpose(Image.Transpose[turn])
    pixels = np.array(colours)[None]
    if tagged and tagged[3] == 0:
        pixels, facts["range"] = whole_range(pixels), "limited"
        notes.append("the picture's values reach from 16 to 235 (cICP): stretched to the full range")
    if coded:
        primaries, transfer = coded
        pixels = to_srgb(pixels.astype(np.uint16) * 257, transfer, primaries)
        facts |= {"transfer": TRANSFERS.get(transfer, "SDR"), "primaries": WIDE.get(primaries, "BT.709")}
        notes.append(told("picture", transfer, primaries))
    return Reading(pixels, facts, tuple(notes))


def _turn(image: Image.Image) -> str | None:
    """What turns the picture upright, by its EXIF data."""
    orientation = image.getexif().get(ORIENTATION)
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _by_adobe(image: Image.Image) -> bool:
    """Whether a camera says that it wrote Adobe RGB: R03 in the interoperability part of the EXIF data."""
    from PIL import ExifTags

    try:
        return image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == "R03"
    except KeyError:  # from Pillow before 13, where there is no such part
        return False


@contextmanager
def opened(source: Path | bytes, notes: list[str]) -> Iterator[Image.Image]:
    """An open picture. What Pillow raises while it is open becomes an InputError that names the file, and what it warns
    of a note."""
    from PIL import Image, UnidentifiedImageError

    asked, next_step = f"reading {called(source)}", NEXT_STEP
    formats = _formats(head_of(source, asked, next_step), asked)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            # Below the size that Pillow refuses, a picture is only large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_source(source) as file, Image.open(file, formats=formats) as image:
                yield image
        notes += dict.fromkeys(f"{called(source)}: {warning.message}" for warning in warned)
        return
    except InputError:
        raise
    except UnidentifiedImageError:
        found = f"the file is not a picture of a kind that is read ({', '.join(FORMATS)})"
    except Image.DecompressionBombError as error:
        found, next_step = f"the picture is too large ({error})", "Scale it down first: 4096 pixels a side are plenty"
    except OSError as error:
        found = f"the picture cannot be read ({error.strerror or error})"
    except Exception as error:  # Pillow's readers let anything through on a broken file: SyntaxError, struct.error...
        found = f"the picture cannot be read ({error})"
    raise InputError(asked, found, next_step)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a still or animated picture, for Pillow to read. Not of a JPEG, which may begin
    a clip."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or re.match(rb"P[1-6]\s", head) is not None
        or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
        or brand in (b"avif", b"avis", *HEIC_BRANDS)
    )


def durations(picture: Image.Image) -> dict[int, float]:
    """The seconds that each picture of an animation is shown, by its number. A PNG's first picture may be for those
    who cannot play it; of `PAGES` the first is all. No duration to speak of is a tenth of a second, as in browsers."""
    first = 1 if getattr(picture, "default_image", False) else 0
    found: dict[int, float] = {}
    for index in count(first):  # the format's own count fails on a file that is cut off
        try:
            picture.seek(index)
            picture.load()  # some formats know a duration only then
        except Exception:  # EOFError at the end; anything, where the file is broken: then it is what there is of it
            if not found:
                raise
            break
        shown = picture.info.get("duration", 0) or 0
        found[index] = shown / 1000 if shown > 10 else 0.1
        if picture.format in PAGES:
            break
    return found


def _coded(head: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) by H.273 of a PNG (cICP), AVIF or HEIC (nclx), where they are not near sRGB's. A file with
    several pictures of different coding, as one with a gain map, shows the plain one."""
    if head.startswith(b"\x89PNG"):
        tagged = _cicp(head)
        found = {(tagged[0], tagged[1])} if tagged else set()
    else:
        parts = head.split(b"colrnclx")[1:] if head[4:8] == b"ftyp" else []
        found = {struct.unpack(">2H", part[:4]) for part in parts if len(part) > 3}
    if len(found) != 1:
        return None
    primaries, transfer = found.pop()
    return (primaries, transfer) if transfer in TRANSFERS or primaries in WIDE else None


def _cicp(head: bytes) -> bytes | None:
    """The four bytes of a PNG's cICP chunk: primaries, transfer, matrix and whether the values are of full range."""
    _, chunk, rest = head.partition(b"IDAT")[0].partition(b"cICP")
    return rest[:4] if head.startswith(b"\x89PNG") and chunk and len(rest) > 3 else None


def _formats(head: bytes, asked: str) -> tuple[str, ...]:
    """The formats to try on a file that begins so; HEIC needs a library of its own."""
    if head[4:8] != b"ftyp" or head[8:12] not in HEIC_BRANDS or b"avif" in head[:64]:
        return FORMATS
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        found, next_step = "it is a HEIC picture, which Pillow alone does not read", "pip install pillow-heif"
        raise InputError(asked, found, f"{next_step}, or save it as JPEG or PNG") from None
    return (*FORMATS, "HEIF")


def write_image(path: Path, frame: np.ndarray, metadata: dict[str, str], *, overwrite: bool = True) -> None:
    """Writes a uint8 [H, W, 3] picture to a .png with `metadata` as text chunks (keys: 1 to 79 Latin-1 characters).

    Raises InputError if the disk is full or the folder cannot be written to, and RunError if the picture is one flat
    colour or does not read back. Then nothing is left behind and an older file at `path` is untouched, as it always is
    without `overwrite`.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    check_frame(frame)
    if is_flat(frame):
        raise flat_error(path)
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)
    with atomic(path, overwrite=overwrite) as temp:
        # Level 6, the default, takes two to five times as long for a sixth less.
        Image.fromarray(frame).save(temp, format="PNG", pnginfo=info, compress_level=1)
        try:
            same = np.array_equal(read_image(temp).frames[0], frame) and read_metadata(temp) == metadata
        except InputError as error:
            raise read_back_error(path, error.found) from error
        if not same:
            raise read_back_error(path, "its pixels or its metadata differ")


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored in a PNG file. Raises InputError if it cannot be read as one."""
    from PIL import Image, PngImagePlugin

    try:
        with Image.open(path, formats=("PNG",)) as image:
            texts = image.text if isinstance(image, PngImagePlugin.PngImageFile) else {}
            return {key: str(value) for key, value in texts.items()}
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a whole PNG file"
        raise InputError(f"reading {path}", reason, "Pass a picture this program wrote") from error
