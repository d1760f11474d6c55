"""llama.cpp's blocks, as its GGUF files hold them (ggml-common.h and ggml-quants.c): scales, minima and codes of a
block lie together, and are taken apart here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS
from .common import Broken, Clues, Dialect, Header, Layout, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from ..numerics import Packed
    from .layouts import Tensors


@dataclass(frozen=True)
class Block:
    """A type of block: the elements and bytes of one, the format, and how blocks [O, n, bytes] become its fields."""

    elements: int
    bytes: int
    format: str
    take: Callable[[Tensor], dict[str, Any]]


def _half(blocks: Tensor, at: int) -> Tensor:
    """fp16 [O, n] at a byte of each block."""
    import torch

    return blocks[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)


def _halves(nibbles: Tensor) -> Tensor:
    """Codes [..., 2n] of bytes [..., n] whose low nibbles are the first half of them."""
    import torch

    return torch.cat((nibbles & 15, nibbles >> 4), -1)


def _q4_0(blocks: Tensor) -> dict[str, Any]:
    return {"scales": _half(blocks, 0), "codes": _halves(blocks[..., 2:])}


def _q5_1(blocks: Tensor) -> dict[str, Any]:
    import torch

    fifth = (blocks[..., 4:8].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    codes = _halves(blocks[..., 8:]) | (fifth.flatten(-2) << 4)
    return {"scales": _half(blocks, 0), "minima": _half(blocks, 2), "codes": codes}


def _q8_0(blocks: Tensor) -> dict[str, Any]:
    import torch

    return {"scales": _half(blocks, 0), "codes": blocks[..., 2:].contiguous().view(torch.int8)}


def _q4_k(blocks: Tensor) -> dict[str, Any]:
    """8 scales and 8 minima of 6 bits in 12 bytes: the first four of each in a byte, of the others the low nibbles
    together and the high bits above the first four's."""
    import torch

    d, m, low = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = torch.cat((d & 63, (low & 15) | ((d >> 6) << 4)), -1)
    minima = torch.cat((m & 63, (low >> 4) | ((m >> 6) << 4)), -1)
    codes = _halves(blocks[..., 16:].unflatten(-1, (4, 32))).flatten(-2)
    supers = {"super_scales": _half(blocks, 0), "super_minima": -_half(blocks, 2)}
    return {"scales": scales.flatten(-2), "minima": minima.flatten(-2), "codes": codes} | supers


def _q6_k(blocks: Tensor) -> dict[str, Any]:
    """Of 128 elements the low nibbles lie in 64 bytes, 32 and 32 side by side, and the high two bits in 32 bytes."""
    import torch

    low = _halves(blocks[..., :128].unflatten(-1, (2, 64)))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(-1)
    high = ((blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts) & 3).flatten(-2)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).flatten(-2)
    return {"scales": scales, "super_scales": _half(blocks, 208), "codes": (low | (high << 4)).flatten(-2)}


BLOCKS = {
    "Q4_0": Block(32, 18, "q4_0", _q4_0),
    "Q5_1": Block(32, 24, "q5_1", _q5_1),
    "Q8_0": Block(32, 34, "q8_0", _q8_0),
    "Q4_K": Block(256, 144, "q4_k", _q4_k),
    "Q6_K": Block(256, 210, "q6_k", _q6_k),
}
"""Types of blocks that are read."""


def describe(clues: Clues) -> Scheme:
    """The types are those of the file's table."""

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        header = parts.get("weight")
        if header is None or not header.type:
            return None
        if header.shape != shape:
            raise Broken("weight", f"it is {list(header.shape)} instead of {list(shape)}")
        return _layout(BLOCKS[header.type])

    held = {header.type: None for header in (clues.headers or {}).values() if header.type in BLOCKS}
    return Scheme(formats=tuple(FORMATS[BLOCKS[name].format] for name in held), layout=layout)


def _layout(block: Block) -> Layout:
    format = FORMATS[block.format]

    def read(tensors: Tensors) -> Packed:
        from ..codes import to_bytes
        from ..numerics import Packed

        rows = tensors["weight"]
        fields = block.take(rows.unflatten(-1, (-1, block.bytes)))
        for name in ("scales", "minima", "super_scales", "super_minima"):
            if name in fields and fields[name].is_floating_point() and not fields[name].isfinite().all():
                raise Broken("weight", f"the {name} of one of its blocks is NaN or infinite")
        codes = fields.pop("codes").flatten(1)
        values = codes if block.format == "q8_0" else to_bytes(codes.contiguous(), format.bits)
        return Packed(format, values, **fields)

    return Layout(format=format, parts=("weight",), small=(), read=read, check=lambda tensors: None)


GGUF = Dialect(
    name="gguf",
    detect=lambda clues: "its weights are a GGUF file" if clues.gguf else None,
    keys=(),
    harmless=(),
    suffixes=("weight",),
    describe=describe,
)
