"""A run's output by its name, whichever kind it is.

A run costs minutes, so an output is checked twice. Before it, `check_output` finds the reasons a file could not be
written. After it, the writers in `images` and `video` read their own file back and only then give it its final name: a
file that carries the name asked for is whole, plays, and shows what the model made.
"""

from __future__ import annotations

import stat
from pathlib import Path

from ..contract import InputError
from . import action_tables, audio, images, video
from .atomic import check_writable, mode_at


def is_sound(path: Path) -> bool:
    """Whether a file of this name holds sound and no picture."""
    return path.suffix.lower() in audio.CODECS


def check_output(path: Path, clip: bool, *, sound: bool = False, actions: bool = False, overwrite: bool = True) -> None:
    """Raises InputError if a clip (`clip`, and with `sound` also its sound alone) or a picture cannot be written to
    `path`, or where the run makes `actions` a table of these alone: wrong suffix, a folder or device in its place, a
    file unless it may `overwrite` one, a missing or unwritable folder, or no encoder. Costs nothing next to loading
    weights."""
    asked = f"writing {path}"
    kind, suffix = ("clip", video.VIDEO_SUFFIX) if clip else ("picture", images.IMAGE_SUFFIX)
    another = "Choose another `output`"
    if stat.S_ISDIR(mode_at(path, another)):
        raise InputError(asked, "it is a folder", f"Pass a file name, such as `output` {path / 'out'}{suffix}")
    if actions and path.suffix.lower() in action_tables.SUFFIXES:
        return check_writable(path, another, overwrite=overwrite)
    if is_sound(path):
        check_sound(path, sound)
    elif path.suffix.lower() != suffix:
        alone = f", its sound alone as {' or '.join(audio.CODECS)}" if sound else ""
        alone += f", and actions, which alone are {' or '.join(action_tables.SUFFIXES)}" if actions else ""
        found = f"this run makes a {kind}, which is written as {suffix}{alone}"
        step = f"Pass `output` {path.with_suffix(suffix)}"
        if path.suffix.lower() in action_tables.SUFFIXES:  # a policy was meant
            step += ", or for a robot's actions give `image` and `domain`, and no `actions`"
        raise InputError(asked, found, step)
    check_writable(path, another, overwrite=overwrite)
    if clip and not is_sound(path):
        _check_encoder(asked, "libx264", "H.264 encoder (libx264)")
        if sound:
            _check_encoder(asked, "aac", "AAC encoder")


def check_sound(path: Path, sound: bool) -> None:
    """Raises InputError unless `path` is one for the sound of a run that has `sound`."""
    if not is_sound(path):
        found = f"sound alone is written as {' or '.join(audio.CODECS)}"
        raise InputError(f"writing {path}", found, f"Pass {path.with_suffix('.wav')}")
    if not sound:
        raise InputError(f"writing {path}", "this run makes no sound", "Ask for `sound`, or choose another file name")


def _check_encoder(asked: str, name: str, words: str) -> None:
    import av

    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        next_step = "Install the wheel that has one: pip install --force-reinstall --only-binary av av"
        raise InputError(asked, f"the installed PyAV has no {words}", next_step) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The texts stored in a .png or another media file, such as those given to `write_image` or `write_video`.

    Raises InputError if the file cannot be read as what its suffix says.
    """
    if is_sound(path):
        return audio.read_metadata(path)
    reader = {images.IMAGE_SUFFIX: images, action_tables.SUFFIXES[1]: action_tables}.get(path.suffix.lower(), video)
    return reader.read_metadata(path)
