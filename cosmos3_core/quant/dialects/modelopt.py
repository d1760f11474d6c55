"""NVIDIA ModelOpt: FP8 with static scales, NVFP4, MXFP8 and mixtures of them.

Its export of a diffusers model writes `quantization_config` in config.json, that of a language model
hf_quant_config.json. `modelopt_state.pth`, which can lie beside them, is a pickle and is never opened. The official
`fp8` revisions of Cosmos3 also say in which steps activations stay in 16 bits: `runtime.diffusion_step_policy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..formats import FORMATS, Format
from ..steps import A16, NATIVE
from .common import (
    ANYTHING,
    OBJECT,
    TEXT,
    WHOLE,
    Broken,
    Clues,
    Dialect,
    Header,
    Layout,
    Scheme,
    refuse,
    understood,
)
from .layouts import eight_bit, mx, nvfp4

FILE = "hf_quant_config.json"
ALGOS = {
    "FP8": "fp8_static",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4a16",
    "MXFP8": "mxfp8",
}
"""Its names of the formats."""
MODES = (A16, NATIVE)
POLICY: dict[str, tuple[Any, ...]] = {
    "schema_version": (1,),
    "type": ("first_last_n",),
    "index_space": ("denoising_loop_iteration",),
    "default_mode": ("native",),
    "overlap": MODES,
    "reasoner": MODES,
}
"""Keys of the steps' policy, and what they may be."""
OF_LAYER = {"quant_algo": TEXT, "group_size": WHOLE}
"""What a mixture says of a layer."""
RANGES = ("first_steps", "last_steps")
MOST = 1000
"""Steps of a run."""


def detect(clues: Clues) -> str | None:
    """By the name of an algorithm, or the file of its export."""
    if clues.config is not None and "quant_algo" in clues.config and not clues.method:
        return "quantization_config has a quant_algo"
    return f"there is a {FILE}" if FILE in clues.files else None


def describe(clues: Clues) -> Scheme:
    """Which algorithm, and the policy of the steps. Raises InputError."""
    said = _said(clues)
    algo, mixed = _algo(clues, said)
    names = sorted(set(mixed.values())) if algo == "MIXED_PRECISION" else [algo]
    for name in names:
        if name not in ALGOS:
            next_step = f"Of ModelOpt's algorithms cosmos3 reads {', '.join(ALGOS)}"
            raise refuse(clues, "quantization_config", f"quant_algo {name}", next_step)

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if not any(part != "weight" for part in parts):
            if module in mixed:
                raise Broken(None, f"it is not quantized, and quantized_layers says that it is {mixed[module]}")
            return None
        chosen = mixed.get(module) if algo == "MIXED_PRECISION" else algo
        if chosen is None:
            raise Broken(None, "it has scales, and quantized_layers does not name it")
        return _layout(ALGOS[chosen], parts, shape)

    formats = tuple(FORMATS[ALGOS[name]] for name in names)
    _check_groups(clues, said, formats)
    return Scheme(formats=formats, layout=layout, policy=_policy(clues, said))


