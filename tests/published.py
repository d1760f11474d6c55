"""The published checkpoints at tiny width: every key that their JSON files have, with the widths of the tiny model.

`docs/model.md`, sections 1.2 to 1.4 and 4.5. What is not a width is what the files say.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peer
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.scenarios.variants import checkpoints

COMMON: dict[str, Any] = {
    "_class_name": "Cosmos3OmniTransformer",
    "_diffusers_version": "0.37.1",
    "action_dim": 64,
    "action_gen": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "base_fps": 24,
    "dtype": "bfloat16",
    "enable_fps_modulation": True,
    "freeze_und": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "joint_attn_implementation": "two_way",
    "latent_channel": 48,
    "latent_patch_size": 2,
    "max_action_dim": 64,
    "max_position_embeddings": 262144,
    "model_type": "qwen3_vl_text",
    "num_embodiment_domains": 32,
    "num_key_value_heads": 8,
    "patch_latent_dim": 192,
    "position_embedding_type": "unified_3d_mrope",
    "qk_norm": False,
    "qk_norm_for_diffusion": True,
    "qk_norm_for_text": True,
    "rms_norm_eps": 1e-6,
    "rope_axes_dim": [24, 20, 20],
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    "rope_theta": 5e6,
    "sound_dim": 64,
    "sound_gen": True,
    "sound_latent_fps": 25,
    "temporal_compression_factor_sound": 1,
    "timestep_scale": 0.001,
    "unified_3d_mrope_reset_spatial_ids": True,
    "unified_3d_mrope_temporal_modality_margin": 15000,
    "use_cache": True,
    "use_moe": True,
    "video_temporal_causal": False,
    "vocab_size": 151936,
}
SUPER = {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "intermediate_size": 25600}
HEADLESS = {"action_gen": False, "action_dim": None, "max_action_dim": None, "sound_gen": False, "sound_dim": None}
KEYS: dict[str, dict[str, Any]] = {
    "nano": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288},
    "super": SUPER,
    "super-4step": SUPER | HEADLESS,
    "super-i2v-4step": SUPER | HEADLESS | {"base_fps": 16},
    "edge": {
        "backbone_type": "cosmos3_edge_nemotron_dense",
        "hidden_act": "relu2",
        "hidden_size": 2048,
        "intermediate_size": 9216,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "qk_norm_for_text": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e8,
        "sound_dim": None,
        "sound_gen": False,
        "use_und_k_norm_for_gen": True,
        "vocab_size": 131072,
    },
}
NARROW = {
    "action_dim": 16,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_action_dim": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rope_axes_dim": [4, 2, 2],
    "sound_dim": 8,
    "vocab_size": 320,
}
"""The tiny model's widths."""
SIGMAS = [1.0, 0.9375, 0.8333333333333334, 0.625]
FIXED = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "fixed_step_requires_explicit_sigmas": True,
    "fixed_step_sampler_config": {"sample_type": "sde", "t_list": SIGMAS},
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "stochastic_sampling": True,
}
"""A distilled model's scheduler_config.json."""
EDGE_INDEX = {"default_use_system_prompt": False, "native_flow_shift": 3.0, "use_native_flow_schedule": True}


def config(name: str, widths: dict[str, Any] | None = None) -> dict[str, Any]:
    """transformer/config.json of a published checkpoint, as it is or with other `widths`. A head that it has not has no
    width either."""
    keys = COMMON | KEYS[checkpoints()[name].config]
    if widths is None:
        return keys
    narrow = keys | {key: value for key, value in widths.items() if keys.get(key) is not None}
    return narrow | {"rope_scaling": keys["rope_scaling"] | {"mrope_section": narrow["rope_axes_dim"]}}


def repository(folder: Path, name: str, *, weights: bool = True, seed: int = 11) -> Path:
    """The checkpoint in a folder, with the tiny model's VAE and tokenizer, and a transformer in fp32 whose weights are
    random; without `weights` only the JSON files."""
    known, tiny = checkpoints()[name], open_model(TINY_MODEL).repository.root
    ignored = shutil.ignore_patterns(*([] if weights else ["*.safetensors"]))
    shutil.copytree(tiny, folder, dirs_exist_ok=True, ignore=ignored)
    shutil.rmtree(folder / "transformer")
    keys = config(name, NARROW)
    if weights:
        taken = peer.FAMILIES["edge"].keys() | {"base_fps"}
        own = {key: value for key, value in keys.items() if key in taken}
        peer.diffusers_transformer(own, seed=seed, scale=0.12).save_pretrained(folder / "transformer")
    _write(folder / "transformer/config.json", keys | ({"dtype": "float32"} if weights else {}))
    index = json.loads((folder / "model_index.json").read_text())
    if "sound" not in known.heads:
        shutil.rmtree(folder / "sound_tokenizer")
        index.pop("sound_tokenizer")
    if known.variant == "edge":
        index |= EDGE_INDEX
    if known.variant == "distilled":
        index["scheduler"] = ["diffusers", FIXED["_class_name"]]
        _write(folder / "scheduler/scheduler_config.json", FIXED)
        _write(folder / "modular_model_index.json", {"distilled_sigmas": SIGMAS, "is_distilled": True})
    _write(folder / "model_index.json", index)
    return folder


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True))
