"""Layouts that several dialects share: 8-bit matrices with scales beside them, and blocks of 4-bit floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..formats import FORMATS, Format
from .common import PLAIN, Broken, Header, Layout, expect, exponents, finite_codes, positive, present

if TYPE_CHECKING:
    from torch import Tensor

    from ..numerics import Packed

Parts = Mapping[str, Header]
Tensors = dict[str, "Tensor"]


def eight_bit(
    parts: Parts, shape: tuple[int, int], format: Format, *, weight: str = "weight", scale: str = "weight_scale"
) -> Layout:
    """int8 or e4m3 [O, I]; scales of the whole tensor [], [1] or [1, 1], of the rows [O] or [O, 1], or of blocks
    [O/outputs, I/group]. `format` says whether its activations have a stored scale, `input_scale`."""

    outputs, width = shape
    stored = "int8" if format.element == "int8" else "float8_e4m3fn"
    wanted = [weight, scale, *(["input_scale"] if format.static else [])]
    present(parts, wanted, f"a weight in {format.name}")
    expect(parts, weight, shape, stored)
    whole, rows = [(), (1,), (1, 1)], [(outputs,), (outputs, 1)]
    if format.group:
        blocks = (-(-outputs // format.outputs), -(-width // format.group))
        expect(parts, scale, blocks, *PLAIN)
        if outputs % format.outputs or width % format.group:
            found = f"blocks of {format.outputs} x {format.group} do not divide its {outputs} x {width}"
            raise Broken(weight, found)
    else:
        expect(parts, scale, whole + rows, *PLAIN)
        # One output's scale is the tensor's.
        format = replace(format, outputs=0 if parts[scale].shape in whole and outputs > 1 else 1)
    if format.static:
        expect(parts, "input_scale", whole, *PLAIN)

    def check(tensors: Tensors) -> None:
        positive(tensors, scale)
        if format.static:
            positive(tensors, "input_scale")

    def read(tensors: Tensors) -> Packed:
        from ..numerics import Packed

        values = tensors[weight] if stored == "int8" else finite_codes(tensors, weight)
        scales = tensors[scale].float()
        scales = scales if format.group else scales.reshape(1, 1) if not format.outputs else scales.reshape(-1, 1)
        given = tensors["input_scale"].float().reshape(()) if format.static else None
        return Packed(format, values, scales, input_scale=given)

    small = tuple(part for part in wanted if part != weight)
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


def mx(parts: Parts, shape: tuple[int, int], format: Format) -> Layout:
    """Blocks of 32 with e8m0 scales in uint8, the exponent + 127: e4m3 in `weight`, or pairs of e2m1 in
    `weight_packed`, the even index in the low nibble."""
    outputs, width = shape
    four = format.element == "e2m1"
    weight = "weight_packed" if four else "weight"
    present(parts, (weight, "weight_scale"), f"a weight in {format.name}")
    if width % format.group:
        raise Broken(weight, f"blocks of {format.group} do not divide its {width} input features")
    expect(parts, weight, (outputs, width // 2 if four else width), "uint8" if four else "float8_e4m3fn")
    expect(parts, "weight_scale", (outputs, width // format.group), "uint8")

    def read(tensors: Tensors) -> Packed:
        from ..numerics import Packed

        values = tensors[weight] if four else finite_codes(tensors, weight)
        return Packed(format, values, tensors["weight_scale"])

    wanted = (weight, "weight_scale")
    check = partial(exponents, part="weight_scale")
    return Layout(format=format, parts=tuple(wanted), small=wanted[1:], read=read, check=check)


def nvfp4(
    parts: Parts,
    shape: tuple[int, int],
    *,
    weight: str,
    tensor_scale: str,
    input_scale: str,
    inverse: bool,
    weight_only: bool,
) -> Layout:
    """Pairs of e2m1, the even index in the low nibble, e4m3 scales of 16 in `weight_scale`, and fp32 scales of the
    tensor and of the activations, which some write as what to divide by (`inverse`)."""
    outputs, width = shape
    format = FORMATS["nvfp4a16" if weight_only else "nvfp4"]
    wanted = [weight, "weight_scale", tensor_scale, *(() if weight_only else (input_scale,))]
    if not weight_only and input_scale not in parts:  # of each token, as its activations come
        wanted.pop()
    present(parts, wanted, f"a weight in {format.name}")
    if width % format.group:
        raise Broken(weight, f"blocks of {format.group} do not divide its {width} input features")
    expect(parts, weight, (outputs, width // 2), "uint8")
    expect(parts, "weight_scale", (outputs, width // format.group), "float8_e4m3fn")
    singles = [part for part in wanted if part in (tensor_scale, input_scale)]
    for single in singles:
        expect(parts, single, [(), (1,)], "float32")

    def number(tensors: Tensors, part: str) -> Tensor:
        found = tensors[part].float().reshape(())
        return 1 / found if inverse else found

    def check(tensors: Tensors) -> None:
        positive(tensors, "weight_scale", zero=True)
        for single in singles:
            positive(tensors, single)
            positive({single: number(tensors, single)}, single)

    def read(tensors: Tensors) -> Packed:
        from ..numerics import Packed

        return Packed(
            format,
            tensors[weight],
            tensors["weight_scale"],
            tensor_scale=number(tensors, tensor_scale),
            input_scale=number(tensors, input_scale) if input_scale in tensors else None,
        )

    small = tuple(part for part in wanted if part != weight)
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


def order_of(g_idx: Tensor, group: int, part: str) -> Tensor | None:
    """As `quant.layouts.order_of`. Raises Broken where it raises ValueError."""
    from .. import layouts

    try:
        return layouts.order_of(g_idx, group)
    except ValueError as error:
        raise Broken(part, str(error)) from None
