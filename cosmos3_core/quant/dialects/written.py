"""What `cosmos3 quantize` writes: for each dialect and format the tensors of a quantized weight, and the description
that the dialect's own loader expects. The reading side of each is in the dialect's module.

No scale is written as 0, which loaders divide by or refuse: a row or group of zeros has the scale 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...contract import InputError
from ..formats import FORMATS, Format

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PER_WORD = 8
"""Codes of 4 bits in a word of pack-quantized: a group is so many or a multiple."""
SCALES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""compressed-tensors loads scales in the model's dtype: others would be rounded, and would no longer be the codes'."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A row: a format as a dialect has it. `parts(weight_OI, format)` are the tensors of a quantized weight by the ends
    of their names; `describe(format, kept, version)` is the config's `quantization_config`, where `kept` are the
    modules that are not quantized and `version` is ours. `grouped` says that the size of its groups can be chosen."""

    dialect: str
    format: Format
    parts: Callable[[Tensor, Format], dict[str, Tensor]]
    describe: Callable[[Format, Sequence[str], str], dict[str, Any]]
    grouped: bool = False


def _outputs(weight_OI: Tensor, format: Format) -> dict[str, Tensor]:
    """8-bit numbers [O, I], and scales [O] in fp32."""
    from ..numerics import pack

    packed = pack(weight_OI, format, weight=True)
    return {"weight": packed.values, "weight_scale": _not_zero(packed.scales).reshape(-1)}


def _rows(weight_OI: Tensor, format: Format) -> dict[str, Tensor]:
    """8-bit numbers [O, I], and scales [O, 1] in the model's dtype."""
    from ..numerics import pack

    packed = pack(weight_OI, _scaled(format, weight_OI.dtype), weight=True)
    return {"weight": packed.values, "weight_scale": _not_zero(packed.scales)}


def _words(weight_OI: Tensor, format: Format) -> dict[str, Tensor]:
    """int4 + 8 in int32 words [O, I/8], the lowest bits first, and scales [O, I/group] in the model's dtype."""
    import torch

    from ..numerics import pack

    packed = pack(weight_OI, _scaled(format, weight_OI.dtype), weight=True)
    return {
        "weight_packed": packed.values.view(torch.int32),
        "weight_scale": _not_zero(packed.scales),
        "weight_shape": torch.tensor(weight_OI.shape),
    }


def _scaled(format: Format, dtype: torch.dtype) -> Format:
    return replace(format, scale=SCALES[str(dtype).removeprefix("torch.")])


def _not_zero(scales: Tensor) -> Tensor:
    return scales.masked_fill(scales == 0, 1)


def _modelopt(format: Format, kept: Sequence[str], version: str) -> dict[str, Any]:
    """As ModelOpt's `convert_hf_quant_config_format` has it."""
    return {
        "ignore": list(kept),
        "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
        "producer": {"name": "cosmos3", "version": version},
        "quant_method": "modelopt",
    }


def _compressed(form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> Callable[..., Any]:
    """`describe` of compressed-tensors, as its `QuantizationConfig` is written."""

    def describe(format: Format, kept: Sequence[str], version: str) -> dict[str, Any]:
        said = {"dynamic": False, "symmetric": True, **weights}
        if format.group:
            said["group_size"] = format.group
        group: dict[str, Any] = {"format": form, "targets": ["Linear"], "weights": said}
        group |= {"input_activations": inputs and dict(inputs), "output_activations": None}
        return {
            "config_groups": {"group_0": group},
            "format": form,
            "global_compression_ratio": None,
            "ignore": list(kept),
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }

    return describe


def _eight_bits(type: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the weights and of the activations."""
    both = {"num_bits": 8, "type": type}
    return both | {"strategy": "channel"}, both | {"strategy": "token", "dynamic": True, "symmetric": True}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}
MODELOPT, COMPRESSED = "modelopt", "compressed-tensors"
WRITTEN = (
    Written(dialect=MODELOPT, format=FORMATS["fp8"], parts=_outputs, describe=_modelopt),
    Written(
        dialect=COMPRESSED,
        format=FORMATS["fp8"],
        parts=_rows,
        describe=_compressed("float-quantized", *_eight_bits("float")),
    ),
    Written(
        dialect=COMPRESSED,
        format=FORMATS["int8"],
        parts=_rows,
        describe=_compressed("int-quantized", *_eight_bits("int")),
    ),
    Written(
        dialect=COMPRESSED,
        format=replace(FORMATS["w4a16"], packer="compressed-tensors"),
        parts=_words,
        describe=_compressed("pack-quantized", INT4, None),
        grouped=True,
    ),
)


def writer(format: str, dialect: str | None) -> Written:
    """The row of a format in a dialect; of those that have it the first, where none is named. Raises InputError."""
    dialects = list(dict.fromkeys(row.dialect for row in WRITTEN))
    if dialect is not None and dialect not in dialects:
        raise InputError(
            f"`dialect` {dialect}", "cosmos3 quantize does not write it", f"It writes {', '.join(dialects)}"
        )
    there = [row for row in WRITTEN if dialect in (None, row.dialect)]
    for row in there:
        if row.format.name == format:
            return row
    asked = f"`format` {format}" + (f" in the dialect {dialect}" if dialect else "")
    if (known := FORMATS.get(format)) and known.static:
        found = "its activations have a stored scale, which only a calibration measures, and cosmos3 quantize has none"
    elif known:
        found = f"cosmos3 quantize does not write {format}" + (f" in {dialect}" if dialect else "")
    else:
        found = "there is no such format"
    said = (f"{one}: {', '.join(row.format.name for row in there if row.dialect == one)}" for one in dialects)
    lists = "; ".join(line for line in said if not line.endswith(": "))
    raise InputError(asked, found, f"It writes {lists}")


def grouped(row: Written, group: int | None) -> Format:
    """The row's format with groups of this size. Raises InputError where that cannot be chosen."""
    if group is None:
        return row.format
    asked = f"`group` {group}"
    if not row.grouped:
        others = ", ".join(dict.fromkeys(other.format.name for other in WRITTEN if other.grouped))
        raise InputError(asked, f"a weight in {row.format.name} has no groups", f"Leave it out, or choose {others}")
    if group < PER_WORD or group % PER_WORD:
        raise InputError(asked, f"groups are multiples of {PER_WORD}", f"The usual size is {row.format.group}")
    return replace(row.format, group=group)


def parts_of(row: Written, format: Format, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a weight of this shape and dtype becomes, as tensors without numbers (on torch's meta device)."""
    import torch

    return row.parts(torch.empty(shape, dtype=dtype, device="meta"), format)
