"""Intel AutoRound's own exports: int4 in GPTQ's or AWQ's packing, MXFP8 and MXFP4, and mixtures of these.

Which modules are quantized is what the tensors say, and `extra_config`, which says of some modules what is otherwise,
has to agree. `block_name_to_quantize` is known to be wrong: its model-free mode quantizes proj_in and proj_out of
Cosmos3 under `layers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    Layout,
    Scheme,
    named,
    refuse,
    understood,
)
from .layouts import mx
from .words import SUFFIXES, checked_bits
from .words import layout as words

PACKINGS = {"auto_round:auto_gptq": False, "auto_round:gptq": False, "auto_gptq": False, "auto_round": False}
PACKINGS |= {"auto_round:auto_awq": True, "auto_round:awq": True, "auto_awq": True}
"""Names of the packing of int4, and whether it is AWQ's."""
MX_PACKING = "auto_round:llm_compressor"
MX_TYPES: dict[str, tuple[int, ...]] = {"mx_fp": (4, 8), "mx_fp_rceil": (4, 8), "mx_fp4": (4,), "mx_fp8": (8,)}
"""Names of the MX types, and the bits that each can have."""

INPUTS: dict[str, Any] = {"act_data_type": "mx_fp", "act_dynamic": True, "act_group_size": 32, "act_sym": True}
"""What MX formats say of their inputs."""

OF_MODULES = {
    "bits": WHOLE,
    "group_size": WHOLE,
    "sym": FLAG,
    "data_type": TEXT,
    "act_bits": WHOLE,
    "act_data_type": TEXT,
    "act_dynamic": FLAG,
    "act_group_size": WHOLE,
    "act_sym": FLAG,
    "rotation_config": ANYTHING,
    "transform_config": ANYTHING,
}
"""What can be said of all modules, and in `extra_config` of some."""
OF_ROUNDING = ("scale_dtype", "super_bits", "super_group_size")

Find = Callable[[str, Mapping[str, Header], tuple[int, int]], Layout | None]
"""As `Scheme.layout`."""


@dataclass(frozen=True)
class Said:
    """What is said of some modules: their format (None: they are not quantized), and how its tensors are found."""

    format: Format | None
    find: Find


def describe(clues: Clues) -> Scheme:
    """Raises InputError."""
    config = clues.config or {}
    most = _said(clues, "quantization_config", config)
    some = {name: _of_some(clues, name) for name in config.get("extra_config", {})}
    modules = {name.rpartition(".")[0] for name in clues.headers or {}}
    searched = [(_searched(clues, name, modules), one) for name, one in some.items() if name not in modules]
    stays = config.get("modules_to_not_convert", [])

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        said = some.get(module) or next((one for pattern, one in searched if pattern.search(module)), most)
        found = said.find(module, parts, shape)
        if found is None and said is not most and said.format:
            raise Broken(None, f"it is not quantized, and extra_config says that it is {said.format.name}")
        if found and named(stays, module):
            raise Broken(None, "it is quantized, and modules_to_not_convert names it")
        return found

    formats = dict.fromkeys(one.format for one in (most, *some.values()) if one.format)
    return Scheme(formats=tuple(formats), layout=layout)


def _searched(clues: Clues, name: str, modules: set[str]) -> re.Pattern[str]:
    """A name of `extra_config` as AutoRound takes one that is no module's: a part of the name, or an expression, in
    which it escapes the dots where the user did not. InputError where none of the checkpoint's `modules`, if they are
    known, is called so."""
    text = name if "\\" in name else re.sub(r"\.(?!\*)", r"\.", name)
    if not NAMES.fits([f"re:{text}"]):
        raise refuse(clues, "quantization_config", f"of extra_config {name!r}, which is no part of modules' names")
    pattern = re.compile(text)
    if modules and not any(map(pattern.search, modules)):
        raise refuse(clues, "quantization_config", f"of extra_config {name!r}, and no module is called so")
    return pattern


def _of_some(clues: Clues, name: str) -> Said:
    """What `extra_config` says under a name. Raises InputError."""
    config, where = clues.config or {}, f"quantization_config.extra_config.{name}"
    one = config["extra_config"][name]
    if not isinstance(one, Mapping):
        raise refuse(clues, "quantization_config", f"of extra_config {name} {one!r}, which is not an object")
    return _said(clues, where, {**config, **understood(clues, where, one, OF_MODULES, OF_ROUNDING)})


