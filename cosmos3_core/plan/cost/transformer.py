"""The two towers: bytes of their weights and activations, arithmetic of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...model.config import FINISH_ROWS, TransformerConfig
from ...quant import Format
from ..mesh import Layout
from .units import UNPACKED_RATE, WIDTH, Work, rate_of, weight_bytes

FormatOf = Callable[[int, str], Format | None]
UNPACKED = 3 * 4 * 2**24
"""Bytes that a part of a weight takes while eager torch unpacks it: three fp32 tensors of the elements that
`quant.numerics` unpacks together."""


def _in_dtype(i: int, name: str) -> Format | None:
    return None


@dataclass(frozen=True)
class Matrices:
    """Those of a tower's layers that are in one `format`, or in the dtype: how many `weights` they have, in so many
    `bytes`."""

    format: Format | None
    weights: int
    bytes: int


def sides(config: TransformerConfig, media: bool) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's matrices, by what the names of their modules end in (`model.weights.layer_slots`
    has them too, and torch with them)."""
    c, hidden = config, config.hidden_size
    q, k, v, out = (
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out") if media else ("to_q", "to_k", "to_v", "to_out")
    )
    mlp = "mlp_moe_gen" if media else "mlp"
    found = {f"self_attn.{name}": (hidden, width) for name, width in ((q, c.query_width), (k, c.kv_width))}
    found |= {f"self_attn.{v}": (hidden, c.kv_width), f"self_attn.{out}": (c.query_width, hidden)}
    for name in ("gate_proj", "up_proj") if c.gated else ("up_proj",):
        found[f"{mlp}.{name}"] = hidden, c.intermediate_size
    return found | {f"{mlp}.down_proj": (c.intermediate_size, hidden)}


def matrices(config: TransformerConfig, dtype: str, media: bool, format_of: FormatOf) -> list[Matrices]:
    """A tower's, each format's together; `format_of` is asked for the one of layer i's matrix by its name."""
    counted: dict[tuple[str, str], int] = {}  # layers that hold one matrix in one format
    formats: dict[str, Format | None] = {}
    names = sides(config, media)
    for i in range(config.num_hidden_layers):
        for name in names:
            format = format_of(i, name)
            formats[key := format.name if format else ""] = format
            counted[key, name] = counted.get((key, name), 0) + 1
    found = []
    for key, format in formats.items():
        held = [(count, *names[name]) for (one, name), count in counted.items() if one == key]
        size = sum(count * int(i * o * weight_bytes(dtype, format, i)) for count, i, o in held)
        found.append(Matrices(format, sum(count * i * o for count, i, o in held), size))
    return found


def largest_layer(config: TransformerConfig, dtype: str, media: bool, format_of: FormatOf) -> int:
    """Bytes of a tower's largest layer, its norms included."""
    names, norms = sides(config, media), 2 * config.hidden_size + 3 * config.head_dim

    def size(i: int) -> int:
        return sum(
            int(ins * outs * weight_bytes(dtype, format_of(i, name), ins)) for name, (ins, outs) in names.items()
        )

    return max(map(size, range(config.num_hidden_layers))) + WIDTH[dtype] * norms


def weights(
    config: TransformerConfig,
    dtype: str,
    text: Sequence[Matrices] | None = None,
    media: Sequence[Matrices] | None = None,
) -> dict[str, int]:
    """Bytes of each part of the towers in `dtype`, whose layers have these matrices (None: in it too). What no run
    loads is left out: the language head, the text's final norm."""
    c, hidden, size = config, config.hidden_size, WIDTH[dtype]
    text, media = (
        matrices(config, dtype, is_media, _in_dtype) if given is None else given
        for is_media, given in ((False, text), (True, media))
    )
    norms = 2 * hidden
    text_norms = norms + 2 * c.head_dim * c.qk_norm_for_text + c.head_dim * c.und_norm_for_gen
    heads = 2 * hidden * c.patch_dim + hidden + c.patch_dim + hidden
    if c.sound_gen:
        heads += 2 * hidden * c.sound_dim + 2 * hidden + c.sound_dim
    action = 0
    if c.action_gen:
        action = c.num_embodiment_domains * (2 * hidden * c.action_dim + hidden + c.action_dim) + hidden
    return {
        "understanding": sum(one.bytes for one in text) + c.num_hidden_layers * size * text_norms,
        "embedding": size * c.vocab_size * hidden,
        "generation": sum(one.bytes for one in media) + c.num_hidden_layers * size * (norms + 2 * c.head_dim),
        "heads": size * heads,
        "action": size * action,
        "timestep": WIDTH["float32"] * ((256 + 1) * hidden + (hidden + 1) * hidden),
    }


