"""Quantized checkpoints that are damaged or say what is not so: each is refused by name, with what to do, before a
weight is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf_files
import pytest
import torch
from dialect_files import (
    DESCRIPTION,
    PROBE,
    STEM,
    Change,
    changed,
    checkpoint,
    first,
    saying,
    tensors_of,
    without_config,
)
from safetensors.torch import save_file

from cosmos3_core.checkpoint.gguf import GgufFile
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.tensors import TensorFiles
from cosmos3_core.contract import InputError
from cosmos3_core.quant.dialects.common import named

CONFIG = ("quantization_config",)
POLICY = (*CONFIG, "runtime", "diffusion_step_policy")
WEIGHTS = ("weight", "qweight", "weight_packed", "_weight_qdata")
"""Ends of the names of what is no small part."""


def config(*path: str, value: object) -> Change:
    return saying(*CONFIG, *path, value=value)


def group(*path: str, value: object) -> Change:
    return config("config_groups", "group_0", *path, value=value)


def extra(name: str, value: object) -> Change:
    return config("extra_config", name, value=value)


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def mixture(more: dict[str, object]) -> Change:
    """ModelOpt's, of the one algorithm that all modules have, and of what more is said."""

    def change(folder: Path) -> None:
        held, _ = tensors_of(folder)
        modules = [name.removesuffix(".weight_scale") for name in held if name.endswith(".weight_scale")]
        (algo,) = {one["quant_algo"] for one in more.values()}  # type: ignore[index]
        config("quant_algo", value="MIXED_PRECISION")(folder)
        config("quantized_layers", value={name: {"quant_algo": algo} for name in modules} | more)(folder)

    return change


def metadata(text: str | None) -> Change:
    """What the file's metadata says of the probe's class."""

    def change(folder: Path) -> None:
        held, said = tensors_of(folder)
        said = {key: value for key, value in said.items() if key != f"{PROBE}.weight"}
        said |= {} if text is None else {f"{PROBE}.weight": text}
        save_file(held, folder / "transformer" / f"{STEM}.safetensors", metadata=said)

    return change


def gguf(**options: object) -> Change:
    """The same tensors, written with these options of `gguf_files.write`."""

    def change(folder: Path) -> None:
        gguf_files.write(folder / "transformer" / f"{STEM}.gguf", gguf_files.read(folder), **options)  # type: ignore[arg-type]

    return change


def entry(change: Callable[[gguf_files.Entry], gguf_files.Entry]) -> Change:
    """The probe's tensor, changed."""

    def changed(folder: Path) -> None:
        held = gguf_files.read(folder)
        held[f"{PROBE}.weight"] = change(held[f"{PROBE}.weight"])
        gguf_files.write(folder / "transformer" / f"{STEM}.gguf", held)

    return changed


def state(text: bytes) -> torch.Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


