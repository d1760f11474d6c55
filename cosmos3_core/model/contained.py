"""What becomes of a library in Rust that gives up on a stranger's file."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PANIC = "PanicException"
"""What a panic of a library in Rust is in Python: no `Exception`, so that nobody expects it."""
_standard_error = threading.Lock()


@contextmanager
def contained() -> Iterator[None]:
    """RuntimeError in the place of a panic of a library in Rust, whose report on standard error, a page with addresses,
    is dropped."""
    with _standard_error, _muted():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            raise RuntimeError(f"its library gave up: {error}") from None


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing reaches file 2, which the library writes to itself."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with suppress(AttributeError, ValueError, OSError):
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
