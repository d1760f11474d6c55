"""diffusers' Cosmos3 and ours on the same random weights, for parity tests and benchmarks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from tiny_model import TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract import Ops
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.weights import Target, canonical_name, check_names, load_generation, load_understanding
from cosmos3_core.plan import Want, resolve

TINY = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=320,
    rope_axes_dim=[4, 2, 2],
    action_gen=True,
    action_dim=16,
    sound_gen=True,
    sound_dim=8,
)
FAMILIES = {
    "nano": TINY,
    # Super's query width differs from its hidden size, and eight query heads share a key head.
    "super": TINY | dict(hidden_size=48, num_attention_heads=8, num_key_value_heads=1, num_hidden_layers=3),
    "edge": TINY
    | dict(hidden_act="relu2", qk_norm_for_text=False, use_und_k_norm_for_gen=True, rms_norm_eps=1e-5, rope_theta=1e8),
}


def diffusers_transformer(config: dict, seed: int = 0, scale: float = 0.2):
    """A diffusers transformer in fp32, every parameter random (norms near 1): zeros and ones would hide mistakes."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    module = Cosmos3OmniTransformer(**config).eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=stream)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else scale * noise)
    return module


def reference_plan(config: TransformerConfig, dtype: str = "float32"):
    return resolve(Want.of(config, dtype), reference.BACKEND, reference.probe())


def towers(module, ops: Ops | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """Our towers with the weights of a diffusers transformer."""
    config = TransformerConfig.from_json(dict(module.config), "a diffusers transformer")
    ops = ops or reference_plan(config).build_ops()
    state = {canonical_name(name): tensor for name, tensor in module.state_dict().items()}
    check_names(config, {n: (tuple(t.shape), t.dtype) for n, t in state.items()}, "a diffusers transformer")

    def read(names):
        return ((name, state[name]) for name in names)

    target = Target.plain(ops, device, dtype)
    return SimpleNamespace(
        config=config,
        understanding=load_understanding(config, read, target),
        generation=load_generation(config, read, target),
    )


def diffusers_inputs(packing, text_ids: list[int], latents: list[torch.Tensor], timestep: float) -> dict:
    """Keyword arguments of diffusers' transformer for the same items and prompt, one item of a modality at most."""
    from cosmos3_core.model.rope import text_positions

    length = len(text_ids)
    arguments = dict(
        input_ids=torch.tensor(text_ids),
        text_indexes=torch.arange(length),
        position_ids=torch.cat([text_positions(length), packing.positions(length)], dim=1),
        und_len=length,
        sequence_length=length + packing.length,
        return_dict=False,
    )
    for item, rows, noisy, latent in zip(packing.items, packing.rows, packing.noisy, latents, strict=True):
        indices = torch.arange(length + rows.start, length + rows.stop)
        grid = item.grid(packing.config.latent_patch_size)
        predicted = indices if noisy is None else indices[noisy]
        frames = torch.tensor([i for i in range(item.frames) if i not in item.clean])
        arguments |= {
            f"{item.modality}_tokens": [latent[None] if item.modality == "vision" else latent],
            f"{item.modality}_token_shapes": [grid],
            f"{item.modality}_sequence_indexes": indices,
            f"{item.modality}_mse_loss_indexes": predicted,
            f"{item.modality}_timesteps": torch.full((len(predicted),), float(timestep)),
            f"{item.modality}_noisy_frame_indexes": [frames],
        }
        if item.modality == "action":
            arguments["action_domain_ids"] = [torch.tensor(item.domain)]
    return arguments


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def pipeline_of(folder: Path):
    """diffusers' pipeline of a repository, in fp32 and without a word."""
    from diffusers import Cosmos3OmniPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = Cosmos3OmniPipeline.from_pretrained(folder, enable_safety_checker=False, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(folder: Path) -> Path:
    """The tiny model in fp32 with a transformer of ordinary scale, saved by diffusers."""
    return save_repository(folder, diffusers_transformer(TINY, seed=11, scale=0.12))


def save_repository(folder: Path, module, **index) -> Path:
    """A whole repository around a transformer as diffusers saves it; the other components are the tiny model's."""
    import shutil

    tiny = open_model(TINY_MODEL).repository.root
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "transformer")
    module.save_pretrained(folder / "transformer")
    written = json.loads((folder / "model_index.json").read_text()) | index
    (folder / "model_index.json").write_text(json.dumps(written))
    return folder
