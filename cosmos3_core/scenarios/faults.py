"""All faults of a request at once: who has three of them wants to correct three, and not one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..contract import InputError


class RequestError(InputError):
    """Several faults of one request, `faults`. Its message has a line for each."""

    def __init__(self, faults: Sequence[InputError]):
        self.faults = tuple(faults)
        asked, found, next_steps = zip(*((fault.asked, fault.found, fault.next_step) for fault in faults), strict=True)
        super().__init__(", ".join(asked), "; ".join(found), ". ".join(next_steps))

    def __reduce__(self) -> tuple[type[RequestError], tuple[tuple[InputError, ...]]]:
        return type(self), (self.faults,)

    def __str__(self) -> str:
        return "\n  ".join([f"{len(self.faults)} faults in one request:", *map(str, self.faults)])


class Faults:
    """Collects what is wrong with a request, the first fault of each field."""

    def __init__(self) -> None:
        self.found: dict[str, InputError] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """An InputError raised inside is a fault of the field of this name."""
        try:
            yield
        except InputError as error:
            error.field = error.field or name
            self.found.setdefault(name, error)

    def report(self) -> None:
        """Raises InputError if there are faults: the one, or a RequestError with all of them."""
        if self.found:
            first, *others = self.found.values()
            raise RequestError((first, *others)) if others else first
