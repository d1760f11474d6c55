"""A run's output by its name, whichever kind it is.

A run costs minutes, so an output is checked twice. Before it, `check_output` finds the reasons a file could not be
written. After it, the writers in `images` and `video` read their own file back and only then give it its final name: a
file that carries the name asked for is whole, plays, and shows what the model made.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ..contract import InputError
from . import action_tables, images, video
from .atomic import check_writable, mode_at


def check_output(path: Path, clip: bool, *, actions: bool = False, overwrite: bool = True) -> None:
    """Raises InputError if a clip (`clip`) or a picture cannot be written to `path`, or where the run makes `actions` a
    table of these alone: wrong suffix, a folder or device in its place, a file unless it may `overwrite` one, a missing
    or unwritable folder, or no H.264 encoder. Costs nothing next to loading weights."""
    asked = f"writing {path}"
    kind, suffix = ("clip", video.VIDEO_SUFFIX) if clip else ("picture", images.IMAGE_SUFFIX)
    another = "Choose another `output`"
    if stat.S_ISDIR(mode_at(path, another)):
        raise InputError(asked, "it is a folder", f"Pass a file name, such as `output` {path / 'out'}{suffix}")
    if actions and path.suffix.lower() in action_tables.SUFFIXES:
        return check_writable(path, another, overwrite=overwrite)
    if path.suffix.lower() != suffix:
        found = f"this run makes a {kind}, which is written as {suffix}"
        found += f", and actions, which alone are {' or '.join(action_tables.SUFFIXES)}" if actions else ""
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
    reader = {images.IMAGE_SUFFIX: images, action_tables.SUFFIXES[1]: action_tables}.get(path.suffix.lower(), video)
    return reader.read_metadata(path)
