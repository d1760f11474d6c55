"""GPTQ's and AWQ's packings of int4, as AutoGPTQ, GPTQModel, AutoAWQ and AutoRound write them: codes in int32 words,
zero points with them, scales in fp16.

GPTQ packs along the inputs, the lowest bits first, and stores zero points less one, except in its `gptq_v2`; `g_idx`
names the group of each input feature. AWQ packs along the outputs, in the order 0 2 4 6 1 3 5 7, and stores zero
points as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS
from .common import PLAIN, Broken, Clues, Dialect, Header, Layout, Scheme
from .common import expect, group_of, named, positive, present, refuse, unknown_keys, with_group
from .layouts import order_of, unpacked_int32

if TYPE_CHECKING:
    from torch import Tensor

    from ..numerics import Packed
    from .layouts import Tensors

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the outputs 0 to 7 are."""
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def layout(
    module: str, parts: Mapping[str, Header], shape: tuple[int, int], *, awq: bool, group: int, symmetric: bool, less: int
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
    if awq:
        expect(parts, "qweight", (width, outputs // 8), "int32")
    else:
        expect(parts, "qweight", (width // 8, outputs), "int32")
    expect(parts, "qzeros", (width // each, outputs // 8), "int32")
    expect(parts, "scales", (width // each, outputs), *PLAIN)
    if "g_idx" in parts:
        wanted.append("g_idx")
        expect(parts, "g_idx", (width,), "int32", "int64")
    format = with_group("w4a16" if symmetric else "w4a16_asym", width, each)

    def zeros_of(tensors: Tensors) -> Tensor:
        return unpacked_int32(tensors["qzeros"], 4, along=1, order=AWQ_ORDER if awq else None).T + less

    def check(tensors: Tensors) -> None:
        positive(tensors, "scales")
        zeros = zeros_of(tensors)
        if symmetric and (zeros != 8).any():
            wrong = int(zeros[zeros != 8][0])
            raise Broken("qzeros", f"a zero point is {wrong}, and the config says that the weight is symmetric, with 8")
        if "g_idx" in wanted:
            order_of(tensors["g_idx"], each, "g_idx")

    def read(tensors: Tensors) -> Packed:
        from ..codes import to_bytes
        from ..numerics import Packed

        along, words = (1, AWQ_ORDER) if awq else (0, None)
        codes = unpacked_int32(tensors["qweight"], 4, along=along, order=words).T
        order = order_of(tensors["g_idx"], each, "g_idx") if "g_idx" in wanted else None
        return Packed(
            format,
            to_bytes((codes if order is None else codes[:, order]).contiguous(), 4),
            tensors["scales"].T.to(torch.float32).contiguous(),
            zeros=None if symmetric else zeros_of(tensors).contiguous(),
            order=order,
        )

    small = tuple(part for part in wanted if part != "qweight")
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


def checked_bits(clues: Clues, config: Mapping[str, Any]) -> tuple[int, int]:
    """Bits, of which only 4 are read, and the group's size. Raises InputError."""
    bits, group = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if bits != 4:
        raise refuse(clues, "quantization_config", f"bits {bits!r}", "Of this packing cosmos3 reads 4 bits")
    if type(group) is not int or (group < 1 and group != -1):
        raise refuse(clues, "quantization_config", f"group_size {group!r}")
    return bits, group


def flag(clues: Clues, config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A true or false of the config. Raises InputError."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise refuse(clues, "quantization_config", f"{key} {value!r}, which is neither true nor false")
    return value


def _gptq(clues: Clues) -> Scheme:
    config = clues.config or {}
    unknown_keys(clues, "quantization_config", config, (*GPTQ.keys, *GPTQ.harmless))
    _, group = checked_bits(clues, config)
    version = config.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise refuse(clues, "quantization_config", f"checkpoint_format {version!r}", "cosmos3 reads gptq and gptq_v2")
    symmetric = flag(clues, config, "sym", True)
    flag(clues, config, "desc_act", False)
    found = partial(layout, awq=False, group=group, symmetric=symmetric, less=int(version == "gptq"))
    return Scheme(formats=(FORMATS["w4a16" if symmetric else "w4a16_asym"],), layout=found)


def _awq(clues: Clues) -> Scheme:
    config = clues.config or {}
    unknown_keys(clues, "quantization_config", config, (*AWQ.keys, *AWQ.harmless))
    _, group = checked_bits(clues, config)
    if (version := str(config.get("version", "gemm")).lower()) != "gemm":
        raise refuse(clues, "quantization_config", f"version {version!r}", "Of AWQ's packings cosmos3 reads gemm")
    symmetric = not flag(clues, config, "zero_point", True)
    stays = [str(one) for one in config.get("modules_to_not_convert") or ()]

    def found(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        one = layout(module, parts, shape, awq=True, group=group, symmetric=symmetric, less=0)
        if one and named(stays, module):
            raise Broken("qweight", "modules_to_not_convert names the module")
        return one

    return Scheme(formats=(FORMATS["w4a16" if symmetric else "w4a16_asym"],), layout=found)


GPTQ = Dialect(
    name="gptq",
    detect=lambda clues: "quantization_config says quant_method gptq" if clues.method == "gptq" else None,
    keys=("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format"),
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
    detect=lambda clues: "quantization_config says quant_method awq" if clues.method == "awq" else None,
    keys=(
        "quant_method",
        "bits",
        "w_bit",
        "group_size",
        "q_group_size",
        "zero_point",
        "version",
        "modules_to_not_convert",
    ),
    harmless=("backend", "do_fuse", "exllama_config", "fuse_max_seq_len", "modules_to_fuse", "iters", "provider"),
    suffixes=("weight", *SUFFIXES),
    describe=_awq,
)
