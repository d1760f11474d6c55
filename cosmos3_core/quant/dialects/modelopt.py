"""NVIDIA ModelOpt: FP8 with static scales, NVFP4, MXFP8 and mixtures of them.

Its export of a diffusers model writes `quantization_config` in config.json, that of a language model
hf_quant_config.json. `modelopt_state.pth`, which can lie beside them, is a pickle and is never opened. The official
`fp8` revisions of Cosmos3 also say in which steps activations stay in 16 bits: `runtime.diffusion_step_policy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..formats import FORMATS
from ..steps import A16, NATIVE
from .common import Broken, Clues, Dialect, Header, Layout, Scheme, refuse, unknown_keys
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
RANGES = ("first_steps", "last_steps")
MOST = 1000
"""Steps of a run."""


def detect(clues: Clues) -> str | None:
    """By `quant_method` or the producer's name."""
    if clues.method == "modelopt":
        return "quantization_config says quant_method modelopt"
    if clues.config is not None and "quant_algo" in clues.config and not clues.method:
        return "quantization_config has a quant_algo"
    return f"there is a {FILE}" if FILE in clues.files else None


def describe(clues: Clues) -> Scheme:
    """Which algorithm, and the policy of the steps. Raises InputError."""
    algo, mixed = _algo(clues)
    names = sorted(set(mixed.values())) if algo == "MIXED_PRECISION" else [algo]
    for name in names:
        if name not in ALGOS:
            next_step = f"Of ModelOpt's algorithms cosmos3 reads {', '.join(ALGOS)}"
            raise refuse(clues, "quantization_config", f"quant_algo {name}", next_step)

    def layout(module: str, parts: Mapping[str, Header], shape: tuple[int, int]) -> Layout | None:
        if not any(part != "weight" for part in parts):
            return None
        chosen = mixed.get(module) if algo == "MIXED_PRECISION" else algo
        if chosen is None:
            raise Broken(None, "it has scales, and quantized_layers does not name it")
        return _layout(ALGOS[chosen], parts, shape)

    formats = tuple(FORMATS[ALGOS[name]] for name in names)
    return Scheme(formats=formats, layout=layout, policy=_policy(clues))


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


def _algo(clues: Clues) -> tuple[str, dict[str, str]]:
    """The algorithm, and that of each module of a mixture. Raises InputError."""
    if clues.config is not None and detect(clues) != f"there is a {FILE}":
        config = clues.config
    else:
        whole = clues.files[FILE]
        unknown_keys(clues, FILE, whole, ("producer", "quantization"))
        config = whole.get("quantization") or {}
        unknown_keys(clues, FILE, config, (*MODELOPT.keys, *MODELOPT.harmless))
    if config.get("kv_cache_quant_algo") not in (None, "FP8", "NVFP4", "none"):
        raise refuse(clues, "quantization_config", f"kv_cache_quant_algo {config['kv_cache_quant_algo']!r}")
    algo = config.get("quant_algo")
    if not isinstance(algo, str):
        raise refuse(clues, "quantization_config", f"quant_algo {algo!r}, which names no algorithm")
    layers = config.get("quantized_layers") or {}
    if not isinstance(layers, Mapping):
        raise refuse(clues, "quantization_config", f"quantized_layers {layers!r}")
    mixed = {name: str(one.get("quant_algo")) for name, one in layers.items() if isinstance(one, Mapping)}
    size = config.get("group_size")
    if algo in ("NVFP4", "W4A16_NVFP4") and size not in (None, 16):
        raise refuse(clues, "quantization_config", f"group_size {size}, and NVFP4 has groups of 16")
    return algo, mixed


def _policy(clues: Clues) -> dict[str, Any] | None:
    """The policy of the steps as the file has it, checked; None where there is none or it is for other components.
    Raises InputError."""
    runtime = (clues.config or {}).get("runtime") or {}
    where = "quantization_config.runtime"
    if not isinstance(runtime, Mapping):
        raise refuse(clues, where, repr(runtime))
    unknown_keys(clues, where, runtime, ("diffusion_step_policy",))
    policy = runtime.get("diffusion_step_policy")
    if policy is None:
        return None
    where += ".diffusion_step_policy"
    if not isinstance(policy, Mapping):
        raise refuse(clues, where, f"{policy!r}, which is no object")
    unknown_keys(clues, where, policy, (*POLICY, *RANGES, "scope"))
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
    detect=detect,
    keys=("quant_method", "quant_algo", "quantized_layers", "group_size", "runtime", "kv_cache_quant_algo"),
    # Groups and lists of what is left out say again what the tensors say.
    harmless=("config_groups", "ignore", "exclude_modules", "producer", "kv_cache_scheme", "has_zero_point"),
    suffixes=("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"),
    describe=describe,
)
