"""The VAE adapter against diffusers' own module and pipeline, on the tiny VAE (spec 5.3, 5.4)."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from torch import Tensor

from cosmos3_core.contract.errors import InputError
from cosmos3_core.engine.model import Model, Weights, open_model
from cosmos3_core.model import vae as vae_module
from cosmos3_core.model.vae import VideoVAE


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("tiny")


@pytest.fixture(scope="module")
def weights(model) -> Weights:
    return Weights(model)


@pytest.fixture(scope="module")
def vae(weights) -> VideoVAE:
    return weights.vae("cpu", torch.float32, encoder=True)


@pytest.fixture(scope="module")
def peer(model, weights) -> AutoencoderKLWan:
    """diffusers' module with the same weights, loaded without the product's adapter."""
    module = AutoencoderKLWan.from_config(model.vae)
    tensors = {name: tensor.clone() for name, tensor in weights.vae_files.read(weights.vae_files.tensors)}
    module.load_state_dict(tensors, strict=True)
    return module.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(frames: int, height: int = 48, width: int = 64) -> Tensor:
    return noise(3, frames, height, width, seed=frames).mul(0.5).clamp(-1, 1)


def raw_latents(peer: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """The pipeline's way back from normalised latents: z / (1 / std) + mean."""
    mean, std = (
        torch.tensor(values, dtype=peer.dtype).view(1, -1, 1, 1, 1)
        for values in (peer.config.latents_mean, peer.config.latents_std)
    )
    return latents[None].to(peer.dtype) / (1 / std) + mean


@torch.inference_mode()
def peer_decode(peer: AutoencoderKLWan, latents: Tensor) -> Tensor:
    return peer.decode(raw_latents(peer, latents)).sample


def assert_bytes_of(found: Tensor, sample: Tensor) -> None:
    """`found` is [1, 3, F, H, W] `sample` as uint8 [F, H, W, 3]: 255 · (x / 2 + 1/2), to the nearest whole number."""
    exact = 255 * (sample[0].double().clamp(-1, 1) / 2 + 0.5)
    exact = exact.permute(1, 2, 3, 0)
    assert found.shape == exact.shape and found.dtype == torch.uint8
    assert (found - exact).abs().max() < 0.5 + 1e-4


def pipeline_encode(peer: AutoencoderKLWan, clip: Tensor) -> Tensor:
    """What diffusers' pipeline makes of pixels."""
    stats = SimpleNamespace(
        vae=peer,
        _vae_latents_mean=torch.tensor(peer.config.latents_mean, dtype=peer.dtype),
        _vae_latents_inv_std=1.0 / torch.tensor(peer.config.latents_std, dtype=peer.dtype),
    )
    with torch.inference_mode():
        return Cosmos3OmniPipeline._encode_video(stats, clip[None])[0]


# Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_streaming_decode_is_diffusers_decode_bit_for_bit(vae, peer, monkeypatch, frames):
    latents = noise(48, frames, 3, 4, seed=frames)
    expected = peer_decode(peer, latents)
    assert_bytes_of(torch.cat(list(vae.decode(latents))), expected)

    # And before they become bytes.
    monkeypatch.setattr(vae_module, "_to_bytes", lambda values: values)
    assert torch.equal(torch.cat(list(vae.decode(latents)), dim=2).clamp(-1, 1), expected)


def test_frames_come_one_then_four_at_a_time(vae):
    groups = list(vae.decode(noise(48, 4, 2, 3)))
    assert [tuple(group.shape) for group in groups] == [(n, 32, 48, 3) for n in (1, 4, 4, 4)]
    assert all(group.dtype == torch.uint8 and group.is_contiguous() for group in groups)
    assert len({group.float().mean().item() for group in groups}) == 4, "every group shows something else"


def test_a_group_is_handed_out_before_the_next_is_decoded(vae):
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = vae.module.decoder.register_forward_pre_hook(count)
    try:
        groups = vae.decode(noise(48, 3, 2, 2))
        seen = []
        for _ in range(3):
            next(groups)
            seen.append(calls)
        assert seen == [1, 2, 3]
    finally:
        hook.remove()


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_decode_of_a_prefix_is_the_prefix_of_the_decode(vae, frames):
    latents = noise(48, 4, 3, 4)
    whole = torch.cat(list(vae.decode(latents)))
    prefix = torch.cat(list(vae.decode(latents[:, :frames])))
    assert len(prefix) == 4 * (frames - 1) + 1
    assert torch.equal(prefix, whole[: len(prefix)])


