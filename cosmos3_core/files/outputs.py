"""A run's output by its name, whichever kind it is.

A run costs minutes, so an output is checked twice. Before it, `check_output` finds the reasons a file could not be
written. After it, the writers in `images` and `video` read their own file back and only then give it its final name: a
file that carries the name asked for is whole, plays, and shows what the model made.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ..contract import InputError
from . import images, video
from .atomic import check_writable, mode_at


def check_output(path: Path, clip: bool, *, overwrite: bool = True) -> None:
    """Raises InputError if a clip (`clip`) or a picture cannot be written to `path`: wrong suffix, a folder or device
    in its place, a file unless it may `overwrite` one, a missing or unwritable folder, or no H.264 encoder. Costs
    nothing next to loading weights."""
    asked = f"writing {path}"
    kind, suffix = ("clip", video.VIDEO_SUFFIX) if clip else ("picture", images.IMAGE_SUFFIX)
    another = "Choose another `output`"
    if stat.S_ISDIR(mode_at(path, another)):
        raise InputError(asked, "it is a folder", f"Pass a file name, such as `output` {path / 'out'}{suffix}")
    if path.suffix.lower() != suffix:
        found = f"this run makes a {kind}, which is written as {suffix}"
        raise InputError(asked, found, f"Pass `output` {path.with_suffix(suffix)}")
    check_writable(path, another, overwrite=overwrite)
    if clip:
        import av

        try:
            av.codec.Codec("libx264", "w")
        except av.codec.codec.UnknownCodecError:
            raise InputError(
                asked,
                "the installed PyAV has no H.264 encoder (libx264)",
                "Install the wheel that has one: pip install --force-reinstall --only-binary av av",
            ) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored in a .png or another media file, such as those given to `write_image` or `write_video`.

    Raises InputError if the file cannot be read as what its suffix says.
    """
    return (images if path.suffix.lower() == images.IMAGE_SUFFIX else video).read_metadata(path)