W4A16, MXFP4, MXFP8 = "autoround-w4a16", "autoround-mxfp4", "autoround-mxfp8"
STATE = "weight__quant_state__bitsandbytes__nf4"
FP8, NVFP4 = "modelopt-fp8", "modelopt-nvfp4"
BAD: dict[str, tuple[str, Change, str]] = {
    # ModelOpt
    "no scale": (FP8, changed(weight_scale=None), f"tensor {PROBE}.weight_scale: it is missing"),
    "no scale of the inputs": (FP8, changed(input_scale=None), f"tensor {PROBE}.input_scale: it is missing"),
    "NaN scale": (FP8, changed(weight_scale=first(float("nan"))), f"tensor {PROBE}.weight_scale holds NaN"),
    "zero scale": (FP8, changed(weight_scale=first(0)), f"tensor {PROBE}.weight_scale: 1 of its 1 scales cannot be"),
    "negative scale": (FP8, changed(weight_scale=first(-1)), "scales cannot be, the first is negative"),
    "negative scale of the inputs": (FP8, changed(input_scale=first(-1)), f"tensor {PROBE}.input_scale: 1 of its 1"),
    "scale of integers": (FP8, changed(weight_scale=lambda t: t.int()), f"{PROBE}.weight_scale: it is int32 instead"),
    "three scales": (FP8, changed(weight_scale=torch.ones(3)), f"{PROBE}.weight_scale: it is [3] instead of []"),
    "weight of another width": (FP8, changed(weight=lambda t: t[:, :32]), f"{PROBE}.weight: it is [32, 32] instead"),
    "weight in 16 bits": (
        FP8,
        changed(weight=lambda t: t.bfloat16()),
        f"{PROBE}.weight: it is bfloat16, and the config",
    ),
    "config of NVFP4": (
        FP8,
        both(config("config_groups", value={}), config("quant_algo", value="NVFP4")),
        "it is float8_e4m3fn, and the config says that it is nv",
    ),
    "unknown algorithm": (FP8, config("quant_algo", value="FP8_PB_WO"), "says quant_algo FP8_PB_WO. Of ModelOpt's"),
    "no algorithm": (FP8, config("quant_algo", value=None), "says quant_algo None"),
    "unknown key": (FP8, config("rotate", value="hadamard"), "says rotate = 'hadamard', which is not understood"),
    "smoothed inputs": (FP8, changed(pre_quant_scale=torch.ones(64)), f"tensor {PROBE}.pre_quant_scale: its inputs"),
    "policy with an unknown key": (FP8, saying(*POLICY, "warm", value=1), "warm = 1, which is not understood"),
    "policy of minus one step": (
        FP8,
        saying(*POLICY, "first_steps", value={"count": -1, "mode": "a16"}),
        "first_steps {'count': -1, 'mode': 'a16'}",
    ),
    "policy of a fraction of a step": (
        FP8,
        saying(*POLICY, "last_steps", value={"count": 2.0, "mode": "a16"}),
        "last_steps {'count': 2.0, 'mode': 'a16'}",
    ),
    "policy of true steps": (
        FP8,
        saying(*POLICY, "last_steps", value={"count": True, "mode": "a16"}),
        "last_steps {'count': True, 'mode': 'a16'}",
    ),
    "policy of more steps than any run has": (
        FP8,
        saying(*POLICY, "first_steps", value={"count": 1001, "mode": "a16"}),
        "first_steps {'count': 1001, 'mode': 'a16'}",
    ),
    "policy of steps of another mode": (
        FP8,
        saying(*POLICY, "first_steps", value={"count": 1, "mode": "w8a8"}),
        "first_steps {'count': 1, 'mode': 'w8a8'}",
    ),
    "policy of steps with an unknown key": (
        FP8,
        saying(*POLICY, "first_steps", value={"count": 1, "mode": "a16", "from": 2}),
        "first_steps {'count': 1, 'mode': 'a16', 'from': 2}",
    ),
    "policy of another overlap": (
        FP8,
        saying(*POLICY, "overlap", value="both"),
        "overlap 'both', and cosmos3 knows",
    ),
    "policy of another reasoner": (
        FP8,
        saying(*POLICY, "reasoner", value=None),
        "reasoner None, and cosmos3 knows",
    ),
    "policy of half a schema": (FP8, saying(*POLICY, "schema_version", value=1.0), "schema_version 1.0, and cosmos3"),
    "policy of a scope in one text": (FP8, saying(*POLICY, "scope", value="transformer"), "scope 'transformer', which"),
    "policy without a field": (FP8, saying(*POLICY, value={"schema_version": 1}), "says nothing of type, index_space"),
    "policy of another kind": (FP8, saying(*POLICY, "type", value="cosine"), "type 'cosine', and cosmos3 knows first_"),
    "NVFP4: bf16 scales": (
        NVFP4,
        changed(weight_scale=lambda t: t.bfloat16()),
        "it is bfloat16 instead of float8_e4m3fn",
    ),
    "NVFP4: no second scale": (NVFP4, changed(weight_scale_2=None), f"tensor {PROBE}.weight_scale_2: it is missing"),
    "NVFP4: too many blocks": (
        NVFP4,
        changed(weight_scale=torch.ones(32, 5).to(torch.float8_e4m3fn)),
        f"{PROBE}.weight_scale: it is [32, 5] instead of [32, 4]",
    ),
    "NVFP4: NaN in a block's scale": (NVFP4, changed(weight_scale=first(float("nan"))), "the first is NaN"),
    "NVFP4: groups of 32": (NVFP4, config("group_size", value=32), "says group_size 32, and NVFP4 has groups of 16"),
    "NVFP4: weights beyond fp32": (
        NVFP4,
        changed(weight_scale_2=first(1e38)),
        "weight_scale_2: 1 of its 1 scales cannot be, the first is 1e+38",
    ),
    "two files that disagree": (
        FP8,
        saying("quantization", value={"quant_algo": "NVFP4"}, file="transformer/hf_quant_config.json"),
        "its hf_quant_config.json says quant_algo 'NVFP4', and quantization_config 'FP8'",
    ),
    "two policies": (
        FP8,
        saying("quantization", value={"runtime": {}}, file="transformer/hf_quant_config.json"),
        "its hf_quant_config.json says runtime {}, and quantization_config {'diffusion_step_policy'",
    ),
    "an algorithm of no object": (
        FP8,
        both(config("quant_algo", value="MIXED_PRECISION"), config("quantized_layers", value={PROBE: "FP8"})),
        f"of quantized_layers {PROBE} 'FP8'",
    ),
    "an unknown key of a layer": (
        FP8,
        mixture({PROBE: {"quant_algo": "FP8", "rotate": True}}),
        f"quantized_layers.{PROBE} says rotate = True, which is not understood",
    ),
    "a layer in groups of 32": (
        NVFP4,
        mixture({PROBE: {"quant_algo": "NVFP4", "group_size": 32}}),
        f"quantized_layers.{PROBE} says group_size 32, and NVFP4 has groups of 16",
    ),
    "a layer of another algorithm": (
        FP8,
        config("quantized_layers", value={PROBE: {"quant_algo": "NVFP4"}}),
        f"quantized_layers.{PROBE} says quant_algo NVFP4, and quantization_config FP8",
    ),
    "a layer that is not quantized": (
        FP8,
        mixture({"layers.0.self_attn.to_q": {"quant_algo": "FP8"}}),
        "layers.0.self_attn.to_q: it is not quantized, and quantized_layers says that it is FP8",
    ),
    "groups of other bits": (
        FP8,
        group("weights", value={"num_bits": 4, "type": "float"}),
        "config_groups.group_0 says of weights {'num_bits': 4, 'type': 'float'}, which is not FP8",
    ),
    "groups of integers": (FP8, group("weights", "type", value="int"), "'type': 'int'}, which is not FP8"),
    "groups of blocks of another size": (NVFP4, group("weights", "group_size", value=32), "32}, which is not NVFP4"),
    "a group that is none": (
        FP8,
        config("config_groups", "group_0", value=3),
        "config_groups.group_0 says 3, which is",
    ),
    # compressed-tensors
    "unknown format of all": ("ct-int", config("format", value="marlin-24"), "quantization_config says format 'marlin"),
    "unknown order": (
        "ct-w4a16",
        group("weights", "actorder", value="up"),
        "actorder 'up', which is not group, dynamic, weight, static or a flag",
    ),
    "true order": ("ct-w4a16", group("weights", "actorder", value=True), "weight_g_idx: it is missing"),
    "groups of channels": (
        "ct-int",
        group("weights", "group_size", value=32),
        "config_groups.group_0 says group_size 32 with strategy channel",
    ),
    "named, and not quantized": (
        "ct-int",
        both(config("ignore", value=[]), group("targets", value=["Linear", "layers.0.self_attn.to_q"])),
        "layers.0.self_attn.to_q: it is not quantized, and config group group_0 names it",
    ),
    "two groups for one module": (
        "ct-int",
        config("config_groups", "group_1", value={"targets": [PROBE], "weights": {"strategy": "channel"}}),
        "config groups group_0 and group_1 are for it, and differ",
    ),
    "inputs in integers by weights in floats": (
        "ct-float-static",
        group("input_activations", "type", value="int"),
        "which is no format of cosmos3",
    ),
    "one scale for all tokens": (
        "ct-float",
        group("input_activations", "strategy", value="tensor"),
        "which is no format of cosmos3",
    ),
    "asymmetric inputs in floats": (
        "ct-nvfp4",
        group("input_activations", "symmetric", value=False),
        "which is no format of cosmos3",
    ),
    "a pattern that is none": (
        "ct-int",
        config("ignore", value=["re:("]),
        "ignore ['re:('], which is not a list of modules' names",
    ),
    "a pattern that takes for ever": (
        "ct-int",
        config("ignore", value=["re:(model|layers|[a-z.]+)+$"]),
        "patterns with few choices and no repeated groups",
    ),
    "scales beyond fp32 of what to divide by": (
        "ct-nvfp4",
        changed(weight_global_scale=first(1e-40)),
        "weight_global_scale: 1 of its 1 scales cannot be, the first is infinite",
    ),
    "unknown format": ("ct-float", group("format", value="marlin-24"), "config_groups.group_0 says format 'marlin-24'"),
    "three bits": ("ct-w4a16", group("weights", "num_bits", value=3), "which is no format of cosmos3"),
    "groups that do not divide": (
        "ct-w4a16",
        group("weights", "group_size", value=48),
        "groups of 48 do not divide its",
    ),
    "groups of another size": ("ct-w4a16", group("weights", "group_size", value=16), "_scale: it is [64, 2] instead"),
    "another shape": ("ct-w4a16", changed(weight_shape=torch.tensor([32, 128])), "it says [32, 128], and the model's"),
    "words of another width": (
        "ct-w4a16",
        changed(weight_packed=lambda t: t[:, :7]),
        f"{PROBE}.weight_packed: it is [32, 7] instead of [32, 8]",
    ),
    "words of bytes": (
        "ct-w4a16",
        changed(weight_packed=lambda t: t.view(torch.uint8)),
        "it is uint8 instead of int32",
    ),
    "no zero points": ("ct-w4a16-asym", changed(weight_zero_point=None), "weight_zero_point: it is missing"),
    "zero points of a symmetric weight": (
        "ct-w4a16-asym",
        group("weights", "symmetric", value=True),
        "weight_zero_point: the config says that the weight is symmetric",
    ),
    "ignored, and quantized": ("ct-int", config("ignore", value=[PROBE]), "and the config's ignore list names it"),
    "in no group": ("ct-int", group("targets", value=["layers.7"]), "and no config group is for it"),
    "rotated": (
        "ct-int",
        config("transform_config", value={"R1": {}}),
        "transform_config {'R1': {}}, which cosmos3 does",
    ),
    "unknown key of weights": ("ct-int", group("weights", "skew", value=2), "skew = 2, which is not understood"),
    "zero global scale": ("ct-nvfp4", changed(weight_global_scale=first(0)), "weight_global_scale: 1 of its 1 scales"),
    "no order of the features": (
        "ct-w4a16",
        group("weights", "actorder", value="group"),
        "weight_g_idx: it is missing",
    ),
    # AutoRound
    "unknown packing": (
        W4A16,
        config("packing_format", value="auto_round:exl2"),
        "packing_format 'auto_round:",
    ),
    "unknown kind": (MXFP4, config("data_type", value="nf_fp"), "says data_type 'nf_fp'. cosmos3 reads"),
    "MX in groups of 64": (
        MXFP4,
        config("group_size", value=64),
        "and group_size 64, which is no MX format",
    ),
    "NaN exponent": (MXFP8, changed(weight_scale=first(255)), "one of its scales is 255, which is NaN"),
    "int4 under MX": (
        MXFP4,
        changed(qweight=torch.zeros(8, 32, dtype=torch.int32)),
        f"tensor {PROBE}.qweight: the config says that weights are mxfp4",
    ),
    "rotated int4": (
        W4A16,
        config("rotation_config", value={"a": 1}),
        "says that weights are rotated, which cosmos3 does not do",
    ),
    "MX by stored scales of inputs": (
        MXFP8,
        config("act_dynamic", value=False),
        "'act_dynamic': False",
    ),
    "an exponent beyond fp32": (
        MXFP8,
        changed(weight_scale=first(254)),
        "one of its scales is 2^127, and its weights would be infinite",
    ),
    "int4 without scales": (W4A16, changed(scales=None), f"tensor {PROBE}.scales: it is missing, and an int4 weight"),
    "int4 in groups of 64": (
        W4A16,
        config("group_size", value=64),
        "tensor proj_in.scales: it has 6 groups, and of 192 input features groups of 64 are 3",
    ),
    "int4 said to have 8 bits": (W4A16, config("bits", value=8), "says bits 8. Of this packing cosmos3 reads 4 bits"),
    "int4 said to be asymmetric": (
        W4A16,
        config("sym", value=False),
        "scales cannot be, as they are negative, and the config says that the weight is not symmetric",
    ),
    "int4 with inputs in 8 bits": (W4A16, config("act_bits", value=8), "says act_bits 8 with int4 weights"),
    "int4 in AWQ's packing": (
        W4A16,
        config("packing_format", value="auto_round:auto_awq"),
        "proj_in.qweight: it is [24, 64], as GPTQ packs it, and the config says that AWQ does",
    ),
    "zero points of another packing": (
        W4A16,
        changed(qzeros=lambda t: t.T),
        f"tensor {PROBE}.qzeros: it is [4, 2] instead of [2, 4]",
    ),
    "zero points that are not less one": (
        W4A16,
        changed(qzeros=lambda t: t + 0x11111111),
        f"tensor {PROBE}.qzeros: a zero point is 9, and the config says that the weight is symmetric",
    ),
    "half of the words": (
        W4A16,
        changed(qweight=lambda t: t[:4]),
        f"tensor {PROBE}.qweight: it is [4, 32] instead of [8, 32]",
    ),
    "NaN scale of int4": (W4A16, changed(scales=first(float("nan"))), f"tensor {PROBE}.scales holds NaN"),
    "MX under int4": (
        W4A16,
        changed(weight_packed=torch.zeros(32, 32, dtype=torch.uint8)),
        "it has qweight, qzeros, scales, weight_packed, and the config says that weights are int4",
    ),
    "said of a module that is not there": (
        W4A16,
        extra("layers.9.self_attn.add_k_proj", {"bits": 16}),
        "says of extra_config 'layers.9.self_attn.add_k_proj', and no module is called so",
    ),
    "said with a dot for any character": (
        MXFP8,
        extra("add.k_proj", {"bits": 16, "act_bits": 16}),
        "says of extra_config 'add.k_proj', and no module is called so",
    ),
    "said not to be quantized": (
        W4A16,
        extra(PROBE, {"bits": 16, "data_type": "float"}),
        f"tensor {PROBE}: it has qweight, qzeros, scales, and quantization_config.extra_config.{PROBE} says that it is",
    ),
    "said not to be quantized by a part of its name": (
        MXFP8,
        extra("layers.1.self_attn", {"bits": 16, "act_bits": 16}),
        "extra_config.layers.1.self_attn says that it is not quantized",
    ),
    "said to be in groups of 64": (
        W4A16,
        extra(PROBE, {"group_size": 64}),
        f"tensor {PROBE}.scales: it has 2 groups, and of 64 input features groups of 64 are 1",
    ),
    "said to have 8 bits": (
        W4A16,
        extra(PROBE, {"bits": 8}),
        f"its quantization_config.extra_config.{PROBE} says bits 8. Of this packing",
    ),
    "said in a word": (W4A16, extra(PROBE, "float"), f"of extra_config {PROBE} 'float', which is not an object"),
    "said by an unknown key": (W4A16, extra(PROBE, {"skew": 1}), f"extra_config.{PROBE} says skew = 1, which is not"),
    "said by a pattern that takes for ever": (
        W4A16,
        extra("(layers|[a-z.]+)+$", {"bits": 16}),
        "of extra_config '(layers|[a-z.]+)+$', which is no part of modules' names",
    ),
    "said by a pattern of many choices": (
        W4A16,
        extra("[a-z]?" * 30 + "Z", {"bits": 16}),
        "Z', which is no part of modules' names",
    ),
    "said by a pattern of many alternatives": (W4A16, extra("((l)|[a-z])" * 30 + "Z", {"bits": 16}), "Z', which is no"),
    "said by a pattern of a huge count": (W4A16, extra("a{9999999999999}", {"bits": 16}), "'a{9999999999999}', which"),
    "said by a pattern of many groups": (W4A16, extra("(" * 999 + ")" * 999, {"bits": 16}), ")', which is no part of"),
    "a list with a pattern of a huge count": (
        W4A16,
        config("modules_to_not_convert", value=["re:a{9999999999999}"]),
        "which is not a list of modules' names, or of patterns with few choices and no repeated groups",
    ),
    "said to be in groups, and not quantized": (
        W4A16,
        extra("layers.0.self_attn.add_k_proj", {"bits": 4, "group_size": 32}),
        "tensor layers.0.self_attn.add_k_proj: it is not quantized, and extra_config says that it is w4a16",
    ),
    "said to have 8 bits by a part of its name, and not quantized": (
        MXFP4,
        both(
            changed(weight_packed=None, weight_scale=None, weight=torch.zeros(32, 64, dtype=torch.bfloat16)),
            extra("self_attn.add_k", {"bits": 8, "act_bits": 8}),
        ),
        f"tensor {PROBE}: it is not quantized, and extra_config says that it is mxfp8",
    ),
    "not to be converted, and quantized": (
        W4A16,
        config("modules_to_not_convert", value=[PROBE]),
        f"tensor {PROBE}: it is quantized, and modules_to_not_convert names it",
    ),
    "MX of inputs of another type": (
        MXFP8,
        config("act_data_type", value="int"),
        "says act_data_type 'int' and {'act_dynamic': True",
    ),
    "MX of 16 bits": (
        MXFP8,
        both(config("bits", value=16), config("act_bits", value=16)),
        "bits 16, act_bits 16 and group_size 32, which is no MX format",
    ),
    "transformed int4": (W4A16, config("transform_config", value={"a": 1}), "says that weights are rotated"),
    "MX in int4's packing": (
        MXFP4,
        config("packing_format", value="auto_round:auto_gptq"),
        "says packing_format 'auto_round:auto_gptq' of mxfp4. cosmos3 reads auto_round:llm_compressor",
    ),
    "MX of a type of other bits": (
        MXFP4,
        config("data_type", value="mx_fp8"),
        "says data_type 'mx_fp8', bits 4, act_bits 4 and group_size 32, which is no MX format",
    ),
    "MX with zero points": (MXFP4, config("sym", value=False), "says sym False, and mxfp4 has no zero points"),
    "inputs in no bits": (
        MXFP4,
        config("act_bits", value=None),
        "says act_data_type 'mx_fp', and not in how many act_bits",
    ),
    "MXFP8 without scales": (
        MXFP8,
        changed(weight_scale=None),
        f"tensor {PROBE}.weight_scale: it is missing, and a weight in mxfp8 needs it",
    ),
    "MXFP8 said to be MXFP4": (
        MXFP8,
        both(config("bits", value=4), config("act_bits", value=4)),
        "proj_in.weight: it is float8_e4m3fn, and the config says that weights are mxfp4",
    ),
    "AutoRound's and ModelOpt's": (
        MXFP8,
        saying("quantization", value={"quant_algo": "FP8"}, file="hf_quant_config.json"),
        "it is modelopt, as there is a hf_quant_config.json and it is auto-round",
    ),
    "AutoRound's said to be compressed-tensors'": (
        MXFP8,
        config("quant_method", value="compressed-tensors"),
        "act_bits = 8, act_data_type = 'mx_fp'",
    ),
    # GPTQ and AWQ
    "feature of group 9": ("gptq", changed(g_idx=first(9)), f"tensor {PROBE}.g_idx: it names group 9, and there are 2"),
    "groups of half of the features": (
        "gptq",
        changed(g_idx=lambda t: t[:32]),
        f"tensor {PROBE}.g_idx: it is [32] instead of [64]",
    ),
    "scales in integers": ("gptq", changed(scales=lambda t: t.int()), f"{PROBE}.scales: it is int32 instead of float"),
    "AWQ's not to be converted": (
        "awq",
        config("modules_to_not_convert", value=[PROBE]),
        f"tensor {PROBE}.qweight: modules_to_not_convert names the module",
    ),
    "groups of several sizes": ("gptq", changed(g_idx=first(1)), "its groups do not all have 32 features"),
    "zero point of 16": ("gptq", changed(qzeros=first(-1)), f"tensor {PROBE}.qzeros: a zero point is 16"),
    "zero points said to be symmetric": (
        "gptq",
        config("sym", value=True),
        "and the config says that the weight is symm",
    ),
    "8 bits": ("gptq", config("bits", value=8), "says bits 8. Of this packing cosmos3 reads 4 bits"),
    "groups of zero": ("gptq", config("group_size", value=0), "says group_size 0"),
    "unknown version": ("gptq", config("checkpoint_format", value="marlin"), "checkpoint_format 'marlin'"),
    "two weights": ("gptq", changed(weight=torch.zeros(32, 64)), "it stands beside qweight"),
    "no words of zero points": ("gptq", changed(qzeros=None), f"tensor {PROBE}.qzeros: it is missing"),
    "negative fp16 scale": ("gptq", changed(scales=first(-1)), f"tensor {PROBE}.scales: 1 of its 64 scales cannot be"),
    "AWQ's gemv": ("awq", config("version", value="gemv"), "says version 'gemv'. Of AWQ's packings"),
    "AWQ along the inputs": (
        "awq",
        changed(qweight=lambda t: t.T),
        f"{PROBE}.qweight: it is [4, 64] instead of [64, 4]",
    ),
    # bitsandbytes
    "FP4": ("bnb-nf4", config("bnb_4bit_quant_type", value="fp4"), "bnb_4bit_quant_type 'fp4'"),
    "scales said to be nested": (
        "bnb-nf4",
        config("bnb_4bit_use_double_quant", value=True),
        "weight.nested_absmax: it is",
    ),
    "another table": ("bnb-nf4", changed(weight__quant_map=lambda t: t.flip(0)), "it is not the table of NF4"),
    "no JSON": ("bnb-nf4", changed(**{STATE: state(b"\xff{")}), "it holds no JSON object"),
    "blocks of another size": (
        "bnb-nf4",
        changed(**{STATE: state(b'{"quant_type": "nf4", "blocksize": 128, "shape": [32, 64]}')}),
        "it says blocksize 128, and the scales are of 64 elements",
    ),
    "a state of floats": (
        "bnb-nf4",
        changed(**{STATE: lambda t: t.float()}),
        "it is float32 instead of uint8",
    ),
    "nested scales of bytes": (
        "bnb-nf4-nested",
        changed(weight__nested_absmax=lambda t: t.byte()),
        f"{PROBE}.weight.nested_absmax: it is uint8 instead of float32",
    ),
    "half of a weight": (
        "bnb-nf4",
        changed(weight=lambda t: t[:512]),
        f"{PROBE}.weight: it is [512, 1] instead of [1024",
    ),
    # torchao
    "said to be for inputs in 8 bits": (
        "torchao-int8",
        config("quant_type", value="Int8DynamicActivationInt8WeightConfig"),
        "its files speak of int8, and layers are in int8a16",
    ),
    "no class": ("torchao-int8", metadata(None), f"tensor {PROBE}: the file's metadata does not say of which class"),
    "another class": (
        "torchao-int8",
        metadata('{"_type": "Int4Tensor", "_data": {}}'),
        "it is a Int4Tensor, and of torchao",
    ),
    "groups of 32 in the config": (
        "torchao-int8",
        config("quant_type", "default", "_data", "group_size", value=32),
        "quant_type.default says group_size 32, and cosmos3 reads one scale for each row",
    ),
    "other floats in the config": (
        "torchao-float8",
        config("quant_type", "default", "_data", "weight_dtype", "_data", value="float8_e5m2"),
        "says weight_dtype 'float8_e5m2', and cosmos3 reads float8_e4m3fn",
    ),
    "a config of some modules": (
        "torchao-int8",
        config("quant_type", "proj", value={"_type": "Int4WeightOnlyConfig"}),
        "quant_type says proj = {'_type': 'Int4WeightOnlyConfig'}, which is not understood",
    ),
    "a config with an unknown key": (
        "torchao-int8",
        config("quant_type", "default", "rotate", value=True),
        "quant_type.default says rotate = True, which is not understood",
    ),
    "zero points in floats": (
        "torchao-int8",
        changed(_weight_zero_point=lambda t: t.float()),
        "it is float32 instead of int8",
    ),
    "a zero point": ("torchao-int8", changed(_weight_zero_point=first(3)), "a zero point is not 0"),
    # ModelSlim
    "said to be FLOAT": (
        "modelslim-dynamic",
        saying(f"{PROBE}.weight", value="FLOAT", file=f"transformer/{DESCRIPTION}"),
        "the description says that it is FLOAT",
    ),
    "a product of other scales": (
        "modelslim-static",
        changed(deq_scale=lambda t: t * 2),
        f"tensor {PROBE}.deq_scale: it is not the product of weight_scale and input_scale",
    ),
    "asymmetric inputs": ("modelslim-static", changed(input_offset=first(5)), "inputs are asymmetric"),
    "unknown description": (
        "modelslim-dynamic",
        saying(f"{PROBE}.weight", value="W4A4", file=f"transformer/{DESCRIPTION}"),
        "says W4A4. cosmos3 reads W8A8_DYNAMIC and W8A8",
    ),
    # GGUF
    "another magic": ("gguf", gguf(magic=b"GGML"), "it begins with b'GGML', and a GGUF file with b'GGUF'"),
    "another version": ("gguf", gguf(version=9), "it is GGUF of version 9, and cosmos3 reads 2 and 3"),
    "cut in the table": ("gguf", gguf(cut=200), "the file is cut short inside of its table"),
    "cut in a block": ("gguf", gguf(cut=300_000), "the file is cut short: tensor "),
    "countless tensors": ("gguf", gguf(count=1 << 40), "it says that it has 1,099,511,627,776 tensors"),
    "misaligned": ("gguf", gguf(shift=8), "begins at byte 8, which is not aligned to 32"),
    "unknown type": (
        "gguf",
        entry(lambda one: gguf_files.Entry(one.shape, 13, one.data)),
        f"tensor {PROBE}.weight is of type Q5_K, and cosmos3 reads F32",
    ),
    "no whole blocks": (
        "gguf",
        entry(lambda one: gguf_files.Entry((32, 63), one.type, one.data)),
        "has no whole blocks of 32",
    ),
    "one inside of another": (
        "gguf",
        entry(lambda one: gguf_files.Entry(one.shape, one.type, one.data[:-64])),
        "begins inside of the one before it",
    ),
    "another shape in the table": (
        "gguf",
        entry(lambda one: gguf_files.Entry((64, 32), one.type, one.data)),
        f"tensor {PROBE}.weight: it is [64, 32] instead of [32, 64]",
    ),
    # More than one, or none
    "two descriptions": (
        "ct-int",
        saying("quantization", value={"quant_algo": "FP8"}, file="hf_quant_config.json"),
        "it is modelopt, as there is a hf_quant_config.json and it is compressed-tensors",
    ),
    "tensors of another dialect": (
        FP8,
        changed(qzeros=torch.zeros(2, 4, dtype=torch.int32)),
        f"in the dialect modelopt, and {PROBE}.qzeros is of auto-round and gptq and awq",
    ),
    "no description": (FP8, without_config, "so it is quantized, and no file says how"),
    "unknown method": (
        FP8,
        config("quant_method", value="exl3"),
        "says quant_method 'exl3', which cosmos3 does not read",
    ),
    "unknown method beside a known file": (
        FP8,
        both(
            config("quant_method", value="exl3"),
            saying("quantization", value={"quant_algo": "FP8"}, file="transformer/hf_quant_config.json"),
        ),
        "says quant_method 'exl3', which cosmos3 does not read",
    ),
    "a list": (FP8, saying(*CONFIG, value=[1]), "its quantization_config is a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused_by_name_before_a_weight_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, change, said = BAD[name]
    folder = checkpoint(fixture, tmp_path / "model")
    change(folder)
    read: list[str] = []
    for kind in (TensorFiles, GgufFile):
        monkeypatch.setattr(kind, "read", spied(kind.read, read))
    with pytest.raises(InputError) as error:
        Weights(open_model(str(folder)))
    assert said in str(error.value)
    assert error.value.next_step
    assert not [one for one in read if one.rsplit(".", 1)[-1] in WEIGHTS]


def spied(read: Callable, names: list[str]) -> Callable:
    def spy(self: object, asked: object) -> object:
        asked = list(asked)  # type: ignore[call-overload]
        names.extend(asked)
        return read(self, asked)

    return spy


@pytest.mark.parametrize("name", ["NaN in a weight", "NaN in a block's scale", "NaN in a block's minimum"])
def test_what_only_the_weight_shows_is_found_when_it_is_read(name: str, tmp_path: Path) -> None:
    folder = checkpoint(FP8 if name == "NaN in a weight" else "gguf", tmp_path / "model")
    if name == "NaN in a weight":
        changed(weight=first(float("nan")))(folder)
    else:  # those of the first block: Q5_1 begins with its scale, and its minimum follows
        at = 0 if name.endswith("scale") else 2
        there = lambda one: one.data[:at] + b"\x00\x7e" + one.data[at + 2 :]  # noqa: E731
        entry(lambda one: gguf_files.Entry(one.shape, one.type, there(one)))(folder)
    weights = Weights(open_model(str(folder)))
    with pytest.raises(InputError, match=f"tensor {PROBE}.weight: .*NaN"):
        dict(weights.quantized.weights([PROBE]))


def test_names_in_a_list_are_whole_parts_of_a_path() -> None:
    """`layers.1` is not layers.11, nor a pattern that only begins as a module does."""
    for pattern in ("layers.1", "layers.1.mlp.up_proj", "layers.1.*", r"re:layers\.1\.", "*.up_proj"):
        assert named([pattern], "layers.1.mlp.up_proj") and not named([pattern], "layers.11.mlp.upper"), pattern
    assert not named(["layers.1.mlp.up", "mlp", "re:mlp", ""], "layers.1.mlp.up_proj")