def test_a_decode_left_half_way_leaves_nothing_behind(vae):
    latents, other = noise(48, 3, 2, 2), noise(48, 3, 2, 2, seed=1)
    expected = torch.cat(list(vae.decode(latents)))
    next(vae.decode(other))
    half = vae.decode(other)
    next(half), next(half)
    assert torch.equal(torch.cat(list(vae.decode(latents))), expected)


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.5, 0.997, 1.0, 3.0])
    sample = values.view(1, 1, 1, 1, -1).expand(1, 3, 2, 1, -1)
    found = vae_module._to_bytes(sample)
    assert_bytes_of(found, sample)
    assert found.shape == (2, 1, 8, 3) and found.dtype == torch.uint8
    # 127.5 is halfway; either neighbour is as near.
    assert found[1, 0, :, 2].tolist() in ([0, 0, 0, n, 191, 255, 255, 255] for n in (127, 128))


# Encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encode_is_the_pipelines_normalised_mode(vae, peer, frames):
    clip = pixels(frames)
    found = vae.encode(clip)
    assert found.shape == (48, (frames - 1) // 4 + 1, 3, 4) and found.dtype == torch.float32
    assert torch.equal(found, pipeline_encode(peer, clip))
    assert torch.equal(found, vae.encode(clip)), "the mode, and no sample"


def test_encode_normalises_by_the_configs_numbers(vae, peer):
    """The pipeline's formula again, from the file's values in fp64."""
    clip = pixels(5)
    with torch.inference_mode():
        mode = peer.encode(clip[None]).latent_dist.mode()[0].double()
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1, 1)
        for v in (peer.config.latents_mean, peer.config.latents_std)
    )
    torch.testing.assert_close(vae.encode(clip).double(), (mode - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5])
def test_the_encode_of_a_prefix_is_the_prefix_of_the_encode(vae, frames):
    """What lets a run encode one picture, or five frames, instead of a padded clip."""
    clip = pixels(13)
    whole, prefix = vae.encode(clip), vae.encode(clip[:, :frames])
    assert prefix.shape[1] == (frames - 1) // 4 + 1
    torch.testing.assert_close(prefix, whole[:, : prefix.shape[1]], rtol=0, atol=1e-6)


def test_later_frames_do_count_towards_later_latents(vae):
    clip = pixels(9)
    changed = clip.clone()
    changed[:, 5:] *= -1
    before, after = vae.encode(clip), vae.encode(changed)
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=1e-6)
    assert (before[:, 2] - after[:, 2]).abs().mean() > 1e-3


def test_half_precision_is_diffusers_half_precision(weights, peer):
    half, module = weights.vae("cpu", torch.bfloat16, encoder=True), copy.deepcopy(peer).bfloat16()
    clip, latents = pixels(5), noise(48, 2, 3, 4)
    assert half.dtype == torch.bfloat16
    found = half.encode(clip)
    assert found.dtype == torch.float32
    assert torch.equal(found, pipeline_encode(module, clip).float())
    assert_bytes_of(torch.cat(list(half.decode(latents))), peer_decode(module, latents))


# Tiles -----------------------------------------------------------------------------------------------------------


def decoder_inputs(vae: VideoVAE, latents: Tensor, tile: int | None) -> tuple[Tensor, list[tuple[int, int]]]:
    """(pixels, the height and width of each latent piece that the decoder saw)."""
    seen: list[tuple[int, int]] = []
    hook = vae.module.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[3:])))
    try:
        return torch.cat(list(vae.decode(latents, tile))), seen
    finally:
        hook.remove()


@pytest.mark.parametrize("frames", [1, 2])
def test_tiles_bound_what_the_decoder_sees(vae, frames):
    height, width = 10, 12
    latents = noise(48, frames, height, width)
    whole, seen_whole = decoder_inputs(vae, latents, None)
    tiled, seen = decoder_inputs(vae, latents, 64)
    assert seen_whole == [(height, width)] * frames
    # A tile of 64 pixels is 4 latent pixels, and the next one starts 3 further on.
    assert len(seen) == frames * math.ceil(height / 3) * math.ceil(width / 3)
    assert max(h for h, _ in seen) == max(w for _, w in seen) == 4
    assert tiled.shape == whole.shape and tiled.dtype == torch.uint8
    assert not torch.equal(tiled, whole)


