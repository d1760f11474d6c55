"""Rows as they are called: a composite with the plan's ops, and attention by the number of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import reference
from ..contract import Attention, Layer, Ops, Segment

if TYPE_CHECKING:
    from torch import Tensor


def given_defaults(pack: Callable[..., Any]) -> Callable[..., Any]:
    """A composite's row, which finds the default composites among the plan's ops: see contract.ops.PackProject."""

    def packed(weights: Any, layer: Layer, ops: Ops, *, format: str = "none") -> Any:
        return pack(weights, layer, reference.with_defaults(ops), format=format)

    return packed


class ByQueries:
    """contract.Attention by several rows: the one for the number of queries, or else `main`."""

    def __init__(self, main: Attention, below: Sequence[tuple[int, Attention]]):
        self.main, self.below = main, below

    def __call__(
        self, q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        serving = next((row for count, row in self.below if q_BSHD.shape[1] < count), self.main)
        return serving(q_BSHD, segments, causal=causal, want_lse=want_lse)

    @property
    def prepare(self) -> Callable[[Tensor, Tensor], Any]:
        return self.main.prepare  # type: ignore[attr-defined, no-any-return]  # asked for where the row declares it
