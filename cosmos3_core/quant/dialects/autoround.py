"""Intel AutoRound's own exports: int4 in GPTQ's or AWQ's packing, MXFP8 and MXFP4.

Which modules are quantized is what the tensors say. The config's lists are known to be wrong: its model-free mode
quantizes proj_in and proj_out of Cosmos3 under `block_name_to_quantize: layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..formats import FORMATS
from .common import ANYTHING, FLAG, TEXT, WHOLE, Broken, Clues, Dialect, Header, Layout, Scheme, refuse
from .layouts import mx
from .words import SUFFIXES, checked_bits
from .words import layout as words

PACKINGS = {"auto_round:auto_gptq": False, "auto_round:gptq": False, "auto_gptq": False, "auto_round": False}
PACKINGS |= {"auto_round:auto_awq": True, "auto_round:awq": True, "auto_awq": True}
"""Names of the packing of int4, and whether it is AWQ's."""

INPUTS: dict[str, Any] = {"act_data_type": "mx_fp", "act_dynamic": True, "act_group_size": 32, "act_sym": True}
"""What MX formats say of their inputs."""


def describe(clues: Clues) -> Scheme:
    """Raises InputError."""
    config = clues.config or {}
    kind, packing = str(config.get("data_type")), str(config.get("packing_format"))
    if config.get("rotation_config") or config.get("transform_config"):
        raise refuse(clues, "quantization_config", "that weights are rotated, which cosmos3 does not do")
    if kind == "int":
        if packing not in PACKINGS:
            raise refuse(
                clues, "quantization_config", f"packing_format {packing!r}", f"Known are {', '.join(PACKINGS)}"
            )
        if config.get("act_bits", 16) < 16:
            raise refuse(clues, "quantization_config", f"act_bits {config['act_bits']} with int4 weights")
        _, group = checked_bits(clues, config)
        symmetric, awq = config.get("sym", True), PACKINGS[packing]

        def ints(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
            if "weight_scale" in parts or "weight_packed" in parts:
                raise Broken(None, f"it has {', '.join(sorted(parts))}, and the config says that weights are int4")
            return words(module, parts, shape, awq=awq, group=group, symmetric=symmetric, less=int(not awq))

        return Scheme(formats=(FORMATS["w4a16" if symmetric else "w4a16_asym"],), layout=ints)
    name = _mx(clues, kind)

    def floats(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if "qweight" in parts:
            raise Broken("qweight", f"the config says that weights are {name}")
        return mx(parts, shape, FORMATS[name]) if set(parts) - {"weight"} else None

    return Scheme(formats=(FORMATS[name],), layout=floats)


def _mx(clues: Clues, kind: str) -> str:
    """The name of the MX format. Raises InputError."""
    config = clues.config or {}
    bits, group, inputs = config.get("bits"), config.get("group_size"), config.get("act_bits", 16)
    if kind not in ("mx_fp", "mx_fp_rceil", "mx_fp4", "mx_fp8"):
        raise refuse(clues, "quantization_config", f"data_type {kind!r}", "cosmos3 reads int and mx_fp")
    known: dict[Any, str] = {(8, 8): "mxfp8", (4, 4): "mxfp4", (4, 8): "mxfp4a8", (4, 16): "mxfp4a16"}
    name = known.get((bits, inputs))
    if name is None or group != 32:
        found = f"bits {bits!r}, act_bits {inputs!r} and group_size {group!r}, which is no MX format"
        raise refuse(clues, "quantization_config", found)
    of_inputs = {key: config.get(key, one) for key, one in INPUTS.items()}
    kind = of_inputs.pop("act_data_type")
    if inputs < 16 and not (kind.startswith("mx_fp") and all(of_inputs[key] == INPUTS[key] for key in of_inputs)):
        found = f"act_data_type {kind!r} and {of_inputs}, and inputs of {name} get scales of 32 while running"
        raise refuse(clues, "quantization_config", found)
    return name


AUTOROUND = Dialect(
    name="auto-round",
    methods=("auto-round", "auto_round", "intel/auto-round"),
    keys={
        "quant_method": TEXT,
        "packing_format": TEXT,
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
    },
    # Lists of modules, which the tensors know better, and how the rounding was found.
    harmless=(
        "block_name_to_quantize",
        "to_quant_block_names",
        "extra_config",
        "modules_to_not_convert",
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
        "scale_dtype",
        "amp",
        "enable_norm_bias_tuning",
        "enable_alg_ext",
        "super_bits",
        "super_group_size",
        "provider",
        "backend",
        "num_inference_steps",
        "guidance_scale",
    ),
    suffixes=("weight", *SUFFIXES, "weight_packed", "weight_scale"),
    describe=describe,
)
