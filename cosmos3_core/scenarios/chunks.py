"""Long clips, made in chunks that each begin with the last frames of the one before; docs/model.md, section 4.9."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunks:
    """How `total` pixel frames are made: in chunks of `frames`, of which each after the first begins with the `carry`
    last frames of the one before it."""

    total: int
    frames: int
    carry: int = 0

    @property
    def stride(self) -> int:
        """Frames from the beginning of one chunk to that of the next."""
        return self.frames - self.carry

    @property
    def count(self) -> int:
        if self.total <= self.frames:  # all of a chunk may be carried, where no other follows
            return 1
        return 1 - (self.frames - self.total) // self.stride

    def start(self, index: int) -> int:
        """The frame of the whole at which a chunk begins."""
        return index * self.stride

    def kept(self, index: int) -> range:
        """The frames of a chunk that are new, and no more than are wanted."""
        return range(self.carry if index else 0, min(self.frames, self.total - self.start(index)))
