"""How far one result is from another: velocities, latents and actions by relative L1, frames by PSNR and SSIM, sound
by its ratio to the difference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK, MIDDLE = 255.0, 128.0
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
"""SSIM's constants, as in Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment" (2004), section III-C."""


def relative_l1(result: Tensor, baseline: Tensor) -> float:
    """sum |result - baseline| / sum |baseline|, in fp64. 0 where they are equal."""
    difference = (result.double() - baseline.double()).abs().sum()
    return float(difference / baseline.double().abs().sum()) if difference else 0.0


def psnr(result: Tensor, baseline: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB over all frames, uint8 [F, H, W, 3]. None where they are equal."""
    squares = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(result, baseline, strict=True))
    if squares == 0:
        return None
    return float(10 * torch.log10(torch.tensor(PEAK**2 * baseline.numel() / squares, dtype=torch.float64)))


def snr(result: Tensor, baseline: Tensor) -> float | None:
    """Signal-to-noise ratio in dB of a waveform [C, N]: the baseline's energy to that of the difference. None where
    they are equal, 0 where the baseline is silence."""
    noise = float((result.double() - baseline.double()).square().sum())
    signal = float(baseline.double().square().sum())
    if noise == 0:
        return None
    return float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64))) if signal else 0.0


def ssim(result: Tensor, baseline: Tensor) -> float:
    """Mean structural similarity of uint8 frames [F, H, W, 3], of at least 11 x 11 pixels.

    Gaussian window of 11 x 11 pixels, sigma 1.5, weighted (population) variances, no padding: only windows that lie
    inside a frame count. The mean over windows, over the R, G and B channels, and over frames.
    """
    means = [_ssim_of_frame(a, b) for a, b in zip(result, baseline, strict=True)]
    return sum(means) / len(means)


def _ssim_of_frame(a_HWC: Tensor, b_HWC: Tensor) -> float:
    if torch.equal(a_HWC, b_HWC):
        return 1.0
    # Around zero, where fp32 holds the variances of bytes to five digits; fp64 takes five times as long.
    a, b = (frame.permute(2, 0, 1).float() - MIDDLE for frame in (a_HWC, b_HWC))
    mean_a, mean_b, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    mean_a, mean_b, c1, c2 = mean_a + MIDDLE, mean_b + MIDDLE, (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_a + var_b + c2)).double().mean())


def _blur(x_CHW: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights, channels = (weights / weights.sum()).expand(len(x_CHW), 1, 1, -1), len(x_CHW)
    rows = F.conv2d(x_CHW, weights, groups=channels)
    return F.conv2d(rows, weights.mT, groups=channels)
