"""Rows of zeros, of a dtype's smallest numbers and of subnormal ones, next to ordinary rows.

A device may take subnormal numbers for zeros. What comes of them lies between zero and the truth then; who divides by
the largest among them makes infinities instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import MULTIPLE, check, shape_of

ORDINARY = [0, 1, 5, 6, 7]
"""Rows that have to be right whatever their neighbours are. Every second number of row 6 is subnormal."""
SMALL = {2: "the dtype's smallest numbers", 3: "subnormal numbers", 4: "zeros"}


def near_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [8, ...] of about normal numbers in this dtype, with rows of the kinds above."""
    tiny, x = torch.finfo(dtype).tiny, x.to(torch.float32, copy=True)
    for row, scale in ((2, 4 * tiny), (3, tiny / 8), (4, 0.0)):
        x[row] *= scale
    x[6, ..., ::2] *= tiny / 8
    return x.to(dtype)


def check_near_zero(found: Tensor, exact: Tensor, eager: Tensor, *, dtype: str, multiple: float = MULTIPLE) -> None:
    """Fail unless the ordinary ones of eight rows are right, and the others between zero and the truth, but for twice
    what eager torch loses."""
    found = found.cpu()
    check(found[ORDINARY], exact[ORDINARY], eager[ORDINARY], dtype, multiple=multiple)
    for row, what in SMALL.items():
        truth = exact[row].double()
        off, lost = (float((t[row].double() - truth).norm()) for t in (found, eager))
        bound = 1.01 * float(truth.norm()) + 2 * lost
        # Written so that NaN fails.
        assert off <= bound, f"a row of {what} is {off:.1e} from the truth, bound {bound:.1e}, shape {shape_of(found)}"
