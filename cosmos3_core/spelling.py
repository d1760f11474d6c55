"""Words and values in messages: what a misspelt word was meant to be, and any value in a few words."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

CLOSE = 0.66
"""Letters that two words share, as a part of all their letters: `stpes` is close to `steps`, `cfg` not to `fps`."""
LONGEST = 64
"""Characters of the longest word that can be a misspelt name."""
SHOWN = 200
"""Characters of a value that a message repeats."""
LONG = re.compile(r"[^\s/]{300,}")
"""What is longer than the name of any file, and no sentence."""


class _Values(reprlib.Repr):
    """Values of any depth and length in one short piece; what cannot be written is named by its type."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, SHOWN, 60, SHOWN
        self.maxlist = self.maxtuple = self.maxdict = 12

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no more than some thousand digits
            return f"<a whole number of {x.bit_length():,} bits>"


_VALUES = _Values()


def shown(value: Any) -> str:
    """A value as Python writes it, cut to about `SHOWN` characters. Never raises, whatever the value is: one that
    holds itself, that cannot be read, or whose `__repr__` raises."""
    try:
        text = _VALUES.repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]}..."


def bounded(text: str) -> str:
    """A message with what is very long in it cut: a value of thousands of digits is not repeated whole."""
    return LONG.sub(lambda long: f"{long[0][:SHOWN]}... ({len(long[0]):,} characters)", text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`, upper and lower case being the same; None where none is like it."""
    if len(word) > LONGEST:
        return None
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, 1, CLOSE)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The next step after a misspelt word: the nearest known one, or what to do `otherwise`."""
    close = nearest(word, known)
    return f"Did you mean {close}?" if close else otherwise


def reason_of(error: BaseException) -> str:
    """An exception as one line: its type and text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
