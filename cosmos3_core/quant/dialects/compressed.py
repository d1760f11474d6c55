"""compressed-tensors, which llm-compressor writes: `config_groups` say for lists of modules how weights and inputs are
quantized, and `format` how they lie in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..formats import FORMATS, Format
from .common import (
    ANYTHING,
    FLAG,
    NAMES,
    OBJECT,
    PLAIN,
    TEXT,
    WHOLE,
    Broken,
    Clues,
    Dialect,
    Header,
    Kind,
    Layout,
    Scheme,
    expect,
    group_of,
    named,
    positive,
    present,
    refuse,
    understood,
    with_group,
)
from .layouts import eight_bit, mx, nvfp4, order_of

if TYPE_CHECKING:
    from ..numerics import Packed
    from .layouts import Tensors

GROUPED, IN_ORDER = ("group", "dynamic", True), ("weight", "static", False)
"""Whether features are put into groups by `weight_g_idx`, or lie in them in their order."""
ARGS = {
    "num_bits": WHOLE,
    "type": TEXT,
    "symmetric": FLAG,
    "group_size": WHOLE,
    "strategy": TEXT,
    "block_structure": ANYTHING,
    "dynamic": ANYTHING,
    "actorder": Kind("group, dynamic, weight, static or a flag", lambda value: value in (*GROUPED, *IN_ORDER)),
}
HARMLESS_ARGS = ("scale_dtype", "zp_dtype", "observer", "observer_kwargs", "is_mx")
GROUP_KEYS = {
    "targets": NAMES,
    "weights": OBJECT,
    "input_activations": OBJECT,
    "output_activations": ANYTHING,
    "format": TEXT,
}
FORMS = (
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "nvfp4-pack-quantized",
)
MIXED = "mixed-precision"
"""The format of a checkpoint whose groups have several."""
RUNNING = ("token", None, True)
STORED = ("tensor", None, False)
"""How inputs get their scales: strategy, size of groups, and whether it is while running."""
BLOCKS: Mapping[Any, Mapping[Any, str]] = {
    ("mxfp4-pack-quantized", "float", 4, "group", 32, True): {
        None: "mxfp4a16",
        ("float", 4, "group", 32, True): "mxfp4",
        ("float", 8, "group", 32, True): "mxfp4a8",
    },
    ("mxfp8-quantized", "float", 8, "group", 32, True): {("float", 8, "group", 32, True): "mxfp8"},
    ("nvfp4-pack-quantized", "float", 4, "tensor_group", 16, True): {
        None: "nvfp4a16",
        ("float", 4, "tensor_group", 16, "local"): "nvfp4",
    },
}
"""By how weights lie in the file, and what they are: the format, by what inputs are."""


@dataclass(frozen=True)
class Group:
    """A config group: its name, what it is for, its format and how that lies in the file."""

    name: str
    targets: tuple[str, ...]
    format: Format
    form: str
    order: bool = False


def describe(clues: Clues) -> Scheme:
    """The groups. Raises InputError."""
    config = clues.config or {}
    for key in ("sparsity_config", "transform_config"):
        if config.get(key):
            raise refuse(clues, "quantization_config", f"{key} {config[key]!r}, which cosmos3 does not do")
    if (status := config.get("quantization_status", "compressed")) != "compressed":
        next_step = "Save the model once more with its weights compressed"
        raise refuse(clues, "quantization_config", f"quantization_status {status!r}", next_step)
    if not (raw := config.get("config_groups")):
        raise refuse(clues, "quantization_config", f"config_groups {raw!r}, which names no group")
    if (form := config.get("format")) not in (None, MIXED, *FORMS):
        raise refuse(clues, "quantization_config", f"format {form!r}", f"cosmos3 reads {', '.join(FORMS)}")
    groups = [_group(clues, name, group, str(config.get("format"))) for name, group in raw.items()]
    ignored = config.get("ignore", [])

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if set(parts) <= {"weight"} and ("weight" not in parts or parts["weight"].dtype in PLAIN):
            for group in groups:
                if module in group.targets and not named(ignored, module):
                    raise Broken(None, f"it is not quantized, and config group {group.name} names it")
            return None
        if named(ignored, module):
            raise Broken(None, f"it has {', '.join(sorted(parts))}, and the config's ignore list names it")
        mine = _for(groups, module)
        if not mine:
            raise Broken(None, f"it has {', '.join(sorted(parts))}, and no config group is for it")
        if any(replace(group, name="", targets=()) != replace(mine[0], name="", targets=()) for group in mine):
            raise Broken(None, f"config groups {' and '.join(group.name for group in mine)} are for it, and differ")
        return _layout(mine[0], parts, shape)

    return Scheme(formats=tuple({group.format.name: group.format for group in groups}.values()), layout=layout)


def _for(groups: Sequence[Group], module: str) -> list[Group]:
    """The groups that name a module; without one those with a pattern or a part of its name, or else all linears'."""
    by_name = [group for group in groups if module in group.targets]
    by_part = [group for group in groups if named((one for one in group.targets if one != "Linear"), module)]
    return by_name or by_part or [group for group in groups if "Linear" in group.targets]


