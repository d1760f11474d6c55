"""GPTQ (arXiv 2210.17323): a weight is quantized column by column, and what a column loses is made up for by those that
are not quantized yet, by how much its inputs go together with theirs. Features keep their order."""

from __future__ import annotations

import torch
from torch import Tensor

from .codes import decode, encode
from .formats import RECIPROCAL, Format
from .numerics import Packed
from .scales import choose, factors, of_tensor

DAMPING = 0.01
"""Of the mean of the second moments, added to each, as in the paper; ten times as much where that is not enough."""
TOGETHER = 128
"""Columns between two corrections of all later ones, where no group says another number."""


def can_feed_back(format: Format) -> bool:
    """Whether a column's scale is known when its turn comes, without those of later groups."""
    later = format.group and (format.outputs != 1 or format.tensor_scale)
    return not (later or format.super_scale or format.minima or format.packer in RECIPROCAL)


def pack_with_feedback(
    weight_OI: Tensor, format: Format, moment_II: Tensor, input_scale: Tensor | None = None
) -> Packed:
    """`numerics.pack` of a weight whose inputs x have the second moments `moment_II`, the mean of x xᵀ, so that the
    mean square of (W - W') x is small. Scales of a group are chosen by its columns as they are when their turn comes;
    one of a whole row or tensor by the weight. Everything is computed in fp32. Raises ValueError for a format of which
    `can_feed_back` is not true, and for moments of another size or that are not finite."""
    width = weight_OI.shape[1]
    if not can_feed_back(format) or width % (format.group or width):
        raise ValueError(f"columns of {width} features cannot be quantized one by one in {format.name}")
    if moment_II.shape != (width, width) or not moment_II.isfinite().all():
        raise ValueError(f"the second moments are {list(moment_II.shape)}, or not finite, and the width is {width}")
    left, shares, element = weight_OI.float().clone(), _shares(moment_II), format.of_elements
    units, chosen = torch.empty_like(left), _of_rows(left, format)
    kept: list[dict[str, Tensor]] = [] if format.group else [chosen]
    for start in range(0, width, format.group or TOGETHER):
        block = slice(start, start + (format.group or TOGETHER))
        columns, share = left[:, block], shares[block, block]
        if format.group:
            chosen = choose(columns.unsqueeze(1), format, None)
            kept.append(chosen)
        factor = factors(format, chosen["scales"])[:, 0]
        zero = chosen["zeros"][:, 0] if format.zeros else 0.0
        lost = torch.empty_like(columns)
        for j in range(columns.shape[1]):
            unit = torch.where(factor == 0, 0.0, columns[:, j] / factor)
            unit = decode(encode(unit.round() + zero if format.zeros else unit, element), element)
            units[:, start + j] = unit
            lost[:, j] = (columns[:, j] - (unit - zero) * factor) / share[j, j]
            columns[:, j:] -= lost[:, j, None] * share[j, j:]
        left[:, block.stop :] -= lost @ shares[block, block.stop :]
    fields = {name: torch.cat([one[name] for one in kept], -1) for name in kept[0]}
    return Packed(format, encode(units, element), **fields, input_scale=input_scale)


def _of_rows(weight: Tensor, format: Format) -> dict[str, Tensor]:
    """The scales of whole rows, or of the whole weight; nothing where there are groups."""
    if format.group:
        return {}
    if not format.outputs:
        return {"scales": of_tensor(weight, format).reshape(1, 1)}
    return choose(weight.unsqueeze(1), format, None)


def _shares(moment_II: Tensor) -> Tensor:
    """U, upper, with Uᵀ U the inverse of the second moments: the row of a feature, over its diagonal element, says how
    much of what it loses each later one makes up for."""
    moments, damping = moment_II.float(), DAMPING
    diagonal = moments.diagonal()
    unread = diagonal == 0  # a feature that is always 0 goes with no other, and loses nothing
    while True:
        damped = moments.clone()
        damped.diagonal()[unread] = 1.0
        damped.diagonal().add_(damping * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper  # type: ignore[no-any-return]
        damping *= 10
