"""Input pictures and clips on the canvas, as the engines of each profile put them there (docs/model.md, section
4.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import _preprocess_conditioning_image
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

from cosmos3_core.contract.errors import InputError
from cosmos3_core.scenarios.conditioning import fit

# (source width, height, canvas width, height): larger, smaller, equal, wide, tall, and crops of an odd width.
SHAPES = [
    (101, 67, 64, 48),
    (67, 101, 64, 48),
    (50, 40, 96, 64),
    (64, 48, 64, 48),
    (65, 48, 64, 48),
    (64, 51, 64, 48),
    (333, 100, 112, 80),
    (37, 211, 80, 112),
    (1, 1, 32, 32),
    (128, 96, 64, 48),
    (97, 31, 32, 80),
]


def clip(width: int, height: int, frames: int = 1) -> Tensor:
    """uint8 noise over a gradient, [F, H, W, 3]: no two places look alike."""
    noise = torch.randint(0, 64, (frames, height, width, 3), generator=torch.Generator().manual_seed(width * height))
    slope = torch.linspace(0, 191, width).view(1, 1, -1, 1) * torch.tensor([1.0, 0.5, 0.0])
    slope = slope + torch.linspace(0, 191, height).view(1, -1, 1, 1) * torch.tensor([0.0, 0.5, 1.0])
    return (noise + slope).to(torch.uint8)


def fitted(frames: Tensor, width: int, height: int, image_filter: str = "bilinear", stretch: bool = False) -> Tensor:
    found = fit(frames, width, height, image_filter=image_filter, stretch=stretch)
    assert found.shape == (3, len(frames), height, width) and found.dtype == torch.float32
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_bilinear_is_diffusers_own_preprocessing(shape):
    width, height, *canvas = shape
    picture = clip(width, height)
    theirs = _preprocess_conditioning_image(Image.fromarray(picture[0].numpy()), height=canvas[1], width=canvas[0])
    assert torch.equal(fitted(picture, *canvas)[:, 0], theirs[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_lanczos_is_pillows_cut_at_the_centre_rounded_down(shape):
    width, height, *canvas = shape
    picture = clip(width, height)
    scale = max(canvas[0] / width, canvas[1] / height)
    size = math.ceil(scale * width), math.ceil(scale * height)
    resized = np.asarray(Image.fromarray(picture[0].numpy()).resize(size, Image.Resampling.LANCZOS))
    left, top = (size[0] - canvas[0]) // 2, (size[1] - canvas[1]) // 2
    cut = resized[top : top + canvas[1], left : left + canvas[0]].astype(np.float32)
    np.testing.assert_array_equal(fitted(picture, *canvas, "lanczos")[:, 0].permute(1, 2, 0), cut / 127.5 - 1)


def test_the_shapes_above_tell_the_two_roundings_of_a_crop_apart():
    """round(1.5) is 2 and floor(1.5) is 1: without such a crop the tests above could not see the difference."""
    surplus = []
    for width, height, *canvas in SHAPES:
        scale = max(canvas[0] / width, canvas[1] / height)
        surplus += [math.ceil(scale * width) - canvas[0], math.ceil(scale * height) - canvas[1]]
    assert any(round(n / 2) != n // 2 for n in surplus)


@pytest.mark.parametrize("shape", SHAPES)
def test_stretch_is_the_plain_resize_of_diffusers_to_a_step(shape):
    """Pillow, which diffusers uses for clips, rounds between its two passes; a stretch here rounds once."""
    width, height, *canvas = shape
    frames = clip(width, height, frames=2)
    processor = VideoProcessor(vae_scale_factor=16, resample="bilinear")
    pictures = [Image.fromarray(frame.numpy()) for frame in frames]
    theirs = processor.preprocess_video(pictures, height=canvas[1], width=canvas[0])[0]
    found = fitted(frames, *canvas, stretch=True)
    assert (found - theirs).abs().max() <= 1.001 / 127.5
    assert (found - theirs).abs().mean() < 0.3 / 127.5


def test_a_stretch_keeps_the_edges_that_a_crop_cuts_off():
    wide = torch.zeros(1, 32, 128, 3, dtype=torch.uint8)
    wide[:, :, :8], wide[:, :, -8:] = 255, 255
    cropped, stretched = fitted(wide, 32, 32), fitted(wide, 32, 32, stretch=True)
    assert (cropped == -1).all()
    assert (stretched[..., 0] > 0.9).all() and (stretched[..., -1] > 0.9).all() and (stretched[..., 16] == -1).all()


def test_a_filter_has_its_effect_on_crops_and_on_stretches():
    frames = clip(101, 67)
    for stretch in (False, True):
        bilinear, lanczos = (fitted(frames, 64, 48, name, stretch) for name in ("bilinear", "lanczos"))
        assert (bilinear - lanczos).abs().mean() > 1 / 127.5
    stretched = np.asarray(Image.fromarray(frames[0].numpy()).resize((64, 48), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(lanczos[:, 0].permute(1, 2, 0), stretched.astype(np.float32) / 127.5 - 1)


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("image_filter", ["bilinear", "lanczos"])
def test_values_are_whole_pixel_steps_from_minus_one_to_one(image_filter, stretch):
    for width, height, *canvas in SHAPES:
        black_and_white = clip(width, height).gt(100).mul(255).to(torch.uint8)
        found = fitted(black_and_white, *canvas, image_filter, stretch)
        steps = (found.double() + 1) * 127.5
        assert (steps - steps.round()).abs().max() < 1e-4
        assert 0 <= steps.round().min() and steps.round().max() <= 255
        assert -1 <= found.min() and found.max() <= 1
    for value, expected in ((0, -1.0), (255, 1.0), (51, 51 / 127.5 - 1)):
        flat = torch.full((1, 40, 50, 3), value, dtype=torch.uint8)
        torch.testing.assert_close(
            fitted(flat, 64, 48, image_filter, stretch), torch.full((3, 1, 48, 64), expected), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("image_filter", ["bilinear", "lanczos"])
def test_a_picture_of_the_canvas_size_passes_unchanged(image_filter):
    frames = clip(64, 48, frames=3)
    for stretch in (False, True):
        found = fitted(frames, 64, 48, image_filter, stretch)
        assert torch.equal(((found + 1) * 127.5).round().to(torch.uint8), frames.permute(3, 0, 1, 2))


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("image_filter", ["bilinear", "lanczos"])
def test_every_frame_of_a_clip_is_treated_like_a_picture(image_filter, stretch):
    frames = clip(101, 67, frames=4)
    together = fitted(frames, 64, 48, image_filter, stretch)
    apart = [fitted(frame[None], 64, 48, image_filter, stretch) for frame in frames]
    assert torch.equal(together, torch.cat(apart, dim=1))
    assert not torch.equal(together[:, 0], together[:, 1])


def test_the_input_is_left_alone():
    frames = clip(101, 67)
    before = frames.clone()
    for image_filter in ("bilinear", "lanczos"):
        fitted(frames, 64, 48, image_filter)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1)])
def test_a_strip_that_would_fill_the_memory_is_refused_and_may_be_stretched(shape):
    strip = clip(*shape)
    with pytest.raises(InputError) as raised:
        fit(strip, 64, 64, image_filter="bilinear", stretch=False)
    assert f"{shape[0]}x{shape[1]}" in raised.value.asked
    fitted(strip, 64, 64, stretch=True)
