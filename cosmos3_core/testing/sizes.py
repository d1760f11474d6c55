"""The sizes that Cosmos3's models ask of a row, and rows to judge them by.

A call of 44,160 rows is judged without an exact evaluation of them all: rows repeat after PERIOD, so that those of one
period have a truth, and all others have to be what their first is. PERIOD is prime: whoever reads another row, a tile
or a power of two away, reads another one's values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import FLOOR, LOST, MULTIPLE, Loss, check, normal, shape_of

PERIOD = 251
ONE_OF_EACH = (0, 1, 5, 17, 29, 41, 53)
"""Rows of `rows_of_kinds` where all would take too long to compute: two normal ones and one of each other kind. They
repeat after 7, another prime."""
HIDDENS = (256, 2048, 4096, 5120)
"""Of the embedded model, Edge, Nano and Super."""
INNERS = (768, 9216, 12288, 25600)
"""The MLPs' widths."""
ODD_WIDTHS = (64, 768, 1024, 1536, 8192)
"""Head widths, the codecs' and all heads of Super together."""
VAE_WIDTHS = (96, 160, 192, 256, 320, 384, 512, 640, 1024)
LAYOUTS = (
    (16, 8, 128),
    (32, 8, 128),
    (64, 8, 128),
    (8, 8, 128),
    (4, 1, 128),
    (2, 1, 128),
    (1, 1, 128),
    (8, 2, 32),
    (6, 2, 64),
)
"""Query heads, key heads and head width: of Edge, Nano and Super, of shards of them, where every head has keys of its
own, of the embedded model and of another width."""


def rows_of_kinds(width: int, seed: int, scale: float = 1.0) -> Tensor:
    """[PERIOD, width] in fp32: most rows normal, some with a channel a hundred times larger, equal elements, 1000 times
    smaller, 30 times larger, or the row before once more."""
    x = scale * normal(PERIOD, width, seed=seed)
    for row in range(5, PERIOD, 12):
        kind = row // 12 % 5
        if kind == 0:
            x[row, row % width] = 100 * scale
        elif kind == 1:
            x[row] = scale * (0.5 + 0.01 * row)
        elif kind in (2, 3):
            x[row] *= 1e-3 if kind == 2 else 30
        else:
            x[row] = x[row - 1]
    return x


class Rows(NamedTuple):
    """A call whose rows repeat: `call(take)` with `take(t)`, the rows of t for this call, returns outputs by name, rows
    first; the truth and eager torch's of one period, PERIOD rows or those of `ONE_OF_EACH`. What `scale` divides counts
    alike, however large it is."""

    call: Callable[[Callable[[Tensor], Tensor]], dict[str, Tensor]]
    exact: dict[str, Tensor]
    eager: dict[str, Tensor]
    scale: Tensor | None = None


def check_rows(rows: Rows, count: int, device: str, dtype: str, quantized: bool) -> None:
    """Fail unless every one of `count` rows is right."""
    period = len(next(iter(rows.exact.values())))
    index = torch.arange(count, device=device) % period
    found = rows.call(lambda t: t.to(device)[index])
    assert found.keys() == rows.eager.keys(), f"the results are {', '.join(found)}, not {', '.join(rows.eager)}"
    first, multiple = min(count, period), LOST if quantized else MULTIPLE
    for name, ours in found.items():
        what = f"{name}, {count} rows"
        eager, exact = rows.eager[name][:first], rows.exact[name][:first]
        shape = (count, *eager.shape[1:])
        assert tuple(ours.shape) == shape, f"{what}: the shape is {shape_of(ours)}, not {list(shape)}"
        head = ours[:first].cpu()
        try:
            if rows.scale is not None:
                assert head.dtype == eager.dtype, f"the dtype is {head.dtype}, not {eager.dtype}"
                head, exact, eager = (t.double() / rows.scale for t in (head, exact, eager))
            check(head, exact, eager, dtype, multiple=multiple)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None
        if count <= period:
            continue
        # As far apart as two that are within the bound may be.
        bound = 2 * (multiple * Loss.of(eager, exact).row + FLOOR[dtype])
        flat = ours.flatten(1).float()
        if rows.scale is not None:
            flat = flat / rows.scale.to(flat)
        size = flat[:first].norm(dim=1).clamp_min(1e-30)
        for start in range(period, count, 64 * PERIOD):
            part = flat[start : start + 64 * PERIOD]
            away = (part - flat[index[start : start + len(part)]]).norm(dim=1) / size[index[start : start + len(part)]]
            worst = int(away.nan_to_num(nan=torch.inf).argmax())
            assert float(away[worst]) <= bound, (
                f"{what}: row {start + worst} is {float(away[worst]):.1e} from row {(start + worst) % period}, "
                f"which has the same inputs; bound {bound:.1e}"
            )
