"""What is read: an ordinary file, or a line on why not, or the bytes of one. A pipe would block the run for ever, and
reading a device can do something."""

from __future__ import annotations

import errno
import os
import re
import stat
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from ..contract import InputError

HEAD = 1 << 16
SAID = re.compile(r"memory: .*?(\d+)x(\d+), sha256 ([0-9a-f]{64})")
"""What a request's field says of a picture or clip that a program handed over: its width, height and digest."""


def called(source: Path | bytes) -> str:
    """A file, or the bytes of one, in a message."""
    return str(source) if isinstance(source, Path) else f"{len(source)} bytes in memory"


def open_source(source: Path | bytes) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else BytesIO(source)


def check_source(path: str | Path, asked: str, next_step: str) -> None:
    """Raises InputError, with `asked` and `next_step` in it, unless `path` is an ordinary file that can be looked at.
    Opens nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
    else:
        if stat.S_ISREG(mode):
            return
        found = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else f"it is {_kind(mode)}, not an ordinary file"
    raise InputError(asked, found, next_step)


def check_name(path: str | Path, asked: str) -> None:
    """Raises InputError, with `asked` in it, for a path that is not UTF-8: a manifest and a stopped run name their
    files, as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        found = "its path is not UTF-8 text, and a manifest could not name it"
        raise InputError(asked, found, "Rename the file or its folder") from None


def head_of(source: Path | bytes, asked: str, next_step: str) -> bytes:
    """The first `HEAD` bytes of an ordinary file, by which its kind is known. Raises InputError as `check_source`, and
    for a file that cannot be read."""
    if isinstance(source, Path):
        check_source(source, asked, next_step)
    try:
        with open_source(source) as file:
            return file.read(HEAD)
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), next_step) from None


def _kind(mode: int) -> str:
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
