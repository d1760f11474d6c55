"""All rows of a plan together: a step of the transformer, and decoded frames."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from math import prod

import pytest
import torch

from ... import contract
from ...contract import FORMATTED, OPS, InputError, Tuning
from ...model.config import VAE_SUPPORTED, TransformerConfig
from ...model.packing import Item, Packing
from ...model.vae import VideoVAE
from ...model.weights import Target, load_generation, load_understanding, shapes
from ...plan import Plan, Want, resolve
from ...plan.execution import tiling_of
from ...plan.resolve import formats_of
from ...reference import BACKEND, build_ops
from .. import cases
from ..cases import DTYPES, check, normal

SMALL = TransformerConfig(
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    intermediate_size=384,
    vocab_size=64,
)
CONFIGS = {
    "nano": SMALL,
    "super": replace(SMALL, hidden_size=128, num_attention_heads=16),
    "edge": replace(SMALL, hidden_act="relu2", qk_norm_for_text=False, use_und_k_norm_for_gen=True, rms_norm_eps=1e-5),
}


def _velocities(
    config: TransformerConfig, ops, device: str, dtype: str, format: str = "none", kept: contract.Ops | None = None
) -> torch.Tensor:
    """One step of both guidance branches, flat, on random weights: norms near 1, the rest of a trained size."""

    named = shapes(config)
    seeds = {name: seed for seed, name in enumerate(named)}

    def read(names):
        for name in names:
            shape, noise = named[name], normal(*named[name], seed=seeds[name])
            yield name, 1 + 0.2 * noise if "norm" in name else noise * (0.02 if len(shape) < 2 else shape[1] ** -0.5)

    plain = Target.plain(ops, device, getattr(torch, dtype))
    target = replace(plain, kept=kept or ops, format=format)
    understanding, generation = load_understanding(config, read, target), load_generation(config, read, target)
    texts = [understanding.prefill([token % 64 for token in range(3, 3 + 7 * length)]) for length in (11, 2)]
    items = (Item("vision", (config.latent_channel, 3, 10, 7), clean=(0,)),)
    branches = generation.branches(Packing(items, config, device), texts)
    found = generation.forward(branches, [normal(*item.shape, seed=5) for item in items], 700.0)
    return torch.cat([velocity.flatten() for items in found for velocity in items])


EAGER = build_ops()
EAGER_ROWS = {(row.op, row.name) for row in BACKEND.kernels}
IN_VAE = ("pack_linear", "norm_silu", "memory")


@cache
def _eager_velocities(config: TransformerConfig, dtype: str) -> torch.Tensor:
    return _velocities(config, EAGER, "cpu", dtype)


def _plan(subject, device: str, config: TransformerConfig, dtype: str, inside: Collection[str]) -> Plan:
    """Skips where there is none, and where the rows of the ops `inside` are the reference's on its own device."""
    try:
        plan = resolve(Want.of(config, dtype), subject.backend, subject.device)
    except InputError as error:
        pytest.skip(str(error))
    if device == "cpu" and all(
        (choice.op, choice.kernel.name) in EAGER_ROWS for choice in plan.choices if choice.op in inside
    ):
        pytest.skip(f"in {dtype} no row of the backend's own serves: it would be the reference against itself")
    return plan


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformer_step_parity(subject, device, dtype, config):
    """Both towers with the plan's kernels against the reference, one denoising step with two guidance branches."""
    ops = _plan(subject, device, config, dtype, OPS).build_ops()
    with torch.inference_mode():
        exact, eager = (_eager_velocities(config, name) for name in ("float32", dtype))
        check(_velocities(config, ops, device, dtype), exact, eager, dtype)


def _plans(subject, of: str) -> Iterator[tuple[str, Plan]]:
    """(format, plan) for each format of this op that the device can run. Skips where rows declare none."""
    formats = formats_of(subject.backend, of)
    if not formats:
        pytest.skip(f"no row of {of} declares a quantization format")
    for format in formats:
        if subject.known[format].static:
            continue  # the scales of the activations would be a trained checkpoint's
        try:
            yield format, resolve(Want.of(SMALL, "bfloat16", formats={of: format}), subject.backend, subject.device)
        except InputError:
            continue  # the rows' own tests tell why


@pytest.mark.parametrize("of", FORMATTED)
def test_transformer_step_in_every_format(subject, device, of):
    """The same in each format that rows of this op declare: what is kept is kept, what is quantized fits together."""
    with torch.inference_mode():
        exact, eager = (_eager_velocities(SMALL, name) for name in ("float32", "bfloat16"))
        for format, plan in _plans(subject, of):
            ops = plan.build_ops()
            found = _velocities(
                SMALL, ops, device, "bfloat16", plan.formats.get("pack_linear", "none"), plan.build_kept(ops)
            )
            # Two layers with a residual stream around them lose about what one product does.
            check(found, exact, eager, "bfloat16", cases.allowed(subject.known[format]))


VAE = {
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 1.0, 1.5, 0.8],
    **VAE_SUPPORTED,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}


def _frames(ops, device: str, dtype: str, tile: int | None) -> torch.Tensor:
    """Three latent frames of 5 x 6 decoded on random weights, [F, H, W, 3] in 0 to 255."""
    tensors = (
        (
            name,
            1 + 0.2 * normal(*shape, seed=i)
            if "norm" in name
            else normal(*shape, seed=i) / max(1, prod(shape[1:])) ** 0.5,
        )
        for i, (name, shape) in enumerate(VideoVAE.names(VAE, "the kit's VAE").items())
    )
    options = {"source": "the kit's VAE", "device": device, "dtype": getattr(torch, dtype), "halves": ("decoder",)}
    vae = VideoVAE.load(VAE, tensors, ops, **options)
    return torch.cat([*vae.decode(normal(4, 3, 5, 6, seed=1), tiling_of(5, 6, tile, Tuning().chunk_area))]).float()


@cache
def _eager_frames(dtype: str, tile: int | None) -> torch.Tensor:
    return _frames(EAGER, "cpu", dtype, tile)


@pytest.mark.parametrize("tile", [None, 64], ids=["whole", "tiles"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vae_decode_parity(subject, device, dtype, tile, depth):
    """Frames decoded whole, and in tiles: their seams are where the reference's are, and blended alike."""
    if depth.name == "quick" and dtype != "float32":  # many times as long on a processor
        pytest.skip("16 bits are decoded at depth full")
    found = _frames(_plan(subject, device, SMALL, dtype, IN_VAE).build_ops(), device, dtype, tile)
    eager, exact = (_eager_frames(name, tile) for name in (dtype, "float32"))
    assert found.shape == exact.shape == (9, 80, 96, 3)
    # Levels of 256: a rounding that goes the other way is one of them. TF32, which torch lets convolutions of fp32 use,
    # turns one in fifty: 0.14 levels on an H100.
    ours, theirs = ((frames - exact).square().mean().sqrt() for frames in (found, eager))
    assert ours <= cases.MULTIPLE * theirs + 0.25, f"{ours:.2f} levels from the truth; eager {dtype} is {theirs:.2f}"
