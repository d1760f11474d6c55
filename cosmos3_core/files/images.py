"""Pictures in and out, as uint8 RGB arrays [H, W, 3]; what is written is a PNG that was read back."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..contract import InputError
from .atomic import atomic
from .frames import check_frame, flat_error, is_flat, read_back_error

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

IMAGE_SUFFIX = ".png"


def read_image(source: Path | bytes) -> np.ndarray:
    """The picture in a file, or in a file's bytes, by the rule of `upright_rgb`.

    Raises InputError if the file cannot be read, is no picture, is broken or is too large to be safe to decode.
    """
    from PIL import Image, UnidentifiedImageError

    asked = f"reading {source if isinstance(source, Path) else f'a picture of {len(source)} bytes'}"
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as file:
            return upright_rgb(file)
    except UnidentifiedImageError:
        found = "the file is not a picture Pillow can read"
    except OSError as error:
        found = f"the picture cannot be read ({error.strerror or error})"
    except Exception as error:  # Pillow's readers let anything through on a broken file: SyntaxError, struct.error...
        found = f"the picture cannot be read ({error})"
    raise InputError(asked, found, "Pass a whole PNG, JPEG or WebP file")


def upright_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], turned upright by its EXIF orientation; transparent parts are put on white, as picture viewers
    show them. Of an animation the first frame; 16-bit grey is scaled to 8 bits. Raises what Pillow raises, and
    ValueError for values without a known range."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # convert() would clip these at 255: a depth map would turn white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit values have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def write_image(path: Path, frame: np.ndarray, metadata: dict[str, str]) -> None:
    """Writes a uint8 [H, W, 3] picture to a .png with `metadata` as text chunks (keys: 1 to 79 Latin-1 characters).

    Raises InputError if the disk is full or the folder cannot be written to, and RunError if the picture is one flat
    colour or does not read back. Then nothing is left behind and an older file at `path` is untouched.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    check_frame(frame)
    if is_flat(frame):
        raise flat_error(path)
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_text(key, value)
    with atomic(path) as temp:
        # Level 6, the default, takes two to five times as long for a sixth less.
        Image.fromarray(frame).save(temp, format="PNG", pnginfo=info, compress_level=1)
        try:
            same = np.array_equal(read_image(temp), frame) and read_metadata(temp) == metadata
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
