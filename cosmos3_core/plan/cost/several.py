"""Several devices: what of the model each of them has, and what they exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...model.config import TransformerConfig
from ..mesh import Layout


def of_one(config: TransformerConfig, layout: Layout) -> TransformerConfig:
    """The model as one device of a layout has it, the one that has most."""
    count = layout.tensor
    if layout.apart == 1:
        return config
    return replace(
        config,
        num_hidden_layers=-(-config.num_hidden_layers // layout.pipeline),
        num_attention_heads=config.num_attention_heads // count,
        num_key_value_heads=max(1, config.num_key_value_heads // count),
        intermediate_size=config.intermediate_size // count,
    )


MERGING = 40
"""Bytes that a number of the attention's result is read and written in when a part of a ring is added to the sum: ten
times in fp32."""


def merging(own: TransformerConfig, layout: Layout, tokens: int) -> int:
    """Bytes that a device moves in its memory in a pass of so many media tokens of a branch, to merge the parts of a
    ring."""
    if layout.ring == 1:
        return 0
    return own.num_hidden_layers * layout.ring * -(-tokens // layout.split) * own.query_width * MERGING


@dataclass(frozen=True)
class Exchange:
    """Bytes that a device sends: those that it has `waited` for before it goes on, and those that travel `beside` what
    it computes."""

    waited: float = 0.0
    beside: float = 0.0

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(self.waited + other.waited, self.beside + other.beside)

    def seconds(self, rate: float, computes: float) -> tuple[float, float]:
        """(hidden, not hidden) at so many bytes a second, beside so many seconds of computing."""
        travels = self.beside / rate
        return min(travels, computes), self.waited / rate + max(0.0, travels - computes)


def share(count: int) -> float:
    """Of what so many devices exchange all with all, or sum in a ring, each sends so much, a sum twice."""
    return (count - 1) / count


def exchanged(own: TransformerConfig, layout: Layout, tokens: int, row: int, size: int) -> Exchange:
    """In a pass of one branch of so many media tokens; `own` is the model as one device has it, `row` the bytes of a
    row of the residual stream, and a number takes `size` bytes.

    Ulysses: q, k and v there, what was attended back. Ring: keys and values, beside the attention. Tensor: the rows
    before two products of a layer, and the sums after two. Pipeline: the rows that a process has. Behind the last layer
    all rows come together. The two numbers of a row that scales are chosen by are not counted.
    """
    rows, layers = -(-tokens // layout.split), own.num_hidden_layers
    heads = size * rows * (2 * own.query_width + 2 * max(own.kv_width, layout.ulysses * own.head_dim))
    around = size * rows * 2 * max(own.kv_width, layout.ulysses * own.head_dim)
    waited = layers * (share(layout.ulysses) * heads + 4 * share(layout.tensor) * rows * row)
    waited += (share(layout.split) * tokens + share(layout.tensor) * rows) * row
    waited += (layout.pipeline > 1) * -(-rows // layout.tensor) * row
    return Exchange(waited, layers * (layout.ring - 1) * around)
