"""The two ways a run can fail, and the shape of their messages.

Every message has three parts, because a user at a prompt has three questions: what did I ask for, what did the
program find, and what do I type next?

A message names what the caller can set by its field, in backquotes: `image`, `kernel`. The command line writes its own
option there instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Cosmos3Error(Exception):
    """A failure with a message made for a person; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, asked: str, found: str, next_step: str):
        self.asked, self.found, self.next_step = asked, found, next_step
        super().__init__(f"{asked}: {found}. {next_step}")


class InputError(Cosmos3Error):
    """The request, a file or the environment is not usable. Raised before any weight is read wherever that is
    possible. Exit code 2; a server answers HTTP 4xx."""

    exit_code = 2


class RunError(Cosmos3Error):
    """The request was good and the run failed. Exit code 1; a server answers HTTP 5xx."""


class Unavailable(Exception):
    """Raised by a backend's `probe()`: one sentence that says why the device cannot be used and what to install."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`, upper and lower case being the same; None where none is like it."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, 1)
    return names[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The next step after a misspelt word: the nearest known one, or what to do `otherwise`."""
    close = nearest(word, known)
    return f"Did you mean {close}?" if close else otherwise
