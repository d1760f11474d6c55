"""Whether a format from outside is one that packing and reading can take at its word.

Its row is data, and nothing else is asked: what is not caught here ends in the middle of a run, or in other numbers and
bytes than the plan counted. Importing this imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ..quant.formats import ELEMENTS, RECIPROCAL, Element, Exponent, Format, Packer

FORMAT_KINDS: dict[type, tuple[str, ...]] = {
    str: ("name", "element", "scale", "super_scale", "exponent", "packer", "source"),
    int: ("group", "outputs", "super_group"),
    bool: ("zeros", "minima", "tensor_scale", "activations", "static"),
}
ELEMENT_KINDS: dict[type, tuple[str, ...]] = {str: ("dtype",), int: ("bits", "top", "mantissa", "offset")}
MULTIPLES, WIDE = ("uint6", "int8"), ("fp32", "fp16", "bf16")
"""Scales that are multiples of a super block's, and what that can be stored as."""


def mistyped(format: Format) -> str | None:
    """The first field that is of another type than `Format` and `Element` say, or None."""
    return next(_mistyped(format), None)


def inconsistent(format: Format) -> str | None:
    """What in a format whose fields have the right types and known names cannot be, or None."""
    return next(_inconsistent(format), None)


def _mistyped(format: Format) -> Iterator[str]:
    yield from _kinds(format, FORMAT_KINDS)
    for field, kind in (("inputs", Format), ("own_element", Element)):
        found = getattr(format, field)
        if found is not None and type(found) is not kind:
            yield f"{field} is {found!r}, and should be a quant.{kind.__name__}"
    if (own := format.own_element) is None:
        return
    for one in _kinds(own, ELEMENT_KINDS):
        yield f"own_element's {one}"
    numbers = (own.most, *own.values) if isinstance(own.values, tuple) else ()
    if not numbers or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
        yield f"own_element's most {own.most!r} and values {own.values!r} should be a finite number and a tuple of them"


def _kinds(row: object, kinds: Mapping[type, tuple[str, ...]]) -> Iterator[str]:
    for kind, fields in kinds.items():
        for field in fields:
            if type(found := getattr(row, field)) is not kind:
                yield f"{field} is {found!r}, and should be of type {kind.__name__}"


def _inconsistent(format: Format) -> Iterator[str]:
    element = format.of_elements
    if format.own_element is not None:
        for one in _of_element(element):
            yield f"own_element {one}"
    if min(format.group, format.outputs, format.super_group) < 0:
        yield "group, outputs and super_group are counts, and one is negative"
    known: Any
    for field, known in (("exponent", get_args(Exponent)), ("packer", get_args(Packer))):
        if (found := getattr(format, field)) not in known:
            yield f"{field} is {found!r}, which is none of {', '.join(map(repr, known))}"
    yield from _of_scales(format)
    between = format.zeros or format.minima
    if format.zeros and format.minima:
        yield "it has zeros and minima, and an element cannot have both"
    if between and (not element.integer or element.dtype or element.offset):
        yield f"it has zeros or minima, and its element {format.element} is no unsigned integer"
    if not between and element.integer and not (element.dtype or element.offset):
        yield f"its element {format.element} is never negative, and it has neither zeros nor minima"
    if not format.activations and (format.inputs is not None or format.static):
        yield "it has inputs or is static, and activations is False"
    if format.static and format.inputs is not None:
        yield "it is static and has inputs, of which their own format says so"


