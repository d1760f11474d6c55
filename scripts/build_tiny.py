"""Write the tiny checkpoint that the tests run: Nano's architecture and the hub's layout at 2 MB.

    python scripts/build_tiny.py [FOLDER]

It lies in tests/tiny, whose weights have to go first. They are random, drawn from a fixed seed at scales that keep
activations near one, so the same torch gives the same bytes (tests/test_tiny.py compares). It shows that everything
runs; what it paints means nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, Cosmos3AVAEAudioTokenizer

from cosmos3_core.checkpoint.tensors import save_tensors
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.weights import shapes

SEED = 20261123
TINY = Path(__file__).parents[1] / "tests" / "tiny"

TRANSFORMER = {
    "_class_name": "Cosmos3OmniTransformer",
    "action_dim": 16,
    "action_gen": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "base_fps": 24,
    "dtype": "bfloat16",
    "enable_fps_modulation": True,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "joint_attn_implementation": "two_way",
    "latent_channel": 48,
    "latent_patch_size": 2,
    "model_type": "qwen3_vl_text",
    "num_attention_heads": 4,
    "num_embodiment_domains": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "patch_latent_dim": 192,
    "position_embedding_type": "unified_3d_mrope",
    "qk_norm_for_diffusion": True,
    "qk_norm_for_text": True,
    "rms_norm_eps": 1e-6,
    "rope_axes_dim": [4, 2, 2],
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
    "rope_theta": 5000000.0,
    "sound_dim": 8,
    "sound_gen": True,
    "sound_latent_fps": 25.0,
    "timestep_scale": 0.001,
    "unified_3d_mrope_reset_spatial_ids": True,
    "unified_3d_mrope_temporal_modality_margin": 15000,
    "video_temporal_causal": False,
    "vocab_size": 320,
}
# The real VAE's statistics (docs/model.md, section 5.1): they belong to the layout, and normalisation is tested with
# them.
LATENTS_MEAN = """
-.2289 -.0052 -.1323 -.2339 -.2799 .0174 .1838 .1557 -.1382 .0542 .2813 .0891 .1570 -.0098 .0375 -.1825
-.2246 -.1207 -.0698 .5109 .2665 -.2108 -.2158 .2502 -.2055 -.0322 .1109 .1567 -.0729 .0899 -.2799 -.1230 -.0313 -.1649
.0117 .0723 -.2839 -.2083 -.0520 .3748 .0152 .1957 .1433 -.2944 .3573 -.0548 -.1681 -.0667"""
LATENTS_STD = """
.4765 1.0364 .4514 1.1677 .5313 .4990 .4818 .5013 .8158 1.0344 .5894 1.0901 .6885 .6165 .8454 .4978 .5759
.3523 .7135 .6804 .5833 1.4146 .8986 .5659 .7069 .5338 .4889 .4917 .4069 .4999 .6866 .4093 .5709 .6065 .6415 .4944 .5726
1.2042 .5458 1.6887 .3971 1.0600 .3943 .5537 .5444 .4089 .7468 .7744"""
VAE = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [float(x) for x in LATENTS_MEAN.split()],
    "latents_std": [float(x) for x in LATENTS_STD.split()],
}
SOUND = {
    "sampling_rate": 48000,
    "vocoder_input_dim": 8,
    "dec_dim": 8,
    "dec_c_mults": [1, 2, 2, 2, 2],
    "dec_strides": [2, 4, 5, 6, 8],
    "enc_dim": 8,
    "enc_c_mults": [1, 2, 2],
    "enc_strides": [4, 5, 6],
    "enc_num_blocks": 1,
    "enc_n_fft": 64,
    "enc_hop_length": 16,
    "enc_latent_dim": 16,
}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "disable_corrector": [],
    "final_sigmas_type": "zero",
    "flow_shift": 1.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "sigma_max": 200.0,
    "sigma_min": 0.147,
    "solver_order": 2,
    "solver_type": "bh2",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
    "use_karras_sigmas": True,
}
MODEL_INDEX = {
    "_class_name": "Cosmos3OmniPipeline",
    "default_use_system_prompt": True,
    "enable_safety_checker": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "sound_tokenizer": ["diffusers", "Cosmos3AVAEAudioTokenizer"],
    "text_tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "Cosmos3OmniTransformer"],
    "use_native_flow_schedule": False,
    "vae": ["diffusers", "AutoencoderKLWan"],
}
NEGATIVE_PROMPT = {
    "subjects": "distorted shapes, missing or extra parts",
    "background_setting": "flat, empty, inconsistent between frames",
    "lighting": "flickering, burnt out",
    "aesthetics": "blurry, noisy, low resolution",
    "temporal_caption": "jumps, frozen frames",
    "physical_realism": "objects pass through each other or vanish",
}
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def draw(name: str, shape: tuple[int, ...], stream: torch.Generator) -> torch.Tensor:
    """A parameter at a scale that keeps a signal's size: norms and gains near 1, matrices at 1 / sqrt(fan-in)."""
    noise = torch.randn(shape, generator=stream)
    if name.endswith("conv2.weight_g"):  # a waveform that is heard and not cut off
        return 0.2 * (1 + 0.1 * noise)
    if "norm" in name or name.endswith(("gamma", "weight_g")):
        return 1 + 0.1 * noise
    if name.endswith("bias") or len(shape) == 1 or "snake" in name:
        return 0.1 * noise
    if name == "embed_tokens.weight":
        return noise
    if name.startswith("action_proj"):
        fan_in = TRANSFORMER["action_dim"] if "_in." in name else TRANSFORMER["hidden_size"]
    else:
        fan_in = math.prod(shape[1:])
    return noise / math.sqrt(fan_in)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def transformer(stream: torch.Generator) -> dict[str, torch.Tensor]:
    """All 43 tensors of the transformer, the language head among them, as the hub's files hold them."""
    config = TransformerConfig.from_json(TRANSFORMER, "the tiny transformer")
    unused = {"lm_head.weight": (config.vocab_size, config.hidden_size), "norm.weight": (config.hidden_size,)}
    tensors = {name: draw(name, shape, stream) for name, shape in sorted((unused | shapes(config)).items())}
    return {name: t if name.startswith("time_embedder") else t.bfloat16() for name, t in tensors.items()}


def module_state(module: torch.nn.Module, stream: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: draw(name, tuple(t.shape), stream).bfloat16() for name, t in module.state_dict().items()}


def tokenizer(folder: Path) -> None:
    """Byte-level BPE without merges: every byte is a token, then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 262144,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def build(folder: Path) -> None:
    """Write the whole repository."""
    stream = torch.Generator().manual_seed(SEED)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "transformer" / "config.json", TRANSFORMER)
    save_tensors(folder / "transformer", transformer(stream))
    for name, config, cls in (("vae", VAE, AutoencoderKLWan), ("sound_tokenizer", SOUND, Cosmos3AVAEAudioTokenizer)):
        module = cls.from_config(config)
        write_json(folder / name / "config.json", {"_class_name": cls.__name__} | config)
        save_tensors(folder / name, module_state(module, stream))
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    tokenizer(folder / "text_tokenizer")
    write_json(folder / "assets" / "negative_prompt.json", NEGATIVE_PROMPT)
    write_json(folder / "assets" / "defaults.json", {"weights": "random"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=TINY)
    build(parser.parse_args().folder)
