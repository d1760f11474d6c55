"""Several devices: what of the model each of them has."""

from __future__ import annotations

from dataclasses import replace

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
