"""Our VAE against diffusers' module and pipeline: the tiny VAE's weights, and random ones of another width
(docs/model.md, section 5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from alive import Alive
from diffusers import AutoencoderKLWan
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import Cosmos3OmniPipeline
from peer import relative_error
from tiny_model import TINY_MODEL
from torch import Tensor

from cosmos3_core.checkpoint.model import Model, Weights, open_model
from cosmos3_core.contract import InputError, Tuning
from cosmos3_core.model import vae as vae_module
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.model.vae_blocks import Upsample
from cosmos3_core.model.weights import Target
from cosmos3_core.plan.execution import tiling_of
from cosmos3_core.reference import build_ops

OPS = build_ops()
TARGET = Target.plain(OPS, "cpu", torch.float32)
# Two residual blocks a level as published, and widths of which none is a power of two.
WIDE = dict(base_dim=12, decoder_base_dim=20, num_res_blocks=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(TINY_MODEL)


@pytest.fixture(scope="module")
def weights(model) -> Weights:
    return Weights(model)


@pytest.fixture(scope="module")
def vae(weights) -> VideoVAE:
    return weights.vae(TARGET, "encoder", "decoder")


@pytest.fixture(scope="module")
def peer(model, weights) -> AutoencoderKLWan:
    """diffusers' module with the same weights, loaded without our loader."""
    module = AutoencoderKLWan.from_config(model.vae)
    tensors = {name: tensor.clone() for name, tensor in weights.vae_files.read(weights.vae_files.tensors)}
    module.load_state_dict(tensors, strict=True)
    return module.eval().requires_grad_(False)


def ours_of(peer: AutoencoderKLWan, dtype: torch.dtype = torch.float32, **options) -> VideoVAE:
    tensors = peer.state_dict().items()
    return VideoVAE.load(peer.config, tensors, OPS, source="a peer", device="cpu", dtype=dtype, **options)


@pytest.fixture(scope="module", params=["tiny", "wide"])
def pair(request, model, vae, peer) -> tuple[VideoVAE, AutoencoderKLWan]:
    """(ours, diffusers') on the same weights. The wide one's are all random: zeros would hide mistakes."""
    if request.param == "tiny":
        return vae, peer
    module = AutoencoderKLWan.from_config(model.vae | WIDE).eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=stream)
        fan_in = math.prod(parameter.shape[1:])
        parameter.copy_(1 + 0.2 * drawn if "gamma" in name else drawn * (fan_in**-0.5 if parameter.ndim > 1 else 0.1))
    return ours_of(module), module


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


def groups_of(
    vae: VideoVAE, latents: Tensor, tile: int | None = None, area: int = Tuning().chunk_area
) -> Iterator[Tensor]:
    """The decode in tiles of so many pixels, so many latent positions at a time."""
    _, _, height, width = latents.shape
    return vae.decode(latents, tiling_of(height, width, tile, area))


def decoded(vae: VideoVAE, latents: Tensor, **how) -> Tensor:
    return torch.cat(list(groups_of(vae, latents, **how)))


def values_of(vae: VideoVAE, latents: Tensor, monkeypatch, **how) -> Tensor:
    """The decode before it becomes bytes, as diffusers lays it out: [1, 3, F, H, W]."""

    def pixels_of(y_THWC: Tensor) -> Tensor:
        x = y_THWC.float().unflatten(3, (3, 2, 2)).permute(0, 1, 5, 2, 4, 3)
        return x.flatten(3, 4).flatten(1, 2).clamp(-1, 1)

    with monkeypatch.context() as patch:
        patch.setattr(vae_module, "_to_bytes", pixels_of)
        return decoded(vae, latents, **how).permute(3, 0, 1, 2)[None]


