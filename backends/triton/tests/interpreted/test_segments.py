"""Segments joined and quantized. What adding one makes of an attention is tested with FlashAttention-3."""

from __future__ import annotations

import pytest
import torch
from cosmos3_triton import segments

from cosmos3_core.contract import Segment
from cosmos3_core.testing import cases


@pytest.mark.parametrize("dim", [64, 96])
def test_joined_segments(dim):
    """Views of a projection, of any number and length, also of widths that are no power of two."""
    kv = [cases.normal(2, length, 10, dim, seed=length).bfloat16() for length in (5, 1, 130)]
    parts = [Segment(x[:, :, 2:6], x[:, :, 6:]) for x in kv]
    for joined, separate in zip(segments.join(parts), zip(*parts, strict=True), strict=True):
        assert torch.equal(joined, torch.cat(separate, dim=1)) and joined.transpose(1, 2).is_contiguous()


def test_quantizing_keeps_channels_and_heads_apart():
    x = cases.normal(2, 77, 6, 64, seed=1)
    x[:, :, 3] *= 100
    x8 = segments.quantize(x, centre=True)
    assert x8.scale_BG.shape == (2, 6) and x8.mean_BHD.shape == (2, 6, 64) and x8.x_BTHD.is_contiguous()
    torch.testing.assert_close(x8.mean_BHD, x.mean(1), atol=1e-4, rtol=1e-4)
    again = x8.x_BTHD.float() * x8.scale_BG[:, None, :, None] + x8.mean_BHD[:, None]
    for head in range(6):
        assert cases.Loss.of(again[:, :, head], x[:, :, head]).whole < 0.04


def test_quantizing_with_shared_scales_and_products():
    x, vector = cases.normal(2, 77, 6, 64, seed=1), cases.normal(2, 2, 64, seed=2)
    x[:, :, 3] *= 100
    x8 = segments.quantize(x, share=3, against_BGD=vector)
    assert x8.scale_BG.shape == (2, 2) and bool((x8.scale_BG[:, 1] > 10 * x8.scale_BG[:, 0]).all())
    products = torch.einsum("bthd,bhd->bht", x, vector.repeat_interleave(3, 1))
    torch.testing.assert_close(x8.against_BHT, products, atol=1e-3, rtol=1e-4)