def _group(clues: Clues, name: str, group: Any, form: str) -> Group:
    where = f"config_groups.{name}"
    if not isinstance(group, Mapping):
        raise refuse(clues, where, f"{group!r}, which is no group")
    group = understood(clues, where, group, GROUP_KEYS)
    if group.get("output_activations"):
        raise refuse(clues, where, "that outputs are quantized, which cosmos3 does not do")
    weights, inputs = (
        understood(clues, f"{where}.{what}", group[what], ARGS, HARMLESS_ARGS) if what in group else None
        for what in ("weights", "input_activations")
    )
    if weights is None:
        raise refuse(clues, where, "nothing of weights")
    if (size := weights.get("group_size", -1)) > 0 and (strategy := weights.get("strategy")) in ("tensor", "channel"):
        raise refuse(clues, where, f"group_size {size} with strategy {strategy}")
    form = str(group.get("format") or form)
    if form not in FORMS:
        next_step = f"cosmos3 reads {', '.join(FORMS)}"
        raise refuse(clues, where, f"format {form!r}", next_step)
    format = _format(clues, where, weights, inputs, form)
    if not (targets := group.get("targets")):
        raise refuse(clues, where, f"targets {targets!r}, which names no module")
    return Group(name, tuple(targets), format, form, weights.get("actorder") in GROUPED)


def _format(
    clues: Clues, where: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, form: str
) -> Format:
    """The format that a group's arguments mean."""
    strategy, group = weights.get("strategy"), weights.get("group_size")
    kind = weights.get("type", "int"), weights.get("num_bits", 8)
    symmetric, reads = weights.get("symmetric", True), _reads(inputs)
    name = None
    if weights.get("dynamic") or (inputs is not None and not inputs.get("symmetric", True)):
        pass
    elif form in ("float-quantized", "int-quantized", "naive-quantized") and symmetric:
        if kind in (("float", 8), ("int", 8)) and strategy in ("tensor", "channel"):
            base = "fp8" if kind[0] == "float" else "int8"
            name = {None: f"{base}a16", (*kind, *RUNNING): base, (*kind, *STORED): f"{base}_static"}.get(reads)
            if name == "fp8" and strategy == "tensor":
                name = "fp8_tensor"
        elif (*kind, strategy, weights.get("block_structure")) == ("float", 8, "block", [128, 128]):
            name = {("float", 8, "group", 128, True): "fp8_block"}.get(reads)
    elif form == "pack-quantized" and kind == ("int", 4) and strategy in ("group", "channel"):
        if symmetric:
            name = {None: "w4a16", ("int", 8, *RUNNING): "w4a8", ("float", 8, *RUNNING): "w4afp8"}.get(reads)
        elif reads is None:
            name = "w4a16_asym"
    elif (form, *kind, strategy, group, symmetric) in BLOCKS:
        name = BLOCKS[form, *kind, strategy, group, symmetric].get(reads)
    if name is None:
        found = f"format {form} with weights {dict(weights)} and input_activations {inputs and dict(inputs)}"
        raise refuse(clues, where, f"{found}, which is no format of cosmos3", f"Formats are {', '.join(FORMATS)}")
    format = FORMATS[name]
    if form != "pack-quantized":
        return format
    if strategy == "group" and (group is None or group < 1):
        raise refuse(clues, where, f"group_size {group!r} with strategy group")
    return replace(format, group=group if strategy == "group" and group else 0)


