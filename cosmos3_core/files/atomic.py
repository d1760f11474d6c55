"""Files that are written whole or not at all, and the reasons why one could not be written.

Until it has its name, a file is a hidden one beside it, whose lock its process holds: one that nobody holds is what a
dead process left, and goes.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..contract import InputError
from . import locks

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the operating system says where nothing more can be written: the disk, a quota or a size limit is reached."""
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What it says where a file cannot have two names."""
LONGEST_SUFFIX = 16


class Unwritable(InputError):
    """A file could not be written where it was to be; elsewhere it may be possible."""


def check_writable(path: Path, next_step: str = "Choose another name", *, overwrite: bool = True) -> None:
    """Raises InputError unless a file called `path` can be made: its folder exists and can be written to, nothing else
    writes there now, and what has that name is an ordinary file, if anything, that may be replaced: with `overwrite`,
    and if it is not protected. A pipe or a device would be replaced, not written to."""
    asked, mode = f"writing {path}", mode_at(path, next_step)
    if stat.S_ISDIR(mode):
        raise InputError(asked, "it is a folder", "Pass the name of a file")
    if not stat.S_ISREG(mode):
        raise InputError(asked, "it exists and is not an ordinary file", next_step)
    if not overwrite and os.path.lexists(path):
        raise InputError(asked, "it exists", "Choose another name, or add `overwrite`")
    real = Path(os.path.realpath(path))
    if real.exists() and (found := locks.protection(real)):
        raise InputError(asked, found, next_step)
    with alone((path,)):
        temp, file = _reserve(path, real)
        os.close(file)
        try:
            temp.unlink()
        except OSError as error:
            raise _folder_error(path, error) from error


def mode_at(path: Path, next_step: str = "Choose another name") -> int:
    """The mode of what has this name, that of a file where nothing has it. Raises InputError, and says what to do
    as `next_step`, for a name that nothing can have."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return stat.S_IFREG
    except (OSError, ValueError) as error:
        found = f"the name cannot be used ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"writing {path}", found, next_step) from error


@contextmanager
def alone(paths: tuple[Path, ...]) -> Iterator[None]:
    """For the time of the block nobody else can enter one for any of these names. Raises InputError where another
    process or thread did. Whatever ends a process ends that, too."""
    held: list[locks.Held] = []
    try:
        for path in paths:
            real = Path(os.path.realpath(path))
            try:
                one = locks.hold(real)
            except OSError as error:
                raise _folder_error(path, error) from error
            if one is None:
                next_step = "Wait until it is done, or choose another name"
                raise InputError(f"writing {path}", "another run is writing to that name", next_step)
            held.append(one)
        yield
    finally:
        for one in held:
            one.release()


@contextmanager
def atomic(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields an empty hidden file next to `path`, with its suffix, for the block to write; at the end it becomes `path`
    in one step, or what a link of that name points at. If the block fails in any way it is deleted, and a file that was
    at `path` is as it was; without `overwrite` one that came meanwhile is, too.

    Raises Unwritable if the folder cannot be written to, the name is taken or the disk is full (or a quota or size
    limit is reached).
    """
    real = Path(os.path.realpath(path))
    temp, held = _reserve(path, real)
    try:
        yield temp
        _name(path, temp, real, overwrite)
    except BaseException as error:
        written, gone = os.fstat(held).st_size, not temp.exists()
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            found = f"the disk is full (needed more than {written / 1e6:.1f} MB: {error.strerror})"
            next_step = "Free space or choose another folder for `output`"
            raise Unwritable(f"writing {path}", found, next_step) from error
        if isinstance(error, OSError) and gone:
            raise _folder_error(path, error) from error
        raise
    finally:
        os.close(held)


def elsewhere(path: Path, companions: tuple[str, ...] = ()) -> Iterator[Path]:
    """Where to put what cannot be written to `path`: names like it, free as `free` has it, in the current folder and in
    that for temporary files."""
    here = Path(os.path.realpath(path)).parent
    for folder in (os.getcwd, tempfile.gettempdir):
        with suppress(OSError):
            if (other := Path(os.path.realpath(folder()))) != here:
                yield free(other / path.name, companions)


def free(path: Path, companions: tuple[str, ...] = ()) -> Path:
    """The first of cup.png, cup-2.png, cup-3.png ... that nothing has, nor that name with one of `companions` added."""
    name, count = path, 1
    while any(os.path.lexists(f"{name}{added}") for added in ("", *companions)):
        count += 1
        name = path.with_name(f"{path.stem}-{count}{path.suffix}")
    return name


def _name(path: Path, temp: Path, real: Path, overwrite: bool) -> None:
    """The finished file gets its name."""
    with temp.open("r+b") as file:
        os.fsync(file.fileno())
    try:
        if overwrite:
            if real.exists() and not real.is_file():
                raise FileExistsError(errno.EEXIST, "what has that name now is no ordinary file")
            os.replace(temp, real)
            return
        try:
            os.link(temp, real, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(real):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            os.rename(temp, real)
        else:
            os.unlink(temp)
    except FileExistsError as error:
        found = f"another file got that name meanwhile ({error.strerror})"
        raise Unwritable(f"writing {path}", found, "Choose another name") from error
    except OSError as error:
        raise _folder_error(path, error) from error


def _reserve(path: Path, real: Path) -> tuple[Path, int]:
    """A new hidden file beside `real`, and what holds its lock."""
    # Short, whatever the length of path.name: that one may already be as long as the file system allows.
    suffix = path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""
    while True:
        temp = real.with_name(locks.part(suffix))
        try:
            file = locks.created(temp)
        except OSError as error:
            raise _folder_error(path, error) from error
        if file is not None:
            return temp, file


def _folder_error(path: Path, error: OSError) -> Unwritable:
    if not path.parent.is_dir():
        found = f"there is no folder {path.parent}"
        return Unwritable(f"writing {path}", found, "Create it with mkdir -p, or choose another `output`")
    found = f"the folder {path.parent} cannot be written to ({error.strerror or error})"
    return Unwritable(f"writing {path}", found, "Choose another folder")
