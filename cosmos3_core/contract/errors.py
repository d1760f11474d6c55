"""The ways a run can fail. A message answers a user's three questions: what did I ask for, what was found, what do I
type next? It names what a caller can set by its field, `image`; the command line writes its option there."""

from __future__ import annotations

from typing import Any


class Cosmos3Error(Exception):
    """A failure with a message made for a person; `exit_code` is what the command line returns for it. `field` is the
    request's field to change, where there is one, and `run` the `cosmos3.Run` that can go on; no pickle has that."""

    exit_code = 1
    run: Any = None

    def __init__(self, asked: str, found: str, next_step: str, field: str | None = None):
        self.asked, self.found, self.next_step, self.field = asked, found, next_step, field
        super().__init__(asked, found, next_step, field)  # what a copy in another process is made from

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {name: value for name, value in vars(self).items() if name != "run"}

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}. {self.next_step}"


class InputError(Cosmos3Error):
    """The request, a file or the environment is not usable. Raised before any weight is read wherever that is
    possible. Exit code 2; a server answers HTTP 4xx."""

    exit_code = 2


class RunError(Cosmos3Error):
    """The request was good and the run failed. Exit code 1; a server answers HTTP 5xx."""


class Cancelled(Cosmos3Error):
    """The caller asked to stop, and the run did, between two pieces of work. Exit code 130, as after Ctrl-C."""

    exit_code = 130


class Unavailable(Exception):
    """Raised by a backend's `probe()`: one sentence that says why the device cannot be used and what to install."""
