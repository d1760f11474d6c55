"""What each format's name means: the element, how many of them share a scale, what the scale is, and what becomes of
the activations.

Names are those of compressed-tensors, vLLM and llama.cpp in lower case: a plain name ("nvfp4") quantizes weights and
activations, the suffix "a16" ("nvfp4a16", "w4a16") says that activations stay in 16 bits; so they do in those of
llama.cpp and bitsandbytes.

Importing this imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Exponent = Literal["floor", "ceil", "even", "rceil"]
"""How a power of two is chosen as the scale of a block whose largest magnitude is m, for elements whose largest is
`most` = 1.f x 2^top. floor: 2^(floor(log2 m) - top), OCP MX v1.0, 6.3. ceil: 2^(ceil(log2 m) - top). even: as floor, of
m rounded to the element's bits of mantissa. rceil: the smallest that is m / most or more, cuBLAS's. (The names are
torchao's `ScaleCalculationMode`.)"""
Packer = Literal["", "compressed-tensors", "llama.cpp", "bitsandbytes"]
"""Who chooses the codes. "": an element is divided by its scale as that is stored, ties go to even; a signed integer's
extreme is the positive one of two. compressed-tensors does so, too, and the largest magnitude of signed integers with
an offset is `most` - 1/2 steps, so that no scale is negative. The others multiply with the reciprocal of the scale that
they are about to store; llama.cpp's ties go up, those of 8 bits away from zero, and the first extreme counts."""
RECIPROCAL = ("llama.cpp", "bitsandbytes")
"""Packers that multiply with it."""


@dataclass(frozen=True)
class Element:
    """A number of `bits` bits whose largest magnitude is `most`. The largest positive number, which is one less where
    there is an `offset`, lies between 2^`top` and 2^(`top` + 1).

    A float has `mantissa` bits of mantissa. `dtype` is torch's name for it where a byte holds one; otherwise codes are
    packed: a code means `values[code]`, ascending, or those of a float in the order sign, exponent, mantissa; without
    such a table, the integer code - `offset`.
    """

    bits: int
    most: float
    top: int = 0
    mantissa: int = 0
    dtype: str = ""
    values: tuple[float, ...] = ()
    offset: int = 0

    @property
    def integer(self) -> bool:
        return not (self.values or self.mantissa)

    @property
    def step(self) -> float:
        """The largest distance of two neighbours."""
        if self.values:
            ordered = sorted(self.values)
            return max(above - below for below, above in zip(ordered, ordered[1:], strict=False))
        return 2.0 ** (self.top - self.mantissa) if self.mantissa else 1.0


E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""QLoRA (arXiv 2305.14314), appendix E: quantiles of the normal distribution."""

ELEMENTS = {
    "int8": Element(bits=8, most=127, top=6, dtype="int8"),
    "int6": Element(bits=6, most=32, top=4, offset=32),
    "int4": Element(bits=4, most=8, top=2, offset=8),
    "uint5": Element(bits=5, most=31, top=4),
    "uint4": Element(bits=4, most=15, top=3),
    "e4m3": Element(bits=8, most=448, top=8, mantissa=3, dtype="float8_e4m3fn"),
    "e5m2": Element(bits=8, most=57344, top=15, mantissa=2, dtype="float8_e5m2"),
    "e4m3fnuz": Element(bits=8, most=240, top=7, mantissa=3, dtype="float8_e4m3fnuz"),
    "e5m2fnuz": Element(bits=8, most=57344, top=15, mantissa=2, dtype="float8_e5m2fnuz"),
    "e2m1": Element(bits=4, most=6, top=2, mantissa=1, values=(*E2M1_VALUES, *(-value for value in E2M1_VALUES))),
    "nf4": Element(bits=4, most=1, values=NF4_VALUES),
}


@dataclass(frozen=True)
class Scale:
    """What a scale is stored as: torch's dtype, its bits, and the worst relative rounding of one. A scale that is
    itself a multiple of a super block's is at most `most` times that."""

    dtype: str
    bits: int
    rounding: float
    most: float = 1


SCALES = {
    "fp32": Scale("float32", 32, 2.0**-24),
    "fp16": Scale("float16", 16, 2.0**-11),
    "bf16": Scale("bfloat16", 16, 2.0**-8),
    "e4m3": Scale("float8_e4m3fn", 8, 2.0**-4, most=448),
    "e8m0": Scale("uint8", 8, 0.0),  # the exponent + 127; rounded by the rule `Exponent`, on purpose
    # Multiples of a super block's scale. 6 bits take a byte here, in a file of llama.cpp 6 bits.
    "uint6": Scale("uint8", 8, 0.5 / 63, most=63),
    "int8": Scale("int8", 8, 0.5 / 127, most=127),
}
ZERO_BITS = 8
"""A zero point takes a byte."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """`element` and `scale` are names of `ELEMENTS` and `SCALES`; an element that is not there comes as `own_element`.

    `group` elements along the input features share a scale; 0 means a whole row does: an output channel of a weight,
    a token of the activations. Of a weight so many consecutive `outputs` share it, too, or, with 0, all of them.

    What an element's code q stands for is (q - zero) x scale + minimum, where `zeros` says that each scale has a zero
    point beside it, `minima` that it has a minimum. Scales can have scales: with `super_scale` those of `super_group`
    features (and their minima) are multiples of one more, stored as that; `tensor_scale` is one more fp32 scale, of the
    whole tensor, that multiplies the others. `exponent` is the rule by which e8m0 scales are chosen.

    `activations` says that they are quantized too, while running; otherwise only the weight is. They take the format
    `inputs`, or this one where that is None. With `static` the scale of the whole tensor is a stored number; otherwise
    each token's scales are its own.

    `packer` says by whose rule `pack` chooses codes, so that they are theirs to the bit; reading knows no such rule.
    `source` says where the format is defined.
    """

    name: str
    element: str
    scale: str
    own_element: Element | None = None
    group: int = 0
    outputs: int = 1
    exponent: Exponent = "floor"
    zeros: bool = False
    minima: bool = False
    super_group: int = 0
    super_scale: str = ""
    tensor_scale: bool = False
    activations: bool = True
    inputs: Format | None = None
    static: bool = False
    packer: Packer = ""
    source: str = ""

    @property
    def of_elements(self) -> Element:
        """What the element's name means."""
        return self.own_element or ELEMENTS[self.element]

    @property
    def bits(self) -> int:
        """Of one element, without its share of the scales."""
        return self.of_elements.bits

    @property
    def of_inputs(self) -> Format | None:
        """The format that activations take; None where they stay in 16 bits."""
        return (self.inputs or self) if self.activations else None

    def weight_only(self) -> Format:
        """The same weights, with activations in 16 bits."""
        return replace(self, activations=False, inputs=None, static=False)


INT8 = Format(name="int8", element="int8", scale="fp32", source="LLM.int8 (arXiv 2208.07339), vectors alone")
FP8 = Format(name="fp8", element="e4m3", scale="fp32", source="arXiv 2209.05433; a scale per token and output")
MXFP8 = Format(name="mxfp8", element="e4m3", scale="e8m0", group=32, source="OCP MX v1.0, 5")
MXFP4 = Format(name="mxfp4", element="e2m1", scale="e8m0", group=32, source="OCP MX v1.0, 5")
NVFP4 = Format(
    name="nvfp4", element="e2m1", scale="e4m3", group=16, tensor_scale=True, source="NVIDIA's: cuBLAS 12.8, ModelOpt"
)
# fp32 holds the fp16 scales of AutoRound and GPTQ as well as bf16 ones.
W4A8 = Format(name="w4a8", element="int4", scale="fp32", group=128, inputs=INT8, source="compressed-tensors W4A8")
GPTQ, LLAMA = "GPTQ (arXiv 2210.17323), AutoRound (arXiv 2309.05516)", "llama.cpp, ggml-quants.c"

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        INT8,
        replace(INT8, name="int8_static", static=True, source="ModelSlim W8A8"),
        replace(INT8, name="int8a16", activations=False),
        FP8,
        replace(FP8, name="fp8a16", activations=False),
        replace(FP8, name="fp8_tensor", outputs=0, source="arXiv 2209.05433; a scale per weight"),
        replace(FP8, name="fp8_static", outputs=0, static=True, source="ModelOpt FP8_DEFAULT_CFG"),
        Format(
            name="fp8_block",
            element="e4m3",
            scale="fp32",
            group=128,
            outputs=128,
            source="DeepSeek-V3 (arXiv 2412.19437), 3.3.2: tiles of 1 x 128, blocks of 128 x 128",
        ),
        replace(FP8, name="fp8_e5m2", element="e5m2", source="arXiv 2209.05433"),
        replace(FP8, name="fp8_fnuz", element="e4m3fnuz", source="arXiv 2206.02915; gfx942's"),
        replace(FP8, name="fp8_e5m2fnuz", element="e5m2fnuz", source="arXiv 2206.02915; gfx942's"),
        MXFP8,
        MXFP4,
        replace(MXFP4, name="mxfp4a16", activations=False),
        replace(MXFP4, name="mxfp4a8", inputs=MXFP8, source="OCP MX v1.0, 5; Ascend's W4A8"),
        replace(
            MXFP4,
            name="mxfp4_dual",
            super_group=512,
            super_scale="fp32",
            source="Ascend's npu_dynamic_dual_level_mx_quant",
        ),
        NVFP4,
        replace(NVFP4, name="nvfp4a16", activations=False),
        W4A8,
        replace(W4A8, name="w4afp8", inputs=FP8, source="compressed-tensors W4AFP8"),
        replace(W4A8, name="w4a16", activations=False, inputs=None, source=GPTQ),
        replace(
            W4A8,
            name="w4a16_asym",
            element="uint4",
            zeros=True,
            activations=False,
            inputs=None,
            source=f"{GPTQ}, AWQ (arXiv 2306.00978)",
        ),
        Format(
            name="nf4",
            element="nf4",
            scale="fp32",
            group=64,
            activations=False,
            packer="bitsandbytes",
            source="QLoRA (arXiv 2305.14314), bitsandbytes",
        ),
        Format(
            name="q4_0", element="int4", scale="fp16", group=32, activations=False, packer="llama.cpp", source=LLAMA
        ),
        Format(
            name="q5_1",
            packer="llama.cpp",
            element="uint5",
            scale="fp16",
            group=32,
            minima=True,
            activations=False,
            source=LLAMA,
        ),
        Format(
            name="q8_0", element="int8", scale="fp16", group=32, activations=False, packer="llama.cpp", source=LLAMA
        ),
        Format(
            name="q4_k",
            element="uint4",
            scale="uint6",
            group=32,
            minima=True,
            super_group=256,
            super_scale="fp16",
            activations=False,
            source=LLAMA,
        ),
        Format(
            name="q6_k",
            element="int6",
            scale="int8",
            group=16,
            super_group=256,
            super_scale="fp16",
            activations=False,
            source=LLAMA,
        ),
    )
}