def _said(clues: Clues, where: str, config: Mapping[str, Any]) -> Said:
    """What a config says of the modules that it is for. Raises InputError."""
    if config.get("rotation_config") or config.get("transform_config"):
        raise refuse(clues, where, "that weights are rotated, which cosmos3 does not do")
    if config is not clues.config and config.get("bits", 0) >= 16:
        return Said(None, _plain(where))
    kind, packing = config.get("data_type"), config.get("packing_format")
    if kind == "int":
        if packing not in PACKINGS:
            raise refuse(clues, where, f"packing_format {packing!r}", f"Known are {', '.join(PACKINGS)}")
        if config.get("act_bits", 16) < 16:
            raise refuse(clues, where, f"act_bits {config['act_bits']} with int4 weights")
        _, group = checked_bits(clues, config, where)
        symmetric = config.get("sym", True)
        format = FORMATS["w4a16" if symmetric else "w4a16_asym"]
        return Said(format, _ints(group=group, symmetric=symmetric, awq=PACKINGS[packing]))
    if kind not in MX_TYPES:
        raise refuse(clues, where, f"data_type {kind!r}", "cosmos3 reads int and mx_fp")
    format = FORMATS[_mx(clues, where, config)]
    if packing != MX_PACKING:
        raise refuse(clues, where, f"packing_format {packing!r} of {format.name}", f"cosmos3 reads {MX_PACKING}")
    return Said(format, _floats(format))


def _plain(where: str) -> Find:
    def find(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        more = sorted(set(parts) - {"weight"})
        if more or parts["weight"].dtype not in PLAIN:
            found = f"has {', '.join(more)}" if more else f"is {parts['weight'].dtype}"
            raise Broken(None, f"it {found}, and {where} says that it is not quantized")
        return None

    return find


def _ints(*, group: int, symmetric: bool, awq: bool) -> Find:
    def find(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if "weight_scale" in parts or "weight_packed" in parts:
            raise Broken(None, f"it has {', '.join(sorted(parts))}, and the config says that weights are int4")
        return words(module, parts, shape, awq=awq, group=group, symmetric=symmetric, less=int(not awq))

    return find


def _floats(format: Format) -> Find:
    def find(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if set(parts) == {"weight"} and parts["weight"].dtype in PLAIN:
            return None
        if "qweight" in parts:
            raise Broken("qweight", f"the config says that weights are {format.name}")
        other = "weight" if format.element == "e2m1" else "weight_packed"
        if other in parts:
            raise Broken(other, f"it is {parts[other].dtype}, and the config says that weights are {format.name}")
        return mx(parts, shape, format)

    return find


def _mx(clues: Clues, where: str, config: Mapping[str, Any]) -> str:
    """The name of the MX format. Raises InputError."""
    kind, bits, group = config["data_type"], config.get("bits"), config.get("group_size")
    inputs = config.get("act_bits", 16)
    known: dict[Any, str] = {(8, 8): "mxfp8", (4, 4): "mxfp4", (4, 8): "mxfp4a8", (4, 16): "mxfp4a16"}
    name = known.get((bits, inputs))
    if name is None or group != 32 or bits not in MX_TYPES[kind]:
        found = f"data_type {kind!r}, bits {bits!r}, act_bits {inputs!r} and group_size {group!r}"
        raise refuse(clues, where, f"{found}, which is no MX format")
    if not config.get("sym", True):
        raise refuse(clues, where, f"sym False, and {name} has no zero points")
    of_inputs = {key: config.get(key, one) for key, one in INPUTS.items()}
    kind = of_inputs.pop("act_data_type")
    if inputs < 16 and not (kind.startswith("mx_fp") and all(of_inputs[key] == INPUTS[key] for key in of_inputs)):
        found = f"act_data_type {kind!r} and {of_inputs}, and inputs of {name} get scales of 32 while running"
        raise refuse(clues, where, found)
    if "act_bits" not in config and str(config.get("act_data_type", "float")).startswith("mx"):
        raise refuse(clues, where, f"act_data_type {config['act_data_type']!r}, and not in how many act_bits")
    return name


AUTOROUND = Dialect(
    name="auto-round",
    methods=("auto-round", "auto_round", "intel/auto-round"),
    keys={
        **OF_MODULES,
        "quant_method": TEXT,
        "packing_format": TEXT,
        "extra_config": OBJECT,
        "modules_to_not_convert": NAMES,
    },
    # Lists of blocks, which the tensors know better, and how the rounding was found.
    harmless=(
        *OF_ROUNDING,
        "block_name_to_quantize",
        "to_quant_block_names",
        "iters",
        "model_free",
        "autoround_version",
        "enable_quanted_input",
        "enable_minmax_tuning",
        "low_gpu_mem_usage",
        "lr",
        "minmax_lr",
        "nsamples",
        "seqlen",
        "batch_size",
        "gradient_accumulate_steps",
        "dataset",
        "amp",
        "enable_norm_bias_tuning",
        "enable_alg_ext",
        "provider",
        "backend",
        "num_inference_steps",
        "guidance_scale",
    ),
    suffixes=("weight", *SUFFIXES, "weight_packed", "weight_scale"),
    describe=describe,
)
