"""The two towers: bytes of their weights and activations, arithmetic of a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...model.config import TransformerConfig
from ...quant import Format
from .units import UNPACKED_RATE, WIDTH, Work, rate_of, weight_bytes

NO_FORMATS: Mapping[str, Format] = MappingProxyType({})
UNPACKED = 3 * 4 * 2**24
"""Bytes that a part of a weight takes while eager torch unpacks it: three fp32 tensors of the elements that
`quant.numerics` unpacks together."""


def weights(
    config: TransformerConfig, dtype: str, format: Format | None = None, kept_layers: int = 0
) -> dict[str, int]:
    """Bytes of each part of the towers in `dtype`, the decoder layers' matrices in a quantization format but those of
    the media tower's first `kept_layers`. What no run loads is left out: the language head, the text's final norm."""
    c, hidden, size = config, config.hidden_size, WIDTH[dtype]
    matrices = (
        (hidden, c.query_width + 2 * c.kv_width),
        (c.query_width, hidden),
        (hidden, (2 if c.gated else 1) * c.intermediate_size),
        (c.intermediate_size, hidden),
    )
    quantized, kept = (
        sum(int(inputs * outputs * weight_bytes(dtype, one, inputs)) for inputs, outputs in matrices)
        for one in (format, None)
    )
    norms = 2 * hidden
    text_norms = norms + 2 * c.head_dim * c.qk_norm_for_text + c.head_dim * c.und_norm_for_gen
    media = kept_layers * kept + (c.num_hidden_layers - kept_layers) * quantized
    heads = 2 * hidden * c.patch_dim + hidden + c.patch_dim + hidden
    if c.sound_gen:
        heads += 2 * hidden * c.sound_dim + 2 * hidden + c.sound_dim
    action = 0
    if c.action_gen:
        action = c.num_embodiment_domains * (2 * hidden * c.action_dim + hidden + c.action_dim) + hidden
    return {
        "understanding": c.num_hidden_layers * (quantized + size * text_norms),
        "embedding": size * c.vocab_size * hidden,
        "generation": media + c.num_hidden_layers * size * (norms + 2 * c.head_dim),
        "heads": size * heads,
        "action": size * action,
        "timestep": WIDTH["float32"] * ((256 + 1) * hidden + (hidden + 1) * hidden),
    }


def und_kv_bytes(config: TransformerConfig, tokens: int, dtype: str) -> int:
    """Keys and values that a prompt of so many tokens leaves for generation."""
    return 2 * config.num_hidden_layers * config.kv_width * tokens * WIDTH[dtype]


def layer_bytes(config: TransformerConfig, rows: int, context: int, size: int, branches: int = 1) -> int:
    """Peak of one decoder layer's tensors: `rows` = branches x tokens, each branch attending to `context` + its own.

    Beside the residual stream lie, before the output product, the fused projection (v is a view of it), what is
    rotated, and attention (keys and values concatenated and repeated for every query head); after it what was attended,
    and the fp32 norm or the MLP.
    """
    c = config
    residual = rows * c.hidden_size * size
    heads = rows * (2 * c.query_width + 3 * c.kv_width) * size
    keys = rows // branches + context
    attended = rows * c.query_width * size
    attention = 2 * keys * (c.kv_width + c.query_width) * size + attended
    norm = attended + rows * c.hidden_size * ((2 + c.weight_fp32_norm) * size + 2 * 4)
    up = (2 if c.gated else 1) * c.intermediate_size
    mlp = attended + rows * (c.hidden_size + up) * size
    rotate = rows * c.query_width * 2 * 4
    return residual + max(heads + attention, heads + rotate, norm, mlp)


def forward_work(
    config: TransformerConfig,
    tokens: int,
    context: int,
    dtype: str,
    *,
    causal: bool = False,
    formats: Mapping[str, Format] = NO_FORMATS,
    unpacks: bool = False,
    widens: bool = False,
    kept_layers: int = 0,
    attended: Sequence[tuple[int, float]] | None = None,
) -> list[Work]:
    """The parts of one pass of one branch through one tower (docs/model.md, section 3.2). The matrices of the first
    `kept_layers` are kept in `dtype`, and so is the text's attention, which is the causal one. `attended` has the
    queries and keys of each attention where there are several. `unpacks`: eager torch makes the weights fp32 numbers
    in every pass; `widens`: a row makes them numbers in `dtype`."""
    c, keys = config, tokens / 2 if causal else tokens + context
    linear, attention = formats.get("pack_linear"), None if causal else formats.get("attention")
    split = ((kept_layers, None), (c.num_hidden_layers - kept_layers, linear))
    work = [_linear_work(c, tokens, layers, dtype, one, unpacks, widens) for layers, one in split if layers]
    work += [_attention_work(c, *one, dtype, attention) for one in attended or [(tokens, keys)]]
    up = (2 if c.gated else 1) * c.intermediate_size
    rows = 8 * c.hidden_size + 2 * (c.query_width + c.kv_width) + up + c.intermediate_size
    bytes_moved = c.num_hidden_layers * WIDTH[dtype] * tokens * rows
    return [*work, Work(0, bytes_moved, rate_of(dtype))]


def _linear_work(
    c: TransformerConfig, tokens: int, layers: int, dtype: str, format: Format | None, unpacks: bool, widens: bool
) -> Work:
    projected, up = 2 * c.query_width + 2 * c.kv_width, (2 if c.gated else 1) * c.intermediate_size
    matrices = c.hidden_size * projected + c.hidden_size * (up + c.intermediate_size)
    rows = tokens * (4 * c.hidden_size + projected + up + c.intermediate_size)
    moved = layers * (matrices * weight_bytes(dtype, format, c.hidden_size) + WIDTH[dtype] * rows)
    multiplied = UNPACKED_RATE if unpacks else dtype if widens else None
    if format is None or multiplied is None:
        return Work(2 * layers * tokens * matrices, moved, rate_of(dtype, format))
    moved += layers * matrices * 2 * WIDTH[multiplied]  # the numbers are written and read
    return Work(2 * layers * tokens * matrices, moved, rate_of(multiplied))


def unpacking_bytes(config: TransformerConfig, rows: int) -> int:
    """What a product by eager torch in a format takes beside a layer's tensors: the rows in fp32, once more as they are
    packed, and a part of the weight."""
    return (
        2 * WIDTH["float32"] * rows * max(config.hidden_size, config.query_width, config.intermediate_size) + UNPACKED
    )


def widening_bytes(config: TransformerConfig, rows: int, dtype: str) -> int:
    """What a product by a row that widens takes beside a layer's tensors: the largest matrix in `dtype`, and the rows
    once more, as activations are rounded."""
    c = config
    up = (2 if c.gated else 1) * c.intermediate_size
    largest = max(c.hidden_size * max(up, c.query_width + 2 * c.kv_width), c.query_width * c.hidden_size)
    return WIDTH[dtype] * (largest + rows * max(c.hidden_size, c.query_width, c.intermediate_size))


def _attention_work(c: TransformerConfig, tokens: int, keys: float, dtype: str, format: Format | None) -> Work:
    layers = c.num_hidden_layers
    moved = layers * WIDTH[dtype] * (2 * tokens * c.query_width + 2 * keys * c.kv_width)
    return Work(layers * 4 * c.query_width * tokens * keys, moved, rate_of(dtype, format))