def und_kv_bytes(config: TransformerConfig, tokens: int, dtype: str) -> int:
    """Keys and values that a prompt of so many tokens leaves for generation."""
    return 2 * config.num_hidden_layers * config.kv_width * tokens * WIDTH[dtype]


@dataclass(frozen=True)
class Attending:
    """How attention is done: by eager torch, which `repeats` keys and values for every query head and rotates in
    tensors of its own, or by a kernel that does neither; with copies of q, k and v in a format of so many `copied`
    bytes an element; to one of several weighted `controls` at a time."""

    repeats: bool = True
    copied: int = 0
    controls: int = 0


EAGER = Attending()


def attending_bytes(
    config: TransformerConfig, rows: int, context: int, size: int, branches: int = 1, how: Attending = EAGER
) -> int:
    """Peak of what attention takes beside q, k and v, as `layer_bytes` says: keys and values put together, and what it
    gives. One branch is done after another. Of several controls with weights each has a pass with the tokens of what is
    made, with copies of their q, k and v; a control has as many."""
    c, one = config, rows // branches
    query, key = c.query_width * size, c.kv_width * size

    def call(queries: int) -> int:
        keys = queries + context
        copies = how.copied * (queries * c.query_width + 2 * keys * c.kv_width)
        return 2 * keys * (key + how.repeats * query) + copies + queries * query

    worst = call(one)
    if how.controls > 1:
        made = one // (how.controls + 1)
        passing = 2 * made * (query + 2 * key) + call(2 * made) + (how.controls - 1) * 2 * made * query
        summing = how.controls * 2 * made * query + one * query
        worst = max(passing, summing) + made * query
    return max((rows - one) * query + worst, 2 * rows * query if branches > 1 else 0)


def layer_bytes(
    config: TransformerConfig, rows: int, context: int, size: int, branches: int = 1, how: Attending = EAGER
) -> int:
    """Peak of one decoder layer's tensors: `rows` = branches x tokens, each branch attending to `context` + its own.

    Beside the residual stream lie, before the output product, the fused projection (v is a view of it), the queries'
    rotation by eager torch in four tensors, and attention; after it what was attended, and the fp32 norm or the MLP, of
    FINISH_ROWS at a time, with what those before left to add.
    """
    c = config
    residual = rows * c.hidden_size * size
    heads = rows * (2 * c.query_width + 3 * c.kv_width) * size
    attended = rows * c.query_width * size
    attention = attending_bytes(c, rows, context, size, branches, how)
    part = min(rows, FINISH_ROWS)
    left = attended + (residual if part < rows else 0)
    norm = left + part * c.hidden_size * ((2 + c.weight_fp32_norm) * size + 2 * 4)
    up = (2 if c.gated else 1) * c.intermediate_size
    mlp = left + part * (c.hidden_size + up) * size
    rotate = rows * (5 * c.query_width + 2 * c.kv_width) * size
    rotate += c.weight_fp32_norm * rows * c.query_width * (WIDTH["float32"] - size)
    return residual + max(heads + attention, how.repeats * rotate, norm, mlp)


