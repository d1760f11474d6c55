"""What no other place expects: a line that fits its cause, or a report file. Never a traceback on the terminal."""

from __future__ import annotations

import errno
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from importlib import metadata

from .. import __version__

ISSUES = "the project's issue tracker"
DISK = "Free space there, or write to another disk"
BY_NUMBER = {
    errno.ENOSPC: ("the disk is full", DISK),
    errno.EDQUOT: ("your quota of the disk is used up", DISK),
    errno.EACCES: ("this user may not read or write it", "Change its permissions, or run as a user who may"),
    errno.EPERM: ("this user may not do that", "Change its permissions, or run as a user who may"),
    errno.EROFS: ("its disk can only be read", "Write to another disk"),
    errno.EMFILE: ("too many files are open in this process", "Raise the limit, `ulimit -n 4096`, and run again"),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs and run again"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name"),
    errno.EIO: ("the disk answers with an error", "Check the disk, and copy the file from elsewhere"),
    errno.ESTALE: ("the network disk has lost the file", "Mount it again and run again"),
    errno.ENOENT: ("it is gone", "Put it back, and keep files in place while a run reads them"),
    errno.ENOTDIR: ("a part of its path is a file, and a folder was expected", "Name another path"),
}
"""What an operating system's error means, and what to do."""
SMALLER = "Ask for a smaller --size or fewer --frames, or close other programs; cosmos3 plan says what fits"
HOST_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|[Cc]annot allocate memory|std::bad_alloc"
    r"|could not create a (primitive|memory)"  # oneDNN
)
DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "click", "rich", "av", "pillow")
SECRET = "[left out]"
SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), SECRET),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\"]+"), rf"\1 {SECRET}"),
    (re.compile(r"(?i)((?:token|secret|password|passwd|api[_-]?key)['\"]?\s*[=:]\s*)[^\s,;&]+"), rf"\1{SECRET}"),
    (re.compile(r"(?i)(--?[a-z-]*(?:token|secret|password|api-key)\s+)\S+"), rf"\1{SECRET}"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@"), rf"\1{SECRET}@"),
    (re.compile(r"([?&](?:X-Amz-[A-Za-z-]+|Signature|Key-Pair-Id|Policy|sig)=)[^&\s'\"]+"), rf"\1{SECRET}"),
)
"""What a report leaves out: tokens of the hub, headers, options and keys called so, passwords and signatures in
addresses."""


def explained(error: BaseException) -> str:
    """One line for an error that is not one of cosmos3's. What is wrong with a file, the memory or the disk is said;
    for all else a report is written, and the line says where."""
    return _known(error) or _reported(error)


def _known(error: BaseException) -> str | None:
    text, kind = str(error), type(error).__name__
    if isinstance(error, MemoryError) or HOST_MEMORY.search(text):
        return f"the machine's memory ran out: {_first(text) or 'there was no more'}. {SMALLER}"
    if kind == "OutOfMemoryError":
        return f"the device's memory ran out: {_first(text)}. {SMALLER}"
    if isinstance(error, OSError) and error.errno in BY_NUMBER:
        found, next_step = BY_NUMBER[error.errno]
        where = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{where or 'a file'}: {found}. {next_step}"
    if DISK_FULL.search(text):  # as libraries in other languages pass it on
        return f"{_first(text)}. {DISK}"
    if kind == "SafetensorError":
        return f"a safetensors file cannot be read ({_first(text)}). Get it again, and keep it in place during a run"
    if isinstance(error, ImportError) and error.name and not error.name.startswith("cosmos3"):
        again = "Install it again with `pip install --force-reinstall`"
        return f"the package {error.name} cannot be used ({_first(text)}). {again}"
    return None


def _first(text: str) -> str:
    """The first line, without a full stop."""
    return text.strip().partition("\n")[0].rstrip(". ")


def _reported(error: BaseException) -> str:
    what = f"{type(error).__name__}: {_first(str(error))}".rstrip(": ")
    what = f"this is a fault of cosmos3 or of a library ({without_secrets(what)})"
    try:
        path = _write(report(error))
    except OSError as failed:
        return f"{what}, and no report of it could be written ({failed.strerror}). Run again with a writable TMPDIR"
    return f"{what}. A report for {ISSUES} is in {path}; read it before you send it"


def report(error: BaseException) -> str:
    """Versions, the command line and the traceback, without secrets."""
    lines = [
        f"cosmos3 {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(_versions()),
        f"command: {shlex.join(sys.argv)}",
        f"folder: {_folder()}",
        "",
        *traceback.format_exception(error),
    ]
    return without_secrets("\n".join(lines))


def without_secrets(text: str) -> str:
    """The text with what looks like a token, a password or a key left out."""
    if token := _token():
        text = text.replace(token, SECRET)
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def _token() -> str | None:
    """The hub's, if its library is in use. That fails where an environment variable of it is what went wrong."""
    hub = sys.modules.get("huggingface_hub")
    try:
        return hub.get_token() if hub else None
    except Exception:
        return None


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return found


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        return f"unknown ({error.strerror})"


def _write(text: str) -> str:
    """A new file that only this user reads."""
    handle, path = tempfile.mkstemp(prefix="cosmos3-report-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return path
