"""The ways a run can fail. A message answers a user's three questions: what did I ask for, what was found, what do I
type next? It names what a caller can set by its field, `image`; the command line writes its option there."""

from __future__ import annotations


class Cosmos3Error(Exception):
    """A failure with a message made for a person. `exit_code` is the command line's, `field` the field or argument to
    change, where there is one, `run` the `cosmos3.Run` that can go on, which no copy in another process has."""

    exit_code = 1
    run: object = None

    def __init__(self, asked: str, found: str, next_step: str, field: str | None = None):
        self.asked, self.found, self.next_step, self.field = asked, found, next_step, field
        super().__init__(asked, found, next_step, field)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.asked, self.found, self.next_step, self.field)

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{self.asked}: {self.found}. {self.next_step}")


class InputError(Cosmos3Error):
    """A request, a file or the environment is not usable; no weight was read. Exit code 2; a server answers 4xx."""

    exit_code = 2

    @property
    def faults(self) -> tuple[InputError, ...]:
        """Each fault of a request as an error, with a field of its own: this one, where there is no other."""
        return (self,)


class RunError(Cosmos3Error):
    """The request was good and the run failed. Exit code 1; a server answers 5xx."""


class Unavailable(Exception):
    """Raised by a backend's `probe()`: one sentence that says why the device cannot be used and what to install."""
