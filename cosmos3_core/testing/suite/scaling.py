"""Scales are the format's: every row's or block's own, and as small as its largest element lets them be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ...quant import Format
from ...reference import ops as reference
from ..cases import check
from ..depth import Draw
from .marks import over

OUT, WIDTH = 256, 512
APART = 3
"""How many powers of two lie between the scales of blocks at most."""


def _least(format: Format) -> float:
    """The smallest magnitude that an element may have."""
    element = format.of_elements
    if element.dtype and not element.integer:
        found = torch.finfo(getattr(torch, element.dtype))
        return float(found.smallest_normal * found.eps)
    return min((abs(value) for value in element.values if value), default=1.0)


def _held(format: Format | None) -> bool:
    """Whether every right choice of scales holds the numbers of `_exact` as they are."""
    return (
        format is not None
        and not (format.static or format.zeros or format.minima or format.super_scale or format.packer)
        and not format.of_elements.offset
    )


def _exact(format: Format, rows: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers [rows, WIDTH] that the format holds as they are, and the power of two of each of its blocks, [rows,
    blocks]. The first of a block is the largest element, which alone says what the scale is; the others are one and
    three times the smallest, so that they show a scale that is twice as large."""
    stream, together = torch.Generator().manual_seed(Draw.seed(seed)), outputs or rows
    blocks = WIDTH // (format.group or WIDTH)

    def draw(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=stream)

    power = (2.0 ** -draw(APART + 1, rows // together, blocks)).repeat_interleave(together, 0)
    x = _least(format) * (1 + 2 * draw(2, rows, WIDTH)) * (1 - 2 * draw(2, rows, WIDTH))
    x = x.unflatten(1, (blocks, -1))
    x[..., 0] = format.of_elements.most
    return (x * power.unsqueeze(-1)).flatten(1), power


def _readers(format: Format, count: int) -> Tensor:
    """[count, WIDTH]: each adds up one block, without its first."""
    blocks = WIDTH // (format.group or WIDTH)
    reads = torch.eye(blocks).repeat(-(-count // blocks), 1)[:count].repeat_interleave(WIDTH // blocks, 1)
    return reads * (torch.arange(WIDTH) % (WIDTH // blocks) != 0)


@over("pack_linear")
@pytest.mark.parametrize("of", ["weights", "activations"])
def test_linear_scales_by_block(kernel, dtype, format, op, here, device, of):
    """Numbers that the format holds as they are come out as they are. They do not where a scale is twice what its
    block's largest element needs, or where one scale serves more than the format says."""
    meaning, cast = here.meaning(format), getattr(torch, dtype)
    judged = meaning if of == "weights" else meaning and meaning.of_inputs
    if meaning is None or meaning.static or judged is None or not _held(judged):
        pytest.skip(f"it is about formats whose scales of {of} every right kernel chooses alike")
    if of == "weights":
        weight, power_OB = _exact(judged, OUT, judged.outputs, 61)
        x = _readers(judged, WIDTH // (judged.group or WIDTH))
        size = power_OB.T
    else:
        x, power_MB = _exact(judged, 64, 1, 62)
        weight = -_readers(judged, OUT)  # of one sign: 4-bit integers hold what is most negative, and not its opposite
        size = power_MB.repeat(1, -(-OUT // power_MB.shape[1]))[:, :OUT]
    x, weight = x.to(cast), weight.to(cast)
    linear = reference.LinearPacker({meaning.name: meaning})
    eager, exact = linear(weight.clone(), None, format=format)(x), x.double() @ weight.double().T
    found = op(weight.to(device, copy=True), None, format=format)(x.to(device)).cpu()
    assert found.dtype == eager.dtype, f"the dtype is {found.dtype}, not {eager.dtype}"
    try:
        check(found.double() / size, exact / size, eager.double() / size, dtype)
    except AssertionError as error:
        raise AssertionError(
            f"{of} that {judged.name} holds as they are do not come out as they are: {error}"
        ) from None