def _reads(inputs: Mapping[str, Any] | None) -> Any:
    """Of inputs the type, the bits, and how they get their scales; None where they stay in 16 bits."""
    if inputs is None:
        return None
    dynamic = inputs.get("dynamic", False)
    kind = inputs.get("type", "int"), inputs.get("num_bits", 8), inputs.get("strategy"), inputs.get("group_size")
    return (*kind, dynamic if isinstance(dynamic, bool | str) else str(dynamic))


def _layout(group: Group, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout:
    """By how the group lies in the file; the tensors have to agree."""
    if group.form == "nvfp4-pack-quantized":
        return nvfp4(
            parts,
            shape,
            weight="weight_packed",
            tensor_scale="weight_global_scale",
            input_scale="input_global_scale",
            inverse=True,
            weight_only=not group.format.activations,
        )
    if group.form.startswith("mxfp"):
        return mx(parts, shape, group.format)
    if group.form == "pack-quantized":
        return _packed(group, parts, shape)
    return eight_bit(parts, shape, group.format)


def _packed(group: Group, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout:
    """int4 + 8 in int32 words along the inputs, the lowest bits first; zero points + 8 likewise along the outputs."""
    import torch

    outputs, width = shape
    each = group_of(width, group.format.group, "weight_packed")
    format = with_group(group.format.name, width, each)
    wanted = ["weight_packed", "weight_scale", "weight_shape"]
    wanted += ["weight_zero_point"] * format.zeros + ["weight_g_idx"] * group.order
    present(parts, wanted, f"a weight in {format.name}")
    if "weight_zero_point" in parts and not format.zeros:
        raise Broken("weight_zero_point", "the config says that the weight is symmetric")
    expect(parts, "weight_packed", (outputs, -(-width // 8)), "int32")
    expect(parts, "weight_scale", (outputs, width // each), *PLAIN)
    expect(parts, "weight_shape", (2,), "int64", "int32")
    if format.zeros:
        expect(parts, "weight_zero_point", (-(-outputs // 8), width // each), "int32")
    if group.order:
        expect(parts, "weight_g_idx", (width,), "int32", "int64")

    def check(tensors: Tensors) -> None:
        positive(tensors, "weight_scale")
        if (said := tensors["weight_shape"].tolist()) != [outputs, width]:
            raise Broken("weight_shape", f"it says {said}, and the model's config {[outputs, width]}")
        if group.order:
            order_of(tensors["weight_g_idx"], each, "weight_g_idx")

    def read(tensors: Tensors) -> Packed:
        from ..codes import from_bytes, to_bytes
        from ..numerics import Packed

        values = tensors["weight_packed"].view(torch.uint8)[:, : width // 2].contiguous()
        order = order_of(tensors["weight_g_idx"], each, "weight_g_idx") if group.order else None
        if order is not None:
            values = to_bytes(from_bytes(values, 4)[:, order], 4)
        zeros = None
        if format.zeros:
            words = tensors["weight_zero_point"].T.contiguous().view(torch.uint8)
            zeros = from_bytes(words, 4).T[:outputs].contiguous()
        return Packed(format, values, tensors["weight_scale"].to(torch.float32), zeros=zeros, order=order)

    small = tuple(part for part in wanted if part != "weight_packed")
    return Layout(format=format, parts=tuple(wanted), small=small, read=read, check=check)


COMPRESSED = Dialect(
    name="compressed-tensors",
    methods=("compressed-tensors",),
    keys={
        "quant_method": TEXT,
        "config_groups": OBJECT,
        "format": TEXT,
        "ignore": NAMES,
        "quantization_status": TEXT,
        "sparsity_config": ANYTHING,
        "transform_config": ANYTHING,
    },
    # The cache of keys and values is no weight's matter, and Cosmos3 has none to quantize.
    harmless=("version", "kv_cache_scheme", "global_compression_ratio", "moe_sparsity_config"),
    suffixes=(
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "weight_global_scale",
        "input_scale",
        "input_global_scale",
        "input_zero_point",
    ),
    describe=describe,
)
