"""A packed matrix cut for several devices has the very codes and scales of the whole one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.formats import grains
from cosmos3_core.quant.numerics import multiply, pack, unpack
from cosmos3_core.quant.splitting import columns_of, room, rows_of, widened, with_extremes

WEIGHT = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 1024)
"""Columns of very unlike sizes, so that a scale of other ones is seen."""
REACHING = "int8", "fp8", "fp8_tensor", "fp8_e5m2", "fp8_fnuz", "fp8_e5m2fnuz", "nvfp4", "w4a8", "w4afp8"
"""Formats in which activations have a scale for a whole row, or for all of them."""


@pytest.mark.parametrize("name", FORMATS)
def test_parts_of_a_packed_matrix_are_parts_of_the_whole(name):
    features, outputs = grains(FORMATS[name])
    packed = pack(WEIGHT, FORMATS[name], weight=True)
    whole = unpack(packed)
    rows = [slice(outputs, 2 * outputs), slice(3 * outputs, 4 * outputs)]
    assert torch.equal(unpack(rows_of(packed, rows)), torch.cat([whole[part] for part in rows]))
    columns = slice(features, 2 * features)
    assert torch.equal(unpack(columns_of(packed, columns)), whole[:, columns])
    both = (rows_of(packed, rows[:1]), WEIGHT[:8])
    first, second = rows_of(both, [slice(0, outputs), slice(outputs + 2, outputs + 5)])
    assert torch.equal(unpack(first), whole[rows[0]]) and torch.equal(second, WEIGHT[2:5])


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.group])
def test_scales_of_other_features_are_noticed(name):
    """As if they were split along the outputs, and every device had those of the first features."""
    features, _ = grains(FORMATS[name])
    packed, columns = pack(WEIGHT, FORMATS[name], weight=True), slice(features, 2 * features)
    part, whole = columns_of(packed, columns), unpack(packed)[:, columns]
    wrong = replace(part, scales=packed.scales[:, : part.scales.shape[1]])
    assert (unpack(wrong) - whole).norm() > 0.01 * whole.norm()


def test_what_would_cut_a_scale_is_refused():
    packed = pack(WEIGHT, FORMATS["nvfp4"], weight=True)
    with pytest.raises(ValueError, match="nvfp4 shares a scale among 16 input features, and 8 to 32 cut it"):
        columns_of(packed, slice(8, 32))
    with pytest.raises(ValueError, match="in an order of their own"):
        columns_of(replace(packed, order=torch.arange(1024)), slice(0, 32))
    with pytest.raises(ValueError, match="fp8_block shares a scale among 128 outputs"):
        rows_of(pack(WEIGHT, FORMATS["fp8_block"], weight=True), [slice(0, 64)])


@pytest.mark.parametrize("name", FORMATS)
def test_products_of_parts_have_the_activations_scales_of_the_whole(name):
    """Added up they are the whole product; each by its own scales they are not, where these reach beyond a part."""
    packed = pack(WEIGHT, FORMATS[name], weight=True)
    if FORMATS[name].static:
        packed = replace(packed, input_scale=torch.tensor(0.05))
    x = torch.randn(6, 1024, generator=torch.Generator().manual_seed(1)) * torch.logspace(1, -1, 1024)
    low, high = x.aminmax(dim=-1, keepdim=True)
    whole, more, both, apart = multiply(x, packed), room(packed), 0.0, 0.0
    assert bool(more) == (name in REACHING)
    for part in (slice(0, 512), slice(512, 1024)):
        own = columns_of(packed, part)
        shown = with_extremes(x[:, part], low, high, more) if more else x[:, part]
        both, apart = both + multiply(shown, widened(own, more)), apart + multiply(x[:, part], own)
    assert (both - whole).norm() < 1e-6 * whole.norm()
    assert ((apart - whole).norm() > 1e-4 * whole.norm()) == bool(more)
