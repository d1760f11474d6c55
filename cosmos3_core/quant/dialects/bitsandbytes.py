"""bitsandbytes' NF4: blocks of the flat weight with a scale each, the scales plain or quantized once more to 8 bits.

Of two codes the first is in the high nibble. `absmax` are the scales; quantized they are indices into
`nested_quant_map`, times `nested_absmax` of blocks of 256, plus an offset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS, NF4_VALUES
from .common import (
    FLAG,
    TEXT,
    Broken,
    Clues,
    Dialect,
    Header,
    Layout,
    Scheme,
    expect,
    positive,
    present,
    refuse,
    with_group,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..numerics import Packed
    from .layouts import Tensors

STATE = "weight.quant_state.bitsandbytes__nf4"
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
LARGEST_STATE = 1 << 14


def describe(clues: Clues) -> Scheme:
    """Raises InputError."""
    config = clues.config or {}
    if not config.get("load_in_4bit", config.get("_load_in_4bit", False)) or config.get("load_in_8bit", False):
        raise refuse(clues, "quantization_config", "load_in_8bit", "Of bitsandbytes' formats cosmos3 reads NF4")
    if (kind := config.get("bnb_4bit_quant_type", "fp4")) != "nf4":
        raise refuse(clues, "quantization_config", f"bnb_4bit_quant_type {kind!r}", "cosmos3 reads nf4")
    if (storage := config.get("bnb_4bit_quant_storage", "uint8")) != "uint8":
        raise refuse(clues, "quantization_config", f"bnb_4bit_quant_storage {storage!r}", "cosmos3 reads uint8")
    nested = config.get("bnb_4bit_use_double_quant", False)

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if set(parts) <= {"weight"} and ("weight" not in parts or parts["weight"].dtype != "uint8"):
            return None
        return _layout(parts, shape, nested)

    return Scheme(formats=(FORMATS["nf4"],), layout=layout)


def _layout(parts: Mapping[str, Header], shape: tuple[int, int], nested: bool) -> Layout:
    outputs, width = shape
    wanted = ["weight", "weight.absmax", "weight.quant_map", STATE, *(NESTED if nested else ())]
    present(parts, wanted, "an NF4 weight" + (", whose scales are quantized as the config says," if nested else ""))
    if not nested and (extra := [part for part in NESTED if part in parts]):
        raise Broken(extra[0], "the config says nothing of bnb_4bit_use_double_quant")
    expect(parts, "weight", [(outputs * width // 2, 1), (1, outputs * width // 2)], "uint8")
    expect(parts, "weight.quant_map", (16,), "float32")
    length = math.prod(parts[STATE].shape)
    expect(parts, STATE, (length,), "uint8")
    if length > LARGEST_STATE:
        raise Broken(STATE, f"it has {length:,} bytes, and {LARGEST_STATE:,} are the most read")
    if nested:
        expect(parts, NESTED[0], parts[NESTED[0]].shape, "float32")
        expect(parts, NESTED[1], (256,), "float32")
    count = parts["weight.absmax"].shape
    expect(parts, "weight.absmax", count, "uint8" if nested else "float32")
    if len(count) != 1 or not count[0] or outputs * width % count[0]:
        raise Broken("weight.absmax", f"its {list(count)} scales do not divide {outputs * width} elements")
    block = outputs * width // count[0]
    # A block may begin in one row and end in the next; what divides both has one scale.
    each = math.gcd(block, width)
    format = with_group("nf4", width, each)

    def check(tensors: Tensors) -> None:
        state = _state(tensors[STATE])
        if (said := state.get("blocksize")) != block:
            raise Broken(STATE, f"it says blocksize {said}, and the scales are of {block} elements")
        if (said := state.get("shape")) != [outputs, width]:
            raise Broken(STATE, f"it says shape {said}, and the model's config {[outputs, width]}")
        if (said := state.get("quant_type")) != "nf4":
            raise Broken(STATE, f"it says quant_type {said!r}, and the config nf4")
        if tensors["weight.quant_map"].tolist() != _table():
            raise Broken("weight.quant_map", "it is not the table of NF4")
        positive({"weight.absmax": _scales(tensors, state, nested)}, "weight.absmax", zero=True)

    def read(tensors: Tensors) -> Packed:
        from ..layouts import swapped_nibbles
        from ..numerics import Packed

        flat = tensors["weight"].reshape(outputs, width // 2)
        scales = _scales(tensors, _state(tensors[STATE]), nested)
        scales = scales.repeat_interleave(block // each).reshape(outputs, width // each)
        return Packed(format, swapped_nibbles(flat), scales)

    small = tuple(part for part in wanted if part != "weight")
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


def _table() -> list[float]:
    import torch

    found: list[float] = torch.tensor(NF4_VALUES).tolist()
    return found


def _state(tensor: Tensor) -> dict[str, Any]:
    """The JSON that bitsandbytes keeps in a tensor. Raises Broken."""
    try:
        state = json.loads(bytes(tensor.tolist()))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise Broken(STATE, "it holds no JSON object")
    return state


def _scales(tensors: Tensors, state: Mapping[str, Any], nested: bool) -> Tensor:
    """One for each block, fp32. Raises Broken."""
    absmax = tensors["weight.absmax"]
    if not nested:
        return absmax.float()
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or size < 1 or type(offset) is not float:
        raise Broken(STATE, f"it says nested_blocksize {size!r} and nested_offset {offset!r}")
    above, table = tensors[NESTED[0]], tensors[NESTED[1]]
    if above.shape != (-(-len(absmax) // size),):
        raise Broken(NESTED[0], f"it is {list(above.shape)}, and {len(absmax)} scales have blocks of {size}")
    found = table[absmax.long()] * above.repeat_interleave(min(size, len(absmax)))[: len(absmax)]
    return found + offset


BITSANDBYTES = Dialect(
    name="bitsandbytes",
    methods=("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"),
    keys={
        "quant_method": TEXT,
        "load_in_4bit": FLAG,
        "load_in_8bit": FLAG,
        "_load_in_4bit": FLAG,
        "_load_in_8bit": FLAG,
        "bnb_4bit_quant_type": TEXT,
        "bnb_4bit_quant_storage": TEXT,
        "bnb_4bit_use_double_quant": FLAG,
    },
    # What bitsandbytes computes in, and settings of LLM.int8().
    harmless=(
        "bnb_4bit_compute_dtype",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "llm_int8_skip_modules",
        "llm_int8_threshold",
        "modules_to_not_convert",
    ),
    suffixes=("weight", "weight.absmax", "weight.quant_map", STATE, *NESTED),
    describe=describe,
)