def forward_work(
    config: TransformerConfig,
    tokens: int,
    context: int,
    dtype: str,
    *,
    causal: bool = False,
    linears: Sequence[Matrices] | None = None,
    attention: Format | None = None,
    unpacks: bool = False,
    widens: bool = False,
    attended: Sequence[tuple[int, float]] | None = None,
) -> list[Work]:
    """The parts of one pass of one branch through one tower (docs/model.md, section 3.2), whose layers have these
    `linears` (None: in `dtype`). The text's attention, the causal one, is never in a format. `attended` has the queries
    and keys of each attention where there are several. `unpacks`: eager torch makes the weights fp32 numbers in every
    pass; `widens`: a row makes them numbers in `dtype`."""
    c, keys = config, tokens / 2 if causal else tokens + context
    linears = matrices(c, dtype, not causal, _in_dtype) if linears is None else linears
    whole, multiplied = sum(one.weights for one in linears), UNPACKED_RATE if unpacks else dtype if widens else None
    work = [_linear_work(c, tokens, one, one.weights / whole, dtype, multiplied) for one in linears]
    work += [_attention_work(c, *one, dtype, attention) for one in attended or [(tokens, keys)]]
    up = (2 if c.gated else 1) * c.intermediate_size
    rows = 8 * c.hidden_size + 2 * (c.query_width + c.kv_width) + up + c.intermediate_size
    bytes_moved = c.num_hidden_layers * WIDTH[dtype] * tokens * rows
    return [*work, Work(0, bytes_moved, rate_of(dtype))]


def _linear_work(
    c: TransformerConfig, tokens: int, held: Matrices, share: float, dtype: str, multiplied: str | None
) -> Work:
    """Products with these matrices, which are such a share of all; those in a format as numbers in the dtype
    `multiplied`, or in it (None)."""
    projected, up = 2 * c.query_width + 2 * c.kv_width, (2 if c.gated else 1) * c.intermediate_size
    rows = tokens * (4 * c.hidden_size + projected + up + c.intermediate_size)
    moved = held.bytes + share * c.num_hidden_layers * WIDTH[dtype] * rows
    if held.format is None or multiplied is None:
        return Work(2 * tokens * held.weights, moved, rate_of(dtype, held.format))
    moved += held.weights * 2 * WIDTH[multiplied]  # the numbers are written and read
    return Work(2 * tokens * held.weights, moved, rate_of(multiplied))


def exchanged_bytes(config: TransformerConfig, rows: int, whole: int, layout: Layout, size: int) -> int:
    """What a pass takes beside a layer's tensors on a device that has so many `rows` of the `whole`: q, k and v as sent
    and as they come, around a ring the sum of the attention in fp32, and all rows before the first layer and after the
    last."""
    c = config
    if layout.split == 1:
        return 0
    moved = 2 * size * rows * (c.query_width + 2 * max(c.kv_width, layout.ulysses * c.head_dim))
    summed = 2 * WIDTH["float32"] * rows * c.query_width if layout.ring > 1 else 0
    return moved + summed + 2 * size * whole * c.hidden_size


def unpacking_bytes(config: TransformerConfig, rows: int) -> int:
    """What a product by eager torch in a format takes beside a layer's tensors: the rows in fp32, once more as they are
    packed, and a part of the weight."""
    return 2 * WIDTH["float32"] * rounding_bytes(config, rows) + UNPACKED


def rounding_bytes(config: TransformerConfig, rows: int) -> int:
    """What a product takes beside a layer's tensors that rounds its rows to 8 bits first."""
    c = config
    return max(rows * c.hidden_size, min(rows, FINISH_ROWS) * max(c.query_width, c.intermediate_size))


def widening_bytes(config: TransformerConfig, rows: int, dtype: str, *, rounds: bool) -> int:
    """What a product by a row that widens takes beside a layer's tensors: the largest matrix in `dtype`, and the rows
    once more where it `rounds` activations."""
    c = config
    up = (2 if c.gated else 1) * c.intermediate_size
    largest = max(c.hidden_size * max(up, c.query_width + 2 * c.kv_width), c.query_width * c.hidden_size)
    return WIDTH[dtype] * (largest + rounds * rounding_bytes(c, rows))


def _attention_work(c: TransformerConfig, tokens: int, keys: float, dtype: str, format: Format | None) -> Work:
    layers = c.num_hidden_layers
    moved = layers * WIDTH[dtype] * (2 * tokens * c.query_width + 2 * keys * c.kv_width)
    return Work(layers * 4 * c.query_width * tokens * keys, moved, rate_of(dtype, format), op="attention")
