"""What a misspelt word was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CLOSE = 0.66
"""Letters that two words share, as a part of all their letters: `stpes` is close to `steps`, `cfg` not to `fps`."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`, upper and lower case being the same; None where none is like it."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, 1, CLOSE)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The next step after a misspelt word: the nearest known one, or what to do `otherwise`."""
    close = nearest(word, known)
    return f"Did you mean {close}?" if close else otherwise
