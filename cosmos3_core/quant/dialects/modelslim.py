"""Huawei ModelSlim: int8 for Ascend. quant_model_description.json says of each tensor what it is: FLOAT, W8A8_DYNAMIC
(a scale for each token) or W8A8 (a stored scale of the inputs, `deq_scale` and `quant_bias` for the product)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..formats import FORMATS
from .common import (
    ANYTHING,
    PLAIN,
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
    understood,
)

if TYPE_CHECKING:
    from ..numerics import Packed
    from .layouts import Tensors

NAMES = (
    "quant_model_description.json",
    "quant_model_description_w8a8.json",
    "quant_model_description_w8a8_dynamic.json",
)
KINDS = {"W8A8_DYNAMIC": "int8", "W8A8": "int8_static"}
GENERAL = ("model_quant_type", "version", "group_size", "kv_cache_type", "kv_quant_type", "fa_quant_type", "metadata")
DYNAMIC: tuple[str, ...] = ("weight", "weight_scale", "weight_offset")
STATIC: tuple[str, ...] = (*DYNAMIC, "input_scale", "input_offset", "quant_bias", "deq_scale")


def _said(clues: Clues) -> dict[str, str]:
    """Of each tensor, by its name, what it is. Raises InputError."""
    found = [name for name in NAMES if name in clues.files]
    if len(found) > 1:
        raise refuse(clues, "folder", f"{' and '.join(found)}, which both describe it", "Keep one of them")
    whole = clues.files[found[0]]
    said = {key: str(value) for key, value in whole.items() if key not in GENERAL and isinstance(value, str)}
    understood(clues, found[0], {key: value for key, value in whole.items() if key not in said}, {}, GENERAL)
    if (kind := whole.get("model_quant_type")) not in (*KINDS, None):
        raise refuse(clues, found[0], f"model_quant_type {kind!r}", f"cosmos3 reads {' and '.join(KINDS)}")
    if strange := {kind for kind in said.values() if kind not in (*KINDS, "FLOAT")}:
        raise refuse(clues, found[0], f"{', '.join(sorted(strange))}", f"cosmos3 reads {' and '.join(KINDS)}")
    return said


def describe(clues: Clues) -> Scheme:
    """Raises InputError."""
    said = _said(clues)

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        kind, whole = said.get(f"{module}.weight", "FLOAT"), "weight" in parts and parts["weight"].dtype in PLAIN
        if kind == "FLOAT":
            if not whole or len(parts) > 1:
                raise Broken("weight", "the description says that it is FLOAT, or nothing, and it is quantized")
            return None
        if whole:
            raise Broken("weight", f"the description says that it is {kind}, and it is {parts['weight'].dtype}")
        return _layout(kind, parts, shape)

    kinds = [kind for kind in KINDS if kind in said.values()]
    return Scheme(formats=tuple(FORMATS[KINDS[kind]] for kind in kinds), layout=layout)


def _layout(kind: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout:
    outputs, _ = shape
    static = kind == "W8A8"
    format, rows, one = FORMATS[KINDS[kind]], [(outputs,), (outputs, 1)], [(), (1,)]
    wanted = STATIC if static else DYNAMIC
    if static and "weight_scale" not in parts:  # older versions write what follows from deq_scale nowhere else
        wanted = tuple(part for part in wanted if part not in ("weight_scale", "weight_offset"))
    present(parts, wanted, f"a weight in {kind}")
    expect(parts, "weight", shape, "int8")
    for part, shapes, dtypes in (
        ("weight_scale", rows, PLAIN),
        ("weight_offset", rows, (*PLAIN, "int8")),
        ("input_scale", one, PLAIN),
        ("input_offset", one, (*PLAIN, "int8")),
        ("quant_bias", rows, ("int32",)),
        ("deq_scale", rows, ("float32",)),
    ):
        if part in wanted:
            expect(parts, part, shapes, *dtypes)

    def check(tensors: Tensors) -> None:
        if "weight_scale" in wanted:
            positive(tensors, "weight_scale")
            if tensors["weight_offset"].any():
                raise Broken("weight_offset", "an offset is not 0, and cosmos3 has no asymmetric int8")
        if static:
            positive(tensors, "input_scale")
            positive(tensors, "deq_scale")
            if "weight_scale" in wanted:
                product = tensors["weight_scale"].float().reshape(-1) * tensors["input_scale"].float().reshape(())
                ratio = tensors["deq_scale"].reshape(-1) / product
                if not (0.98 < ratio.min() and ratio.max() < 1.02):  # its factors may be in bf16
                    raise Broken("deq_scale", "it is not the product of weight_scale and input_scale")
            for part in ("input_offset", "quant_bias"):
                if tensors[part].any():
                    found = "it is not 0: inputs are asymmetric, and cosmos3 has no such format"
                    raise Broken(part, f"{found}; quantize with act_method symmetric, or as W8A8_DYNAMIC")

    def read(tensors: Tensors) -> Packed:
        from ..numerics import Packed

        given = tensors["input_scale"].float().reshape(()) if static else None
        if "weight_scale" in tensors:
            scales = tensors["weight_scale"].float().reshape(-1, 1)
        else:
            assert given is not None
            scales = tensors["deq_scale"].reshape(-1, 1) / given
        return Packed(format, tensors["weight"], scales, input_scale=given)

    small = tuple(part for part in wanted if part != "weight")
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


MODELSLIM = Dialect(
    name="modelslim",
    detect=lambda clues: next((f"there is a {name}" for name in NAMES if name in clues.files), None),
    keys={"model_quant_type": ANYTHING},
    harmless=GENERAL[1:],
    suffixes=STATIC,
    describe=describe,
)