def bytes_per_weight(format: Format, width: int) -> float:
    """What one weight of a matrix with `width` input features takes, with its share of the scales. Those of a whole
    tensor count nothing."""
    if not format.outputs:
        return format.bits / 8
    beside = SCALES[format.scale].bits * (1 + format.minima) + ZERO_BITS * format.zeros
    bits = format.bits + beside / (format.group or width) / format.outputs
    if format.super_group:
        bits += SCALES[format.super_scale].bits * (1 + format.minima) * math.ceil(width / format.super_group) / width
    return bits / 8


def together(format: Format) -> int:
    """Codes that fill whole bytes."""
    return math.lcm(8, format.bits) // format.bits


def grains(format: Format) -> tuple[int, int]:
    """(input features, outputs) at multiples of which a weight in a format can be cut: those that share a scale, or a
    byte, and that the activations' scales are for."""
    features = [together(format)]
    for one in (format, format.of_inputs):
        features += [size for size in (one.group, one.super_group) if size] if one else []
    return math.lcm(*features), max(1, format.outputs)


def error_bound(format: Format) -> float:
    """How far an element may be off after a round trip, as a share of the largest magnitude among those that share its
    scale (its super block, where there are any). Packing in fp32 keeps this, plus 1e-6, while no scale over- or
    underflows.

    A scale in fp32 makes the largest magnitude the element's largest, `most`; the error is half of the largest step of
    elements, h / most. A signed integer has no +2^(bits - 1): what equals -extreme errs by a whole step. A scale that
    is rounded by u makes steps longer by u, or the largest saturates, which costs u; what saturates by a step, and
    codes of a scale that is rounded later, err by u more. With zero points or minima, `most` steps span up to twice
    the largest magnitude, and rounding the minimum adds u. An e8m0 scale puts the largest magnitude m between 2^top
    and 2^(top + 1), or where its rule says: h / m, and 1 - most / m if it saturates.
    """
    element, scale = format.of_elements, SCALES[format.scale]
    half = element.step / 2
    if format.scale == "e8m0":
        below = 2.0**element.top
        least, largest = {
            "floor": (below, 2 * below),
            "even": (below * (1 if element.mantissa else 0.75), 2 * below * (1 - 2.0 ** -(element.mantissa + 2))),
            "ceil": (below / (1 if element.mantissa else 2), below),
            "rceil": (below if element.mantissa else element.most / 2, element.most),
        }[format.exponent]
        return max(half / least, 1 - (element.most - bool(element.offset)) / largest)
    rounding = scale.rounding + (SCALES[format.super_scale].rounding if format.super_scale else 0.0)
    if format.zeros or format.minima:
        return 2 * half / element.most * (1 + rounding) + rounding * (2 + format.minima)
    more = bool(format.super_scale or format.packer or element.offset)
    step = half * 2 if element.offset else half
    return max(step / element.most * (1 + rounding), rounding) + rounding * more
