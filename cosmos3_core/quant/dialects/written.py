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
from .autoround import AUTOROUND
from .common import Clues, Dialect, Header
from .compressed import COMPRESSED as COMPRESSED_TENSORS
from .modelopt import MODELOPT as MODEL_OPTIMIZER

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..numerics import Packed

PER_WORD = 8
"""Codes of 4 bits in a word of pack-quantized: a group is so many or a multiple."""
SCALES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""compressed-tensors loads scales in the model's dtype: others would be rounded, and would no longer be the codes'."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A row: a format as a dialect has it. `parts(packed)` are the tensors of a quantized weight by the ends of their
    names, those of one that `packed_as` the format is; `describe(format, kept, version)` is the config's
    `quantization_config`, where `kept` are the modules that are not quantized and `version` is ours. `grouped` says
    that the size of its groups can be chosen, `rounded` that scales are in the model's dtype."""

    dialect: str
    format: Format
    parts: Callable[[Packed], dict[str, Tensor]]
    describe: Callable[[Format, Sequence[str], str], dict[str, Any]]
    grouped: bool = False
    rounded: bool = True

    def packed_as(self, format: Format, dtype: torch.dtype) -> Format:
        """The row's format, with groups of the size in `format`, as a weight of this dtype is packed."""
        return replace(format, scale=SCALES[str(dtype).removeprefix("torch.")]) if self.rounded else format


def _outputs(packed: Packed) -> dict[str, Tensor]:
    """8-bit numbers [O, I], and scales [O]."""
    return {"weight": packed.values, "weight_scale": _not_zero(packed.scales).reshape(-1)}


def _tensor(packed: Packed) -> dict[str, Tensor]:
    """8-bit numbers [O, I], one scale, and that of the inputs."""
    assert packed.input_scale is not None, "who quantizes has refused a static format without statistics"
    scales = {"weight_scale": packed.scales.reshape(()), "input_scale": packed.input_scale}
    return {"weight": packed.values, **scales}


def _rows(packed: Packed) -> dict[str, Tensor]:
    """8-bit numbers [O, I], and scales [O, 1]."""
    return {"weight": packed.values, "weight_scale": _not_zero(packed.scales)}


def _words(packed: Packed) -> dict[str, Tensor]:
    """int4 + 8 in int32 words [O, I/8], the lowest bits first, and scales [O, I/group]."""
    import torch

    return {
        "weight_packed": packed.values.view(torch.int32),
        "weight_scale": _not_zero(packed.scales),
        "weight_shape": torch.tensor(packed.shape),
    }


def _not_zero(scales: Tensor) -> Tensor:
    return scales.masked_fill(scales == 0, 1)


def _modelopt(algo: str) -> Callable[..., Any]:
    """`describe` of ModelOpt, as its `convert_hf_quant_config_format` has it."""

    def describe(format: Format, kept: Sequence[str], version: str) -> dict[str, Any]:
        said = {"ignore": list(kept), "quant_algo": algo, "producer": {"name": "cosmos3", "version": version}}
        return said | ({"config_groups": FP8_GROUP} if algo == "FP8" else {}) | {"quant_method": "modelopt"}

    return describe


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


FP8_GROUP = {
    "group_0": {
        "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
        "weights": {"dynamic": False, "num_bits": 8, "type": "float"},
        "targets": ["Linear"],
    }
}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group"}
READERS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (MODEL_OPTIMIZER, COMPRESSED_TENSORS)}
MODELOPT, COMPRESSED = READERS
WRITTEN = (
    Written(
        dialect=MODELOPT,
        format=FORMATS["fp8"],
        parts=_outputs,
        describe=_modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        rounded=False,
    ),
    Written(dialect=MODELOPT, format=FORMATS["fp8_static"], parts=_tensor, describe=_modelopt("FP8"), rounded=False),
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


BY_AUTOROUND = "mxfp8", "mxfp4"
AUTOROUNDED = "The package auto-round writes such a checkpoint, and cosmos3 runs it: docs/xpu.md#autoround"


def writer(format: str, dialect: str | None) -> Written:
    """The row of a format in a dialect; of those that have it the first, where none is named. Raises InputError."""
    dialects = list(dict.fromkeys(row.dialect for row in WRITTEN))
    if dialect is not None and dialect not in dialects:
        next_step = f"It writes {', '.join(dialects)}{f'. {AUTOROUNDED}' * (dialect in AUTOROUND.methods)}"
        raise InputError(f"`dialect` {dialect}", "cosmos3 quantize does not write it", next_step)
    there = [row for row in WRITTEN if dialect in (None, row.dialect)]
    for row in there:
        if row.format.name == format:
            return row
    asked = f"`format` {format}" + (f" in the dialect {dialect}" if dialect else "")
    meant = ""
    if format in FORMATS:
        found = f"cosmos3 quantize does not write {format}" + (f" in {dialect}" if dialect else "")
    else:
        found = "cosmos3 quantize knows no such format"
        # By its elements, as "int4", or written in another way.
        known = {row.format.element: row.format.name for row in reversed(there)}
        known |= {row.format.name: row.format.name for row in there}
        if near := known.get(format.lower().replace("-", "_")):
            meant = f"Did you mean {near}? "
    said = (f"{one}: {', '.join(row.format.name for row in there if row.dialect == one)}" for one in dialects)
    lists = "; ".join(line for line in said if not line.endswith(": "))
    others = ""
    if format in FORMATS and all(row.format.name != format for row in WRITTEN):
        others = f". A run with `format` {format} quantizes while loading" * (not FORMATS[format].static)
        others += f". {AUTOROUNDED}" * (format in BY_AUTOROUND)
    raise InputError(asked, found, f"{meant}It writes {lists}{others}")


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

    from ..numerics import pack

    scale = torch.empty((), device="meta") if format.static else None
    weight = torch.empty(shape, dtype=dtype, device="meta")
    return row.parts(pack(weight, row.packed_as(format, dtype), weight=True, input_scale=scale))


def read_back(row: Written, format: Format, module: str, parts: dict[str, Tensor], shape: tuple[int, int]) -> Packed:
    """The weight that a loader makes of what is written of a module."""
    clues = Clues(source=module, config=row.describe(format, (), ""))
    headers = {name: Header(tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in parts.items()}
    layout = READERS[row.dialect].describe(clues).layout(module, headers, shape)
    assert layout is not None, "what is written is quantized"
    return layout.read(parts)
