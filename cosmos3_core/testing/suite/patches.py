"""A latent's patches as tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from ..cases import Here, OpCase, check, normal, wider
from .marks import over


def patch_inputs(
    dtype: str, device: str = "cpu", size: tuple[int, int] = (6, 10), clean: bool = True
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """(latent_CThw, weight_OI, bias_O, timestep_1O) and the options: three frames of 48 channels in fp32, which lie
    side by side channel by channel, the first of them clean."""
    latent = normal(3, 48, *size, seed=1).to(device).transpose(0, 1)
    rest = (normal(256, 192, seed=2) / 192**0.5, normal(256, seed=3), normal(1, 256, seed=4))
    noisy = torch.tensor([False, True, True], device=device) if clean else None
    return (latent, *(t.to(device, getattr(torch, dtype)) for t in rest)), dict(patch=2, noisy_T=noisy)


def _use(op: contract.PatchEmbed, here: Here) -> list[Tensor]:
    (latent, *rest), options = patch_inputs(here.dtype, here.device)
    return [op(given, *rest, **options) for given in (latent, latent.to(rest[0].dtype))]


PATCH_EMBED = OpCase(op="patch_embed", protocol=contract.PatchEmbed, use=_use)


@over("patch_embed")
@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "first_clean"])
@pytest.mark.parametrize("size", [(6, 10), (5, 7)], ids=["even", "odd"])
def test_patch_embed_parity(kernel, dtype, op, device, size, clean):
    """Whole and broken patches, with the timestep on every frame or on all but the first."""
    (here, asked), (inputs, options) = (patch_inputs(dtype, place, size, clean) for place in (device, "cpu"))
    exact, eager = (reference.patch_embed(*given, **options) for given in (wider(inputs, torch.float64), inputs))
    check(op(*here, **asked), exact, eager, dtype)


@over("patch_embed")
@pytest.mark.parametrize("latent", [torch.float32, torch.bfloat16], ids=str)
def test_patch_embed_of_noisy_frames_anywhere(kernel, dtype, op, device, latent):
    """Clean frames before, between and after noisy ones; a latent of another dtype, whose every second row is read."""
    patterns = ([True, False, True], [False, False, True], [True, True, False], [False, False, False])
    (wide, *rest), options = patch_inputs(dtype, size=(12, 10))
    inputs = (wide.to(latent)[:, :, ::2], *rest)
    for pattern in patterns:
        options["noisy_T"] = torch.tensor(pattern)
        exact, eager = (reference.patch_embed(*given, **options) for given in (wider(inputs, torch.float64), inputs))
        here = wide.to(device, latent)[:, :, ::2], *(t.to(device) for t in rest)
        found = op(*here, patch=2, noisy_T=options["noisy_T"].to(device))
        check(found, exact, eager, dtype)


@over("patch_embed")
def test_patch_embed_orders_features(kernel, dtype, op, device):
    """The weight is the identity: out comes a patch, channel fastest, then column, then row."""
    latent = torch.arange(3 * 4 * 6.0).view(3, 1, 4, 6).to(device)
    weight, zeros = (t.to(device, getattr(torch, dtype)) for t in (torch.eye(12), torch.zeros(12)))
    second = op(latent, weight, zeros, zeros.view(1, -1), patch=2)[1].tolist()
    assert second == [2, 26, 50, 3, 27, 51, 8, 32, 56, 9, 33, 57], f"the second token's features are {second}"
