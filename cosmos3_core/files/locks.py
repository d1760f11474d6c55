"""Hidden files that a process holds by a lock, which the operating system takes from it when it ends, however it ends.

They are of two kinds: a `part` is a file in the making or a folder that is worked in, a `lock` stands for a name that a
run will write to. One of which nobody has the lock is what a dead process left.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""This machine: a file system may keep the locks of one machine from the others."""
MADE = re.compile(rf"\.cosmos3-(part-{HERE}-[0-9a-f]{{8}}(\.[^/]*)?|lock-[0-9a-f]{{16}})")
OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
TRIES, PAUSE = 10, 0.01
"""How often a lock is tried for, and the seconds between: who looks whether a file is a dead one's holds it, too."""
GET_FLAGS, FLAGS = 0x80086601, {0x10: "immutable", 0x20: "append-only"}
"""Linux: FS_IOC_GETFLAGS, and the flags with which not even root replaces a file (chattr)."""


@dataclass(frozen=True)
class Held:
    """A lock file, and the descriptor that holds it."""

    path: Path
    file: int

    def release(self) -> None:
        with suppress(OSError):
            if _is(self.file, self.path):
                self.path.unlink()
        os.close(self.file)


def hold(path: Path) -> Held | None:
    """The lock on a name; None where another process or thread has it. Raises OSError where its folder does not let a
    file be made."""
    lock = path.with_name(f".cosmos3-lock-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")
    for _ in range(TRIES):
        file = os.open(lock, OPEN | os.O_CREAT, 0o666)
        got = _lock(file)
        if got is None or (got and _is(file, lock)):  # none: a file system without locks
            return Held(lock, file)
        os.close(file)
        time.sleep(PAUSE)
    return None


def part(suffix: str) -> str:
    """A new name for a file in the making."""
    return f".cosmos3-part-{HERE}-{secrets.token_hex(4)}{suffix}"


def created(path: Path) -> int | None:
    """A new file of that name, held; None where somebody took it for a dead process's just now. Raises OSError."""
    return _held(path, OPEN | os.O_CREAT | os.O_EXCL)


def _held(path: Path, flags: int) -> int | None:
    file = os.open(path, flags, 0o666)
    if _lock(file) is not False and _is(file, path):
        return file
    os.close(file)
    return None


@contextmanager
def workspace() -> Iterator[Path]:
    """A folder for temporary files, which is deleted at the end; the next one that is made sweeps up after a process
    that was killed."""
    sweep(Path(tempfile.gettempdir()))
    held = None
    while held is None:
        folder = Path(tempfile.gettempdir()) / part("")
        folder.mkdir(mode=0o700)
        held = _held(folder, FOLDER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep(folder: Path) -> None:
    """Delete what dead processes of this user left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if MADE.fullmatch(entry.name):
                if entry.is_file(follow_symlinks=False):
                    _delete_dead(Path(entry.path), OPEN, os.unlink)
                elif entry.is_dir(follow_symlinks=False):
                    _delete_dead(Path(entry.path), FOLDER, shutil.rmtree)


def _delete_dead(path: Path, flags: int, delete: Callable[[Path], object]) -> None:
    with suppress(OSError):
        file = os.open(path, flags)
        try:
            if os.fstat(file).st_uid == os.geteuid() and _lock(file) and _is(file, path):
                delete(path)
        finally:
            os.close(file)


def protection(path: Path) -> str | None:
    """Why a file that exists cannot be replaced, though its folder can be written to."""
    own, folder = path.stat(), path.parent.stat()
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, own.st_uid, folder.st_uid):
        return "it belongs to another user, and in its folder only that one may replace it (a sticky folder)"
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            (flags,) = struct.unpack_from("i", fcntl.ioctl(file, GET_FLAGS, bytes(8)))
        finally:
            os.close(file)
        for flag, name in FLAGS.items():
            if flags & flag:
                return f"it is {name} (chattr)"
    return None


def _lock(file: int) -> bool | None:
    """Whether this descriptor now holds the file; None where its file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN) else None
    return True


def _is(file: int, path: Path) -> bool:
    """Whether the open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False
