"""The embedding of patches against eager torch, with the inputs and the bounds of the conformance kit."""

from __future__ import annotations

import pytest
import torch
from cosmos3_triton.patch_embed import build_patch_embed
from cosmos3_triton.tables import table

from cosmos3_core.reference import ops as reference
from cosmos3_core.testing.cases import check, normal, wider
from cosmos3_core.testing.suite.patches import patch_inputs

patch_embed = build_patch_embed(table("sm_90"))


@pytest.mark.parametrize("clean", [False, True], ids=["noisy", "first_clean"])
@pytest.mark.parametrize("size", [(6, 10), (5, 7), (24, 18)], ids=["even", "odd", "two_blocks"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_patch_embed(dtype, size, clean):
    inputs, options = patch_inputs(dtype, "cpu", size, clean)
    exact, eager = (reference.patch_embed(*given, **options) for given in (wider(inputs, torch.float64), inputs))
    check(patch_embed(*inputs, **options), exact, eager, dtype)


def test_patches_of_another_size():
    """Three by three of five channels, and an output that fills no block: only what there is is read and written."""
    shapes = ((40, 45), (40,), (1, 40))
    inputs = (normal(5, 2, 7, 8, seed=1), *(normal(*shape, seed=2 + i).bfloat16() for i, shape in enumerate(shapes)))
    exact, eager = (reference.patch_embed(*given, patch=3) for given in (wider(inputs, torch.float64), inputs))
    assert exact.shape == (18, 40)
    check(patch_embed(*inputs, patch=3), exact, eager, "bfloat16")
