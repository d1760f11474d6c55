"""What each format's name means: the element, how many of them share a scale, and what the scale is.

Names are those of compressed-tensors and vLLM in lower case: a plain name ("nvfp4") quantizes weights and activations,
the suffix "a16" ("nvfp4a16", "w4a16") says that activations stay in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Element:
    """A number of `bits` bits whose largest value is `most`. `top` is the exponent of its largest binade (0 for an
    integer)."""

    bits: int
    most: float
    top: int = 0


ELEMENTS = {
    "int8": Element(bits=8, most=127),
    "int4": Element(bits=4, most=8),
    "e4m3": Element(bits=8, most=448, top=8),
    "e2m1": Element(bits=4, most=6, top=2),
}

SCALE_BITS = {"fp32": 32, "e8m0": 8, "e4m3": 8}


@dataclass(frozen=True, kw_only=True)
class Format:
    """`group` elements along the input features share a scale; 0 means a whole row does: an output channel of a weight,
    a token of the activations. Of a weight so many consecutive `outputs` share it, too. `tensor_scale` is one more fp32
    scale, of the whole tensor, that multiplies the others. `activations` says that they are quantized too, the same way
    and while running; otherwise only the weight is.
    """

    name: str
    element: str
    scale: str
    group: int = 0
    outputs: int = 1
    tensor_scale: bool = False
    activations: bool = True

    @property
    def bits(self) -> int:
        """Of one element, without its share of the scales."""
        return ELEMENTS[self.element].bits


FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(name="int8", element="int8", scale="fp32"),
        Format(name="fp8", element="e4m3", scale="fp32"),
        # DeepSeek-V3's (arXiv 2412.19437, section 3.3.2): tiles of 1 x 128 and blocks of 128 x 128
        Format(name="fp8_block", element="e4m3", scale="fp32", group=128, outputs=128),
        # OCP Microscaling Formats (MX) v1.0, section 5
        Format(name="mxfp8", element="e4m3", scale="e8m0", group=32),
        Format(name="mxfp4", element="e2m1", scale="e8m0", group=32),
        Format(name="mxfp4a16", element="e2m1", scale="e8m0", group=32, activations=False),
        # NVIDIA's, as cuBLAS 12.8 and ModelOpt have it
        Format(name="nvfp4", element="e2m1", scale="e4m3", group=16, tensor_scale=True),
        Format(name="nvfp4a16", element="e2m1", scale="e4m3", group=16, tensor_scale=True, activations=False),
        # AutoRound's and GPTQ's symmetric int4. fp32 holds their fp16 scales as well as bf16 ones.
        Format(name="w4a16", element="int4", scale="fp32", group=128, activations=False),
    )
}


def bytes_per_weight(format: Format, width: int) -> float:
    """What one weight of a matrix with `width` input features takes, with its share of the scales."""
    return (format.bits + SCALE_BITS[format.scale] / (format.group or width) / format.outputs) / 8