def assert_bytes_of(found: Tensor, sample: Tensor) -> None:
    """`found` is [1, 3, F, H, W] `sample` as uint8 [F, H, W, 3]: 255 · (x / 2 + 1/2), to the nearest whole number."""
    exact = 255 * (sample[0].double().clamp(-1, 1) / 2 + 0.5)
    exact = exact.permute(1, 2, 3, 0)
    assert found.shape == exact.shape and found.dtype == torch.uint8
    assert (found - exact).abs().max() < 0.5 + 1e-3


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


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4), (4, 3, 5), (7, 1, 2)])
def test_decode_is_diffusers_decode(pair, monkeypatch, shape):
    ours, theirs = pair
    latents = noise(48, *shape, seed=shape[0])
    expected = peer_decode(theirs, latents)
    assert_bytes_of(decoded(ours, latents), expected)
    values = values_of(ours, latents, monkeypatch)
    assert values.shape == expected.shape
    assert relative_error(values, expected) < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_size_of_a_chunk_changes_nothing(pair, monkeypatch, size):
    ours, _ = pair
    latents = noise(48, 6, 2, 3)
    expected = values_of(ours, latents, monkeypatch, area=4 * 6)
    groups = [len(group) for group in groups_of(ours, latents, area=size * 6)]
    assert groups == {1: [1, 4, 4, 4, 4, 4], 2: [1, 8, 8, 4], 3: [1, 12, 8], 8: [1, 20]}[size]
    # The host's convolutions choose their order of summation by size: what they round is all that may differ.
    found = values_of(ours, latents, monkeypatch, area=size * 6)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def test_with_the_channels_first_all_convolutions_have_them_so_and_give_the_same(pair, monkeypatch):
    """Of a clip with its first frame, there and back."""
    ours, theirs = pair
    other, seen = ours_of(theirs, channels_last=False), set()
    convolve = {name: getattr(torch.nn.functional, name) for name in ("conv2d", "conv3d")}

    def watched(name):
        def call(x, weight, *arguments, **options):
            seen.add((name, x.is_contiguous(), weight.is_contiguous()))
            return convolve[name](x, weight, *arguments, **options)

        return call

    latents, pixels = noise(48, 3, 2, 3), noise(3, 5, 32, 48).clamp(-1, 1)
    expected = values_of(ours, latents, monkeypatch), ours.encode(pixels)
    for name in convolve:
        monkeypatch.setattr(torch.nn.functional, name, watched(name))
    found = values_of(other, latents, monkeypatch), other.encode(pixels)
    assert seen == {("conv2d", True, True), ("conv3d", True, True)}
    for one, same in zip(found, expected, strict=True):
        assert relative_error(one, same) < 1e-5


def test_large_pictures_come_one_latent_frame_at_a_time(vae):
    groups = list(groups_of(vae, noise(48, 4, 3, 4), area=6))
    assert [tuple(group.shape) for group in groups] == [(n, 48, 64, 3) for n in (1, 4, 4, 4)]
    assert all(group.dtype == torch.uint8 and group.is_contiguous() for group in groups)
    assert len({group.float().mean().item() for group in groups}) == 4, "every group shows something else"


def test_a_group_is_handed_out_before_the_next_is_decoded(vae, monkeypatch):
    """On the host: a device is one group ahead."""
    calls, real = [], vae.decoder
    monkeypatch.setattr(vae, "decoder", lambda *inputs: (calls.append(1), real(*inputs))[1])
    groups = groups_of(vae, noise(48, 3, 2, 2), area=4)
    seen = []
    for _ in range(3):
        next(groups)
        seen.append(len(calls))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_decode_of_a_prefix_is_the_prefix_of_the_decode(vae, frames):
    latents = noise(48, 4, 3, 4)
    whole, prefix = (decoded(vae, latents[:, :count], area=12) for count in (4, frames))
    assert len(prefix) == 4 * (frames - 1) + 1
    assert torch.equal(prefix, whole[: len(prefix)])


def test_a_decode_left_half_way_leaves_nothing_behind(vae):
    latents, other = noise(48, 3, 2, 2), noise(48, 3, 2, 2, seed=1)
    expected = decoded(vae, latents)
    next(groups_of(vae, other))
    half, whole = groups_of(vae, other), groups_of(vae, latents)
    next(half)
    found = [next(whole)]
    next(half)
    assert torch.equal(torch.cat([*found, *whole]), expected)


def test_bytes_are_rounded_and_clamped():
    values = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.5, 0.997, 1.0, 3.0])
    patched = values.view(1, 1, 8, 1).expand(2, 1, 8, 12)
    found = vae_module._to_bytes(patched)
    assert found.shape == (2, 2, 16, 3) and found.dtype == torch.uint8
    # 127.5 is halfway; either neighbour is as near.
    assert found[1, 1, ::2, 2].tolist() in ([0, 0, 0, n, 191, 255, 255, 255] for n in (127, 128))


