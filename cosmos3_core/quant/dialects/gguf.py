"""llama.cpp's blocks, as its GGUF files hold them; how they lie is `quant.layouts`'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..formats import FORMATS, Format
from .common import Broken, Clues, Dialect, Header, Layout, Scheme

if TYPE_CHECKING:
    from ..numerics import Packed
    from .layouts import Tensors


TYPES = {name.upper(): name for name in ("q4_0", "q5_1", "q8_0", "q4_k", "q6_k")}
"""Types of blocks that are read, and the formats that they are."""


def describe(clues: Clues) -> Scheme:
    """The types are those of the file's table."""

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        header = parts.get("weight")
        if header is None or not header.type:
            return None
        if header.shape != shape:
            raise Broken("weight", f"it is {list(header.shape)} instead of {list(shape)}")
        return _layout(FORMATS[TYPES[header.type]])

    held = {header.type: None for header in (clues.headers or {}).values() if header.type in TYPES}
    return Scheme(formats=tuple(FORMATS[TYPES[name]] for name in held), layout=layout)


def _layout(format: Format) -> Layout:
    def read(tensors: Tensors) -> Packed:
        from ..layouts import llama

        weight = llama(format, tensors["weight"])
        for name, held in weight.tensors().items():
            if held.is_floating_point() and not held.isfinite().all():
                raise Broken("weight", f"the {name} of one of its blocks are NaN or infinite")
        return weight

    return Layout(format=format, parts=("weight",), small=(), read=read, check=lambda tensors: None)


GGUF = Dialect(
    name="gguf",
    detect=lambda clues: "its weights are a GGUF file" if clues.gguf else None,
    keys={},
    harmless=(),
    suffixes=("weight",),
    describe=describe,
)
