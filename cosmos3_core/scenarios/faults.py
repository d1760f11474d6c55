"""All faults of a request at once: who has three of them wants to correct three, and not one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..contract import InputError

NAMED = re.compile(r"`([a-z_]+)`")
"""A field in a message."""


class RequestError(InputError):
    """Several faults of one request. Its message has a line for each, and its field is that of the first."""

    def __init__(self, faults: Sequence[InputError]):
        self._faults = tuple(faults)
        asked, found, next_steps = zip(*((fault.asked, fault.found, fault.next_step) for fault in faults), strict=True)
        super().__init__(", ".join(asked), "; ".join(found), ". ".join(next_steps), faults[0].field)

    @property
    def faults(self) -> tuple[InputError, ...]:
        return self._faults

    def __reduce__(self) -> tuple[type[RequestError], tuple[tuple[InputError, ...]]]:
        return type(self), (self._faults,)

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
            self.add(name, error)

    def add(self, name: str, error: InputError) -> None:
        """A fault of the field of this name."""
        error.field = field_of(error) or name
        self.found.setdefault(name, error)

    def report(self) -> None:
        """Raises InputError if there are faults: the one, or a RequestError with all of them."""
        if self.found:
            raise together(list(self.found.values()))


@contextmanager
def about(field: str) -> Iterator[None]:
    """An InputError raised inside is about this field, unless it names one itself."""
    try:
        yield
    except InputError as error:
        error.field = field_of(error) or field
        raise


def field_of(error: InputError) -> str | None:
    """The field that an error is about, else the first that its `asked` names."""
    return error.field or ((named := NAMED.search(error.asked)) and named[1])


def together(faults: Sequence[InputError]) -> InputError:
    """One error of one fault or several."""
    return RequestError(faults) if len(faults) > 1 else faults[0]
