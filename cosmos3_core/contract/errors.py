"""The ways a run can fail. A message answers a user's three questions: what did I ask for, what was found, what do I
type next? It names what a caller can set by its field, `image`; the command line writes its option there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

NAMED = re.compile(r"`([a-z_]+)`")
"""A field in a message."""


class Cosmos3Error(Exception):
    """A failure with a message made for a person. `exit_code` is the command line's. `field` is the field or argument
    to change, where there is one: as it is given, else the first that `asked` names. `run` is the `cosmos3.Run` that
    can go on, which no copy in another process has."""

    exit_code = 1
    run: object = None

    def __init__(self, asked: str, found: str, next_step: str, field: str | None = None):
        self.asked, self.found, self.next_step = asked, found, next_step
        self.field = field or ((named := NAMED.search(asked)) and named[1])
        super().__init__(asked, found, next_step, field)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.asked, self.found, self.next_step, self.field)

    def __str__(self) -> str:
        return f"{self.asked}: {self.found}. {self.next_step}"


class InputError(Cosmos3Error):
    """A request, a file or the environment is not usable; no weight was read. Exit code 2; a server answers 4xx.

    Several faults of one request come as one error, whose `faults` are an InputError each, with a field of its own.
    """

    exit_code = 2

    @property
    def faults(self) -> tuple[InputError, ...]:
        """Every fault; of a single one, the error itself."""
        return (self,)


class RunError(Cosmos3Error):
    """The request was good and the run failed. Exit code 1; a server answers 5xx."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """An InputError raised inside is about this field, unless it names one itself."""
    try:
        yield
    except InputError as error:
        error.field = error.field or field
        raise


class Unavailable(Exception):
    """Raised by a backend's `probe()`: one sentence that says why the device cannot be used and what to install."""
