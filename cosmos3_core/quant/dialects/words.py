"""GPTQ's and AWQ's packings of int4, as AutoGPTQ, GPTQModel, AutoAWQ and AutoRound write them: codes in int32 words,
zero points with them, scales in fp16.

How the words lie is `quant.layouts`'. GPTQ stores zero points less one, except in its `gptq_v2`, and `g_idx` names the
group of each input feature; AWQ stores zero points as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS
from .common import (
    FLAG,
    NAMES,
    PLAIN,
    TEXT,
    WHOLE,
    Broken,
    Clues,
    Dialect,
    Header,
    Layout,
    Scheme,
    expect,
    group_of,
    named,
    positive,
    present,
    refuse,
    with_group,
)
from .layouts import order_of

if TYPE_CHECKING:
    from ..numerics import Packed
    from .layouts import Tensors

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def layout(
    module: str,
    parts: Mapping[str, Header],
    shape: tuple[int, int],
    *,
    awq: bool,
    group: int,
    symmetric: bool,
    less: int,
) -> Layout | None:
    """`less` is what is stored of a zero point less than it. `symmetric` says that all zero points are 8."""
    import torch

    if not set(parts) & set(SUFFIXES):
        return None
    outputs, width = shape
    wanted = ["qweight", "qzeros", "scales"]
    present(parts, wanted, "an int4 weight")
    if "weight" in parts:
        raise Broken("weight", "it stands beside qweight, and only one of them can be the weight")
    each = group_of(width, group, "qweight")
    _expect_words(parts, shape, each, awq=awq)
    if "g_idx" in parts:
        wanted.append("g_idx")
        expect(parts, "g_idx", (width,), "int32", "int64")
    format = with_group("w4a16" if symmetric else "w4a16_asym", width, each)

    def check(tensors: Tensors) -> None:
        from ..codes import from_bytes

        # AutoRound's symmetric scales have the sign that makes the extreme -8.
        if not symmetric and (negative := int((tensors["scales"] < 0).sum())):
            found = f"{negative} of its {tensors['scales'].numel()} scales cannot be, as they are negative"
            raise Broken("scales", f"{found}, and the config says that the weight is not symmetric")
        positive(tensors, "scales", negative=symmetric)
        zeros = from_bytes(tensors["qzeros"].contiguous().view(torch.uint8), 4) + less
        if symmetric and (zeros != 8).any():
            wrong = int(zeros[zeros != 8][0])
            raise Broken("qzeros", f"a zero point is {wrong}, and the config says that the weight is symmetric, with 8")
        if (zeros > 15).any():
            raise Broken("qzeros", "a zero point is 16, which some programs read as 0")
        if "g_idx" in wanted:
            order_of(tensors["g_idx"], each, "g_idx")

    def read(tensors: Tensors) -> Packed:
        from ..layouts import awq as of_awq
        from ..layouts import gptq

        words = tensors["qweight"], tensors["scales"], tensors["qzeros"]
        if awq:
            return of_awq(format, *words)
        g_idx = tensors.get("g_idx") if format.group else None
        return gptq(format, *words, g_idx, less_one=bool(less))

    small = tuple(part for part in wanted if part != "qweight")
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


def _expect_words(parts: Mapping[str, Header], shape: tuple[int, int], group: int, *, awq: bool) -> None:
    """Raises Broken where words, zero points or scales are not those of groups of this size in this packing."""
    outputs, width = shape
    packed = {"AWQ": (width, outputs // 8), "GPTQ": (width // 8, outputs)}
    mine, other = ("AWQ", "GPTQ") if awq else ("GPTQ", "AWQ")
    if parts["qweight"].shape == packed[other] != packed[mine]:
        raise Broken("qweight", f"it is {[*packed[other]]}, as {other} packs it, and the config says that {mine} does")
    expect(parts, "qweight", packed[mine], "int32")
    if len(scales := parts["scales"].shape) == 2 and scales[0] != width // group:
        found = f"it has {scales[0]} groups, and of {width} input features groups of {group} are {width // group}"
        raise Broken("scales", found)
    expect(parts, "qzeros", (width // group, outputs // 8), "int32")
    expect(parts, "scales", (width // group, outputs), *PLAIN)


def checked_bits(clues: Clues, config: Mapping[str, Any], where: str = "quantization_config") -> tuple[int, int]:
    """Bits, of which only 4 are read, and the group's size. Raises InputError."""
    bits, group = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if bits != 4:
        raise refuse(clues, where, f"bits {bits!r}", "Of this packing cosmos3 reads 4 bits")
    if group is None or (group < 1 and group != -1):
        raise refuse(clues, where, f"group_size {group!r}")
    return bits, group


def _gptq(clues: Clues) -> Scheme:
    config = clues.config or {}
    _, group = checked_bits(clues, config)
    version = config.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise refuse(clues, "quantization_config", f"checkpoint_format {version!r}", "cosmos3 reads gptq and gptq_v2")
    symmetric = config.get("sym", True)
    found = partial(layout, awq=False, group=group, symmetric=symmetric, less=int(version == "gptq"))
    return Scheme(formats=(FORMATS["w4a16" if symmetric else "w4a16_asym"],), layout=found)


def _awq(clues: Clues) -> Scheme:
    config = clues.config or {}
    _, group = checked_bits(clues, config)
    if (version := str(config.get("version", "gemm")).lower()) != "gemm":
        raise refuse(clues, "quantization_config", f"version {version!r}", "Of AWQ's packings cosmos3 reads gemm")
    symmetric = not config.get("zero_point", True)
    stays = config.get("modules_to_not_convert", [])

    def found(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        one = layout(module, parts, shape, awq=True, group=group, symmetric=symmetric, less=0)
        if one and named(stays, module):
            raise Broken("qweight", "modules_to_not_convert names the module")
        return one

    return Scheme(formats=(FORMATS["w4a16" if symmetric else "w4a16_asym"],), layout=found)


GPTQ = Dialect(
    name="gptq",
    methods=("gptq",),
    keys={
        "quant_method": TEXT,
        "bits": WHOLE,
        "group_size": WHOLE,
        "sym": FLAG,
        "desc_act": FLAG,
        "checkpoint_format": TEXT,
    },
    # How the scales were searched for, and who did it.
    harmless=(
        "damp_percent",
        "damp_auto_increment",
        "static_groups",
        "true_sequential",
        "lm_head",
        "model_name_or_path",
        "model_file_base_name",
        "pack_dtype",
        "quantizer",
        "meta",
        "dataset",
        "tokenizer",
        "block_name_to_quantize",
        "modules_in_block_to_quantize",
        "dynamic",
        "iters",
        "autoround_version",
        "provider",
    ),
    suffixes=("weight", *SUFFIXES),
    describe=_gptq,
)
AWQ = Dialect(
    name="awq",
    methods=("awq",),
    keys={
        "quant_method": TEXT,
        "bits": WHOLE,
        "w_bit": WHOLE,
        "group_size": WHOLE,
        "q_group_size": WHOLE,
        "zero_point": FLAG,
        "version": TEXT,
        "modules_to_not_convert": NAMES,
    },
    harmless=("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse", "iters", "provider"),
    suffixes=("weight", *SUFFIXES),
    describe=_awq,
)
