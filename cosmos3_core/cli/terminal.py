"""The terminal: text from outside is escaped and bounded, and what cannot be written ends nothing.

Files, prompts and packages come from anywhere. What this process prints goes through a `Stream`, which lets no control
character through, so that no message can forget it; `printable` also keeps a text on its own line.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 2000
"""Characters of one text from outside that are printed."""
PARTS = 4
"""How many such texts a line may be made of."""
DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)
"""Warnings that are dropped: they tell whoever writes the code, and a user can do nothing about them."""
BAR = re.compile(r"(\r|(\n|\x1b\[A)+$)?")
"""What tqdm begins a piece with, in which the hub's library shows a download: a new start of its line, or moves between
lines."""


def printable(text: object, longest: int = LONGEST) -> str:
    """The text on one line, whatever would steer the terminal or break the line as an escape, and cut to `longest`."""
    whole = str(text)
    shown = "".join(c if c.isprintable() else _escape(c) for c in whole[:longest])
    return shown if len(whole) <= longest else f"{shown}... ({len(whole):,} characters)"


def _escape(character: str) -> str:
    """As JSON spells it, so that printed JSON stays JSON."""
    return f"\\u{ord(character):04x}" if ord(character) < 1 << 16 else f"\\U{ord(character):08x}"


class Stream:
    """Standard output or error. `escapes`: control characters but the newline are written as escapes. A write that
    fails is remembered in `lost` and what follows is dropped: the reader of a pipe that was closed, a full disk or a
    terminal that is gone are no reason to end what is under way."""

    def __init__(self, stream: TextIO | None, escapes: bool = True):
        self.stream, self.escapes = stream, escapes
        self.lost: OSError | None = None
        self.required = True

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str | bytes) -> int:
        if isinstance(text, bytes):  # click's completion; it asks with an empty piece whether this is a binary stream
            if not text:
                raise TypeError("text is written here")
            text = text.decode(errors="replace")
        if self.stream is not None and self.lost is None:
            shown = self._shown(text) if self.escapes else text
            with self._losing():
                self.stream.write(shown.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def _shown(self, text: str) -> str:
        bar = BAR.match(text) if self.isatty() else None
        start = bar.end() if bar else 0
        return text[:start] + "".join(c if c == "\n" or c.isprintable() else _escape(c) for c in text[start:])

    def flush(self) -> None:
        if self.stream is not None and self.lost is None:
            with self._losing():
                self.stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.lost = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
            # The interpreter writes what is left in the buffer when it ends.
            with suppress(OSError, ValueError, AttributeError):
                assert self.stream is not None
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def isatty(self) -> bool:
        try:
            return bool(self.stream and self.stream.isatty())
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.stream.fileno()

    @property
    def failed(self) -> OSError | None:
        """Why an answer did not arrive. A reader that closed its end of a pipe has read what it wanted."""
        return self.lost if self.required and self.lost and self.lost.errno != errno.EPIPE else None


@contextmanager
def guarded() -> Iterator[Stream]:
    """Standard output and error are `Stream`s, and warnings of libraries are notes. Yields standard output."""
    _open_closed()
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        sys.stdout, sys.stderr = out, err
        stack.callback(_put_back, *before)
        stack.enter_context(_warnings_as_notes())
        yield out


def _put_back(out: TextIO, err: TextIO) -> None:
    sys.stdout, sys.stderr = out, err


def _open_closed() -> None:
    """A file that is opened must not become standard output because that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    told: set[str] = set()

    def note(library: str, message: object) -> None:
        said = f"note: {library}: {str(message).strip().partition(chr(10))[0]}"
        if said not in told:
            told.add(said)
            remark(said)

    def show(message: Any, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if not issubclass(category, DEVELOPERS):
            note(_library(filename), message)

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.name.partition(".")[0], record.getMessage())

    notes, last = Notes(logging.WARNING), logging.lastResort
    with warnings.catch_warnings(), _handled(logging.getLogger("huggingface_hub"), notes):
        logging.lastResort, warnings.showwarning = notes, show
        try:
            yield
        finally:
            logging.lastResort = last


@contextmanager
def _handled(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """The logger has this handler and gets no other: its library adds one as it is loaded, which prints bare lines."""
    before, logger.handlers = logger.handlers, [handler]
    logger.addHandler = lambda hdlr: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        logger.handlers = before
        del logger.addHandler


def _library(filename: str) -> str:
    """The package that a file belongs to."""
    parts = filename.replace("\\", "/").split("/")
    inside = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else []
    return inside[0].removesuffix(".py") if inside else "a library"


def tell(line: str) -> None:
    """A line on stderr, which may be gone."""
    with suppress(OSError, ValueError):
        print(printable(line, LONGEST * PARTS), file=sys.stderr, flush=True)


_quiet = False


def be_quiet(asked: bool) -> None:
    """Whether `remark` is silent from now on."""
    global _quiet
    _quiet = asked


def quiet() -> bool:
    """Whether remarks are left out."""
    return _quiet


def remark(line: str) -> None:
    """A line that nobody has to read: progress, notes, why a backend was chosen. None with --quiet."""
    if not quiet():
        tell(line)


def file_is_the_answer() -> None:
    """The command's answer is a file, which is there whether its name can be printed or not."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.required = False


def console(*, file: Any = None, **options: Any) -> Console:
    """A console for tables and lines: without colours, whatever the environment says, so that no escape sequence is
    ours."""
    from rich.console import Console

    plain = {"color_system": None, "force_terminal": False, "highlight": False, "markup": False, "emoji": False}
    return Console(file=file, **plain | options)


def unescaped(stream: Any) -> Any:
    """The stream for what moves the cursor itself."""
    return Stream(stream.stream, escapes=False) if isinstance(stream, Stream) else stream