def test_a_tiled_picture_is_close_to_the_whole_one_and_closer_in_larger_tiles(vae):
    latents = noise(48, 1, 10, 12)
    whole, _ = decoder_inputs(vae, latents, None)
    other, _ = decoder_inputs(vae, noise(48, 1, 10, 12, seed=1), None)

    def distance(a: Tensor, b: Tensor) -> float:
        return (a.float() - b.float()).abs().mean().item()

    small, large, all_of_it = (distance(whole, decoder_inputs(vae, latents, tile)[0]) for tile in (64, 128, 192))
    unlike = distance(whole, other)
    assert 0.7 * unlike > small > 0.35 * unlike > large > all_of_it == 0.0


def test_tiles_are_those_of_diffusers(vae, peer):
    latents = noise(48, 2, 7, 9)
    tiling = copy.deepcopy(peer)
    tiling.enable_tiling(64, 64, 48, 48)
    assert_bytes_of(decoder_inputs(vae, latents, 64)[0], peer_decode(tiling, latents))


def test_a_tiled_decode_changes_no_later_run(vae, peer):
    """An engine that stays loaded serves the next request with the same VAE."""
    clip, latents = pixels(1, 160, 192), noise(48, 1, 10, 12)
    list(vae.decode(latents, 64))
    assert torch.equal(vae.encode(clip), pipeline_encode(peer, clip))
    assert_bytes_of(torch.cat(list(vae.decode(latents))), peer_decode(peer, latents))


# Loading ---------------------------------------------------------------------------------------------------------


def test_without_the_encoder_its_half_is_neither_read_nor_there(weights, vae, monkeypatch):
    read: list[str] = []
    real = weights.vae_files.read

    def spy(names):
        names = list(names)
        read.extend(names)
        return real(names)

    monkeypatch.setattr(weights, "vae_files", SimpleNamespace(tensors=weights.vae_files.tensors, read=spy))
    half = weights.vae("cpu", torch.float32, encoder=False)
    assert not hasattr(half.module, "encoder") and not hasattr(half.module, "quant_conv")
    assert read and not [name for name in read if name.startswith(("encoder.", "quant_conv."))]
    assert set(half.module.state_dict()) == {
        name for name in vae.module.state_dict() if name.startswith(("decoder.", "post_quant_conv."))
    }
    size, whole = (sum(p.numel() for p in v.module.parameters()) for v in (half, vae))
    assert size < whole
    latents = noise(48, 3, 2, 3)
    assert torch.equal(torch.cat(list(half.decode(latents))), torch.cat(list(vae.decode(latents))))
    latents = noise(48, 1, 7, 9)
    assert torch.equal(next(half.decode(latents, 64)), next(vae.decode(latents, 64)))


def test_a_loaded_vae_owns_its_memory_and_learns_nothing(model, weights):
    """The tensors it is handed are views of a file that is closed behind them."""
    tensors = {name: tensor.clone() for name, tensor in weights.vae_files.read(weights.vae_files.tensors)}
    (dtype,) = {tensor.dtype for tensor in tensors.values()}
    loaded = VideoVAE.load(model.vae, tensors.items(), encoder=True, source="tiny/vae", device="cpu", dtype=dtype)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.zero_()
    found = loaded.module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())


def test_names_come_from_the_config_alone(model, vae):
    names = VideoVAE.names(model.vae, "tiny/vae")
    assert names == {name: tuple(tensor.shape) for name, tensor in vae.module.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"scale_factor_spatial": 8}, "space by 8"),
        ({"scale_factor_temporal": 8}, "time by 8"),
        ({"scale_factor_spatial": None}, "space by 8"),
    ],
)
def test_another_models_vae_is_refused(model, change, found):
    """Wan 2.1's VAE, whose config says 8 or nothing, would decode to noise."""
    config = {key: value for key, value in (model.vae | change).items() if value is not None}
    with pytest.raises(InputError) as raised:
        VideoVAE.names(config, "some/vae")
    error = raised.value
    assert error.asked == "loading some/vae" and found in error.found and "by 4 and 16" in error.found
