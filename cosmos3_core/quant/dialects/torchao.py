"""torchao's tensor subclasses, as its functions for safetensors flatten them: `_weight_qdata` and `_weight_scale`
beside a JSON of the weight's class in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS, Format
from .common import ANYTHING, OBJECT, TEXT, Broken, Clues, Dialect, Header, Layout, Scheme, expect, refuse, understood
from .layouts import eight_bit

if TYPE_CHECKING:
    from .layouts import Tensors

DATA, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
CONFIGS = {
    "Float8WeightOnlyConfig": "fp8a16",
    "Float8DynamicActivationFloat8WeightConfig": "fp8",
    "Int8WeightOnlyConfig": "int8a16",
    "Int8DynamicActivationInt8WeightConfig": "int8",
}
"""Its configs, by the formats that they make."""
TENSORS = {"Float8Tensor": "fp8", "Int8Tensor": "int8"}


def describe(clues: Clues) -> Scheme:
    """Raises InputError."""
    formats: tuple[Format, ...] = ()
    if clues.config is not None:
        where, chosen = "quantization_config.quant_type", clues.config.get("quant_type")
        if isinstance(chosen, Mapping):
            chosen = understood(clues, where, chosen, {"default": OBJECT}).get("default")
        if isinstance(chosen, Mapping):
            chosen = understood(clues, f"{where}.default", chosen, {"_type": TEXT, "_data": OBJECT}, ("_version",))
            _check_attributes(clues, f"{where}.default", chosen.get("_data", {}))
        name = chosen.get("_type") if isinstance(chosen, Mapping) else chosen
        if not isinstance(name, str) or name not in CONFIGS:
            raise refuse(clues, "quantization_config", f"quant_type {name!r}", f"cosmos3 reads {', '.join(CONFIGS)}")
        formats = (FORMATS[CONFIGS[name]],)

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if not set(parts) - {"weight"}:
            return None
        return _layout(_class(clues.metadata.get(f"{module}.weight")), parts, shape)

    return Scheme(formats=formats, layout=layout)


def _check_attributes(clues: Clues, where: str, data: Mapping[str, Any]) -> None:
    """Of a config what the weights' own metadata does not say. Raises InputError."""
    if data.get("group_size") not in (None, -1):
        raise refuse(clues, where, f"group_size {data['group_size']!r}, and cosmos3 reads one scale for each row")
    dtype = data.get("weight_dtype")
    dtype = dtype.get("_data") if isinstance(dtype, Mapping) else dtype
    if dtype not in (None, "float8_e4m3fn"):
        raise refuse(clues, where, f"weight_dtype {dtype!r}, and cosmos3 reads float8_e4m3fn")


def _class(text: str | None) -> tuple[str, Mapping[str, Any]]:
    """The weight's class and its attributes. Raises Broken."""
    try:
        said = json.loads(text or "null")
        kind, held = said["_type"], said["_data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Broken(None, "the file's metadata does not say of which class of torchao it is") from None
    if not isinstance(kind, str) or kind not in TENSORS or not isinstance(held, Mapping):
        raise Broken(None, f"it is a {kind}, and of torchao's tensors cosmos3 reads {', '.join(TENSORS)}")
    return kind, held


def _layout(said: tuple[str, Mapping[str, Any]], parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout:
    kind, held = said
    name, inputs = TENSORS[kind], held.get("act_quant_kwargs")
    attributes = inputs.get("_data") if isinstance(inputs, Mapping) else None
    if inputs is not None and not (
        isinstance(attributes, Mapping) and "PerRow" in json.dumps(attributes.get("granularity"))
    ):
        raise Broken(None, "its activations have one scale for all tokens, which cosmos3 does not do")
    if (block := held.get("block_size")) not in ([1, shape[1]], list(shape)):
        raise Broken(SCALE, f"it is of blocks of {block}, and cosmos3 reads one scale for each row or for the tensor")
    plain = {part: header for part, header in parts.items() if part != ZERO}
    found = eight_bit(plain, shape, FORMATS[name if inputs else f"{name}a16"], weight=DATA, scale=SCALE)
    if ZERO not in parts:
        return found
    expect(parts, ZERO, parts[SCALE].shape, "int8")

    def check(tensors: Tensors) -> None:
        found.check(tensors)
        if tensors[ZERO].any():
            raise Broken(ZERO, "a zero point is not 0, and cosmos3 has no asymmetric int8")

    return replace(found, parts=(*found.parts, ZERO), small=(*found.small, ZERO), check=check)


def detect(clues: Clues) -> str | None:
    """By what is flattened in the files."""
    if "tensor_names" in clues.metadata and any('"_type"' in text for text in clues.metadata.values()):
        return "the files' metadata names classes of torchao"
    return None


TORCHAO = Dialect(
    name="torchao",
    methods=("torchao",),
    detect=detect,
    keys={"quant_method": TEXT, "quant_type": ANYTHING},
    harmless=(
        "modules_to_not_convert",
        "include_input_output_embeddings",
        "untie_embedding_weights",
        "torchao_version",
    ),
    suffixes=("weight", DATA, SCALE, ZERO, "_weight_act_quant_scale", "_weight_act_pre_scale"),
    describe=describe,
)
