"""Files that are written whole or not at all, and the reasons why one could not be written."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..contract import InputError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the operating system says where nothing more can be written: the disk, a quota or a size limit is reached."""


def check_writable(path: Path, next_step: str = "Choose another name") -> None:
    """Raises InputError unless a file called `path` can be made: its folder exists and can be written to, and what has
    that name now is an ordinary file if anything. A pipe or a device would be replaced, not written to."""
    mode = mode_at(path, next_step)
    if stat.S_ISDIR(mode):
        raise InputError(f"writing {path}", "it is a folder", "Pass the name of a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"writing {path}", "it exists and is not an ordinary file", next_step)
    _reserve(path).unlink()


def mode_at(path: Path, next_step: str = "Choose another name") -> int:
    """The mode of what has this name, that of a file where nothing has it. Raises InputError, and says what to do
    as `next_step`, for a name that nothing can have."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return stat.S_IFREG
    except OSError as error:
        found = f"the name cannot be used ({error.strerror})"
        raise InputError(f"writing {path}", found, next_step) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields an empty hidden file next to `path`, with its suffix, for the block to write; at the end it becomes `path`
    in one step. If the block fails in any way it is deleted, and a file that was at `path` is as it was.

    Raises InputError if the folder cannot be written to or the disk is full (or a quota or size limit is reached).
    """
    temp = _reserve(path)
    try:
        yield temp
        with temp.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException as error:
        written = temp.stat().st_size if temp.exists() else 0
        temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            found = f"the disk is full (needed more than {written / 1e6:.1f} MB: {error.strerror})"
            raise InputError(f"writing {path}", found, "Free space or choose another folder for `output`") from error
        raise


def _reserve(path: Path) -> Path:
    # Short, whatever the length of path.name: that one may already be as long as the file system allows.
    temp = path.with_name(f".cosmos3-{secrets.token_hex(4)}{path.suffix}")
    try:
        temp.touch(exist_ok=False)
    except OSError as error:
        if not path.parent.is_dir():
            found = f"there is no folder {path.parent}"
            raise InputError(f"writing {path}", found, "Create it with mkdir -p, or choose another `output`") from None
        found = f"the folder {path.parent} cannot be written to ({error.strerror})"
        raise InputError(f"writing {path}", found, "Choose another folder") from error
    return temp