def _of_scales(format: Format) -> Iterator[str]:
    between, blocks = format.zeros or format.minima, format.scale == "e8m0"
    if bool(format.super_group) != bool(format.super_scale):
        yield "super_group and super_scale belong together, and one of them is missing"
    if format.super_group and (not format.group or format.super_group % format.group):
        yield f"super_group is {format.super_group}, which is no multiple of group {format.group}"
    above = {"e8m0": ("fp32",), **dict.fromkeys(MULTIPLES, WIDE)}.get(format.scale, ())
    if format.super_scale and (format.super_scale not in above or format.outputs != 1):
        known = f"uint6 and int8 go with {', '.join(WIDE)}, and e8m0 with fp32, of one output each"
        yield f"its scale is {format.scale} and super_scale {format.super_scale}: {known}"
    if format.scale in MULTIPLES and not format.super_scale:
        yield f"its scale is {format.scale}, a multiple of a super block's, and there is no super_scale"
    if format.scale == "uint6" and format.of_elements.offset:
        yield f"scales of its element {format.element} can be negative, as it has an offset, and uint6 cannot"
    if format.tensor_scale and (blocks or between or format.super_scale):
        yield "it has a tensor_scale, which goes neither with e8m0 nor with zeros, minima or super_scale"
    if between and (blocks or format.outputs != 1 or (format.zeros and format.super_scale)):
        yield "zeros and minima go with scales of one output each that are not e8m0, and zeros with no super_scale"
    whole = not format.outputs or format.static
    if whole and (format.scale != "fp32" or format.group or format.tensor_scale or between):
        yield "a scale of the whole tensor is fp32, without a group, tensor_scale, zeros or minima"
    alone = format.outputs == 1 and not (blocks or format.zeros or format.super_scale or format.tensor_scale)
    if format.packer in RECIPROCAL and not alone:
        yield f"packer {format.packer} chooses one scale for a block of one output, and minima at most"


def _of_element(element: Element) -> Iterator[str]:
    if not 1 <= element.bits <= 8:
        yield f"has {element.bits} bits, and 1 to 8 can be packed"
    if element.most <= 0 or min(element.offset, element.mantissa) < 0:
        yield f"has most {element.most}, offset {element.offset} and mantissa {element.mantissa}, which are magnitudes"
    if element.dtype:
        yield from _of_dtype(element)
    elif element.values:
        yield from _of_table(element)
    elif element.mantissa:
        yield "has a mantissa, and neither a dtype nor values"
    elif element.offset and not (element.most == element.offset <= 2 ** (element.bits - 1)):
        yield f"has most {element.most} and offset {element.offset}; they are the same, 2^(bits - 1) or less"
    elif element.most != int(element.most) or element.most > 2**element.bits - 1:
        yield f"has most {element.most}, and of integers in {element.bits} bits {2**element.bits - 1} is the largest"
    largest = element.most - bool(element.offset)
    if largest and not math.ldexp(1.0, min(element.top, 99)) <= largest < math.ldexp(2.0, min(element.top, 99)):
        yield f"has top {element.top}, and its largest positive number is {largest:g}: 2^top is the power of two below"


def _of_dtype(element: Element) -> Iterator[str]:
    known = {one.dtype: one for one in ELEMENTS.values() if one.dtype}
    same = known.get(element.dtype)
    if same is None:
        yield f"has dtype {element.dtype!r}, which is none of {', '.join(known)}"
    elif (element.bits, element.mantissa, element.offset, element.values) != (8, same.mantissa, 0, ()):
        yield f"has dtype {element.dtype}, which is 8 bits, {same.mantissa} of them mantissa, without offset and values"
    elif element.most > same.most:
        yield f"has most {element.most}, and {same.most:g} is the largest of {element.dtype}"


def _of_table(element: Element) -> Iterator[str]:
    values = list(element.values)
    if len(values) > 2**element.bits or element.offset:
        yield f"has {len(values)} values and offset {element.offset}; a table has 2^bits values at most, and no offset"
    if element.mantissa:
        if values != _floats(element):
            yield "has values that are not those of a float of its bits, mantissa and top"
    elif values != sorted(set(values)):
        yield "has values that do not ascend"
    if (min(values), max(values)) != (-element.most, element.most):
        yield f"has values from {min(values):g} to {max(values):g}, and most {element.most:g}"


def _floats(element: Element) -> list[float]:
    """What codes of a float mean, in the order sign, exponent, mantissa."""
    m, whole = element.mantissa, 2**element.mantissa
    if m >= element.bits:
        return []
    least = element.top + 2 - 2 ** (element.bits - 1 - m)  # the second binade's exponent; the first has its steps
    steps = [
        (code % whole + (whole if code >= whole else 0), max(code // whole, 1) - 1)
        for code in range(2 ** (element.bits - 1))
    ]
    ups = [math.ldexp(count, least + binade - m) for count, binade in steps]
    return [*ups, *(-one for one in ups)]
