"""What an engine keeps for the next request, by what it was made of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Values by key, of at most a size in all: the ones that were used least recently go first."""

    def __init__(self, most: int):
        self._most, self._held = most, OrderedDict[K, tuple[V, int]]()

    def get(self, key: K) -> V | None:
        """The value of a key, which counts as a use of it; None where it is not kept."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def keep(self, key: K, value: V, size: int) -> list[tuple[K, V, int]]:
        """Keep a value, unless it is larger than all that is kept; it counts as used. Returns what has no room now,
        with keys and sizes."""
        self._held.pop(key, None)
        if size > self._most:
            return [(key, value, size)]
        gone = self.make_room(size)
        self._held[key] = value, size
        return gone

    def make_room(self, size: int) -> list[tuple[K, V, int]]:
        """Let values go until one more of this size may be kept, or none is left. Returns those."""
        gone = []
        while self._held and self._most < size + sum(held for _, held in self._held.values()):
            key, (value, held) = self._held.popitem(last=False)
            gone.append((key, value, held))
        return gone

    def values(self) -> list[V]:
        """Those that are kept."""
        return [value for value, _ in self._held.values()]

    def keep_only(self, right: Callable[[K], bool]) -> None:
        """Let go whatever has a key that is not right."""
        for key in [key for key in self._held if not right(key)]:
            del self._held[key]

    def close(self) -> None:
        """Keep nothing from now on."""
        self._most = 0
        self._held.clear()