def test_patches_are_diffusers():
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

    clip = pixels(2, 4, 6)
    patched = vae_module.patchify(clip.transpose(0, 1))
    assert torch.equal(patched.permute(3, 0, 1, 2)[None], patchify(clip[None], 2))
    assert_bytes_of(vae_module._to_bytes(patched), unpatchify(patched.permute(3, 0, 1, 2)[None], 2))


def test_upsampling_in_phases_is_upsampling():
    weight, x = noise(5, 5, 3, 3), noise(2, 5, 4, 7, seed=1)
    large = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    expected = torch.nn.functional.conv2d(large, weight, padding=1)
    y = torch.nn.functional.conv2d(x, Upsample.phases(weight), padding=1).unflatten(1, (2, 2, 5))
    for i in range(2):
        for j in range(2):
            torch.testing.assert_close(y[:, i, j, :, i : i + 4, j : j + 7], expected[:, :, i::2, j::2])


@pytest.mark.parametrize("tile", [None, 64])
def test_memory_does_not_grow_with_the_clip(vae, tile):
    """But for the latents, and where there are tiles their frames, which wait on the host."""

    def peak(frames: int) -> float:
        latents = noise(48, frames, 5, 6)
        waiting = (4 * frames - 3) * 3 * 80 * 96 * 4 if tile else 0
        with torch.inference_mode(), Alive() as alive:
            for group in groups_of(vae, latents, tile, area=1):
                del group
        return alive.peak - 4 * latents.nbytes - waiting

    assert peak(12) <= 1.1 * peak(3)


# Encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("size", [(48, 64), (16, 80)])
def test_encode_is_the_pipelines_normalised_mode(pair, frames, size):
    ours, theirs = pair
    clip = pixels(frames, *size)
    found = ours.encode(clip)
    assert found.shape == (48, (frames - 1) // 4 + 1, size[0] // 16, size[1] // 16) and found.dtype == torch.float32
    assert relative_error(found, pipeline_encode(theirs, clip)) < 1e-5
    assert torch.equal(found, ours.encode(clip)), "the mode, and no sample"


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


def test_half_precision_loses_what_diffusers_loses_in_it(pair, monkeypatch):
    ours, theirs = pair
    half, half_theirs = ours_of(theirs, torch.bfloat16), copy.deepcopy(theirs).bfloat16()
    clip, latents = pixels(5), noise(48, 3, 3, 4)
    truth, found = pipeline_encode(theirs, clip), half.encode(clip)
    assert found.dtype == torch.float32
    assert relative_error(found, truth) < 1.1 * relative_error(pipeline_encode(half_theirs, clip), truth)
    truth, found = peer_decode(theirs, latents), values_of(half, latents, monkeypatch)
    assert relative_error(found, truth) < 1.1 * relative_error(peer_decode(half_theirs, latents), truth)


# Tiles -----------------------------------------------------------------------------------------------------------


def decoder_inputs(vae: VideoVAE, latents: Tensor, tile: int | None) -> tuple[Tensor, list[tuple[int, ...]]]:
    """(pixels, the height and width of each latent piece that the decoder saw)."""
    seen: list[tuple[int, ...]] = []

    def spy(z_THWC: Tensor, stream):
        seen.append(tuple(z_THWC.shape[1:3]))
        return vae.decoder(z_THWC, stream)

    watched = copy.copy(vae)
    watched.decoder = spy
    return decoded(watched, latents, tile=tile), seen


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
    whole, other = decoded(vae, latents), decoded(vae, noise(48, 1, 10, 12, seed=1))

    def distance(a: Tensor, b: Tensor) -> float:
        return (a.float() - b.float()).abs().mean().item()

    small, large, all_of_it = (distance(whole, decoded(vae, latents, tile=tile)) for tile in (64, 128, 192))
    unlike = distance(whole, other)
    assert 0.7 * unlike > small > 0.35 * unlike > large > all_of_it == 0.0


@pytest.mark.parametrize(
    ("shape", "tile"), [((2, 7, 6), 64), ((1, 10, 4), 64), ((4, 4, 5), 64), ((1, 13, 9), 128)], ids=str
)
def test_tiles_are_those_of_diffusers(pair, shape, tile):
    """Also where the last tile is smaller than what tiles share: of 13 latent rows, tiles have 8, 7 and 1."""
    ours, theirs = pair
    latents, tiling = noise(48, *shape), copy.deepcopy(theirs)
    tiling.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
    found = decoded(ours, latents, tile=tile, area=2 * 16)  # two frames of a whole tile of 64 at a time
    assert_bytes_of(found, peer_decode(tiling, latents))


def test_tiles_come_in_the_groups_of_the_whole(vae):
    assert [len(group) for group in groups_of(vae, noise(48, 4, 5, 6), 64, area=1)] == [1, 4, 4, 4]


# Loading ---------------------------------------------------------------------------------------------------------


def test_without_the_encoder_its_half_is_neither_read_nor_there(weights, vae, monkeypatch):
    read: list[str] = []
    real = weights.vae_files.read

    def spy(names):
        names = list(names)
        read.extend(names)
        return real(names)

    monkeypatch.setattr(weights, "vae_files", SimpleNamespace(tensors=weights.vae_files.tensors, read=spy))
    with Alive() as alive:
        half = weights.vae(TARGET, "decoder")
    decoders, encoders = {*read}, ("encoder.", "quant_conv.")
    other = weights.vae(TARGET, "encoder")
    with Alive() as both:
        weights.vae(TARGET, "encoder", "decoder")
    assert alive.peak < both.peak and not hasattr(half, "encoder") and not hasattr(other, "decoder")
    assert decoders and not [name for name in decoders if name.startswith(encoders)]
    assert len(read) == 2 * len({*read}) and {*read} - decoders == {n for n in read if n.startswith(encoders)}
    pixels = noise(3, 5, 32, 48).clamp(-1, 1)
    assert torch.equal(other.encode(pixels), vae.encode(pixels))
    latents = noise(48, 3, 2, 3)
    assert torch.equal(decoded(half, latents), decoded(vae, latents))


def test_a_loaded_vae_owns_its_memory(model, weights, vae):
    """The tensors it is handed are views of a file that is closed behind them."""
    tensors = {name: tensor.clone() for name, tensor in weights.vae_files.read(weights.vae_files.tensors)}
    loaded = VideoVAE.load(model.vae, tensors.items(), OPS, source="tiny/vae", device="cpu", dtype=torch.float32)
    for tensor in tensors.values():
        tensor.zero_()
    latents, clip = noise(48, 3, 2, 3), pixels(5)
    assert torch.equal(decoded(loaded, latents), decoded(vae, latents))
    assert torch.equal(loaded.encode(clip), vae.encode(clip))


@pytest.mark.parametrize("change", [{}, WIDE, {"base_dim": 160, "decoder_base_dim": 256, "num_res_blocks": 2}])
def test_names_come_from_the_config_alone(model, change):
    with torch.device("meta"):
        module = AutoencoderKLWan.from_config(model.vae | change)
    names = VideoVAE.names(model.vae | change, "some/vae")
    assert names == {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def refused(config: dict) -> InputError:
    with pytest.raises(InputError) as raised:
        VideoVAE.names(config, "some/vae")
    assert raised.value.asked == "loading some/vae"
    return raised.value


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
    error = refused(config)
    assert found in error.found and "by 4 and 16" in error.found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_residual", False),
        ("attn_scales", [1.0]),
        ("patch_size", 4),
        ("in_channels", 3),
        ("out_channels", 48),
        ("temperal_downsample", [True, True, False]),
        ("dim_mult", [1, 2, 4]),
    ],
)
def test_an_architecture_that_is_not_written_here_is_refused(model, key, value):
    error = refused(model.vae | {key: value})
    assert f"{key} is {value!r}" in error.found and f"only {model.vae[key]!r} is" in error.found


def test_what_a_config_leaves_out_means_what_diffusers_takes_it_for(model):
    without = {key: value for key, value in model.vae.items() if key not in ("attn_scales", "dim_mult", "dropout")}
    assert VideoVAE.names(without, "some/vae") == VideoVAE.names(model.vae, "some/vae")
    del without["is_residual"]
    assert "is_residual is False" in refused(without).found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"base_dim": "x"}, "base_dim is 'x'"),
        ({"z_dim": 0}, "z_dim is 0"),
        ({"latents_mean": [0.0] * 16}, "latents_mean is not 48 numbers"),
        ({"latents_std": [math.nan] * 48}, "latents_std is not 48 numbers"),
        ({"latents_std": [0.0] * 48}, "latents_std is not positive"),
        ({"latents_std": 1.0}, "config.json"),
    ],
)
def test_numbers_that_cannot_be_are_refused(model, change, found):
    assert found in refused(model.vae | change).found