def _layout(format: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout:
    if "pre_quant_scale" in parts:
        raise Broken("pre_quant_scale", "its inputs are to be smoothed, which cosmos3 does not do")
    found = parts["weight"].dtype if "weight" in parts else "missing"
    wanted = "uint8" if format.startswith("nvfp4") else "float8_e4m3fn"
    if found != wanted:
        raise Broken("weight", f"it is {found}, and the config says that it is {format}, which is {wanted}")
    if format.startswith("nvfp4"):
        return nvfp4(
            parts,
            shape,
            weight="weight",
            tensor_scale="weight_scale_2",
            input_scale="input_scale",
            inverse=False,
            weight_only=format == "nvfp4a16",
        )
    if format == "mxfp8":
        return mx(parts, shape, FORMATS[format])
    if format == "fp8" and "input_scale" in parts:
        raise Broken("input_scale", "the config says that each token has a scale of its own")
    return eight_bit(parts, shape, FORMATS[format])


def _said(clues: Clues) -> Mapping[str, Any]:
    """The description, of config.json or of the other file. Raises InputError where they do not say the same."""
    said = dict(clues.config or {})
    if FILE not in clues.files:
        return said
    whole = understood(clues, FILE, clues.files[FILE], {"producer": ANYTHING, "quantization": OBJECT})
    own = understood(clues, FILE, whole.get("quantization", {}), MODELOPT.keys, MODELOPT.harmless)
    for key in ("quant_algo", "quantized_layers", "group_size", "runtime"):
        if said.get(key, own.get(key)) != own.get(key, said.get(key)):
            raise refuse(clues, FILE, f"{key} {own[key]!r}, and quantization_config {said[key]!r}")
    return own | said


def _algo(clues: Clues, config: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The algorithm, and that of each module of a mixture. Raises InputError."""
    if config.get("kv_cache_quant_algo") not in (None, "FP8", "NVFP4", "none"):
        raise refuse(clues, "quantization_config", f"kv_cache_quant_algo {config['kv_cache_quant_algo']!r}")
    if (algo := config.get("quant_algo")) is None:
        raise refuse(clues, "quantization_config", "quant_algo None, which names no algorithm")
    layers = config.get("quantized_layers", {})
    if wrong := [name for name, one in layers.items() if not isinstance(one, Mapping)]:
        raise refuse(clues, "quantization_config", f"of quantized_layers {wrong[0]} {layers[wrong[0]]!r}")
    _check_size(clues, "quantization_config", algo, config.get("group_size"))
    mixed = {}
    for name, one in layers.items():
        where = f"quantization_config.quantized_layers.{name}"
        one = understood(clues, where, one, OF_LAYER, ("has_zero_point", "pre_quant_scale"))
        mixed[name] = str(one.get("quant_algo"))
        _check_size(clues, where, mixed[name], one.get("group_size"))
        if algo not in ("MIXED_PRECISION", mixed[name]):
            raise refuse(clues, where, f"quant_algo {mixed[name]}, and quantization_config {algo}")
    return algo, mixed


def _check_size(clues: Clues, where: str, algo: str, size: int | None) -> None:
    """Raises InputError for groups of another size than the algorithm's."""
    group = FORMATS[ALGOS[algo]].group if algo in ALGOS else 0
    if group and size not in (None, group):
        raise refuse(clues, where, f"group_size {size}, and {algo.removeprefix('W4A16_')} has groups of {group}")


def _check_groups(clues: Clues, config: Mapping[str, Any], formats: Sequence[Format]) -> None:
    """What config groups say once more of the weights. Raises InputError where that is none of the algorithms'."""
    for name, group in config.get("config_groups", {}).items():
        weights = group.get("weights", {}) if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise refuse(clues, f"config_groups.{name}", f"{group!r}, which is no group")
        if not any(_agrees(weights, format) for format in formats):
            said = " and ".join(one for one, algo in ALGOS.items() if FORMATS[algo] in formats)
            raise refuse(clues, f"config_groups.{name}", f"of weights {dict(weights)}, which is not {said}")


def _agrees(weights: Mapping[str, Any], format: Format) -> bool:
    kind = weights.get("num_bits", format.bits), weights.get("type", "float")
    return kind == (format.bits, "float") and weights.get("group_size") in (None, format.group)


def _policy(clues: Clues, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The policy of the steps as the file has it, checked; None where there is none or it is for other components.
    Raises InputError."""
    where = "quantization_config.runtime"
    policy = understood(clues, where, config.get("runtime", {}), {"diffusion_step_policy": OBJECT}).get(
        "diffusion_step_policy"
    )
    if policy is None:
        return None
    where += ".diffusion_step_policy"
    understood(clues, where, policy, {}, (*POLICY, *RANGES, "scope"))
    if missing := [key for key in (*POLICY, *RANGES, "scope") if key not in policy]:
        raise refuse(clues, where, f"nothing of {', '.join(missing)}")
    scope = policy["scope"]
    if not (isinstance(scope, list) and all(isinstance(one, str) for one in scope)):
        raise refuse(clues, where, f"scope {scope!r}, which is no list of components")
    for key, allowed in POLICY.items():
        if policy[key] not in allowed or type(policy[key]) is not type(allowed[0]):
            known = " or ".join(map(str, allowed))
            raise refuse(clues, where, f"{key} {policy[key]!r}, and cosmos3 knows {known}")
    for key in RANGES:
        one = policy[key]
        whole = isinstance(one, Mapping) and set(one) == {"count", "mode"} and type(one["count"]) is int
        if not whole or not 0 <= one["count"] <= MOST or one["mode"] not in MODES:
            raise refuse(clues, where, f'{key} {one!r}, and it should be like {{"count": 3, "mode": "a16"}}')
    return dict(policy) if "transformer" in scope else None


MODELOPT = Dialect(
    name="modelopt",
    methods=("modelopt",),
    detect=detect,
    keys={
        "quant_method": TEXT,
        "quant_algo": TEXT,
        "quantized_layers": OBJECT,
        "group_size": WHOLE,
        "runtime": OBJECT,
        "kv_cache_quant_algo": TEXT,
        "config_groups": OBJECT,
    },
    # Lists of what is left out say again what the tensors say.
    harmless=("ignore", "exclude_modules", "producer", "kv_cache_scheme", "has_zero_point"),
    suffixes=("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"),
    describe=describe,
)
