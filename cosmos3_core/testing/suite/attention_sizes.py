"""Attention at the sizes that the models ask: see `testing.sizes`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...contract import Segment
from ...reference import ops as reference
from ..cases import WORST_ROW, Loss, check, check_lse, moved, normal, wider, worst_lse
from ..depth import MOST_ROWS, drawn
from ..sizes import PERIOD
from .marks import over
from .sizes import Layout, layouts

SWEPT = (2, 1, 128)
"""The layout in which all sizes are tried: few heads, so that calls are long instead."""
JUDGED = 24
"""Queries that are compared with the truth where there are many keys."""
MANY = 1024
SIZES: tuple[tuple[int, tuple[int, ...]], ...] = (
    *((1, (1,)), (2, (1, 1)), (5, (513,)), (7, (1, 1025)), (16, (4097, 1)), (17, (3000, 1, 40)), (2, (1, 1, 2047))),
    *((3, (5000,)), (1, (9001,)), (63, (64,)), (64, (65,)), (65, (1, 513)), (127, (129, 2)), (129, (600, 7))),
    *((255, (256,)), (257, (130,)), (300, (1, 700)), (513, (77, 1)), (1025, (33,)), (2049, (70,)), (4097, (5,))),
    *((1, (MOST_ROWS,)), (3, (77, MOST_ROWS)), (MOST_ROWS, (1, 1)), (1024, (300, 1024)), (2880, (64, 2880))),
    *((11_040, (512, 11_040)), (22_080, (1, 22_080)), (MOST_ROWS, (333, MOST_ROWS))),
)
"""Numbers of queries, and of keys in each segment."""
PROMPTS = (1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 600, 1025, 2049, 4097)


@dataclass(frozen=True)
class Sized:
    """A call. Queries repeat after PERIOD, so that results do; not under a causal mask."""

    layout: Layout
    queries: int
    lengths: tuple[int, ...]
    causal: bool = False

    @property
    def work(self) -> float:
        """Of two calls and of their judgement."""
        heads, _, width = self.layout
        return float(heads * width * (sum(self.lengths) + 16) * 2 * (self.queries + len(self.judged())))

    @property
    def elements(self) -> float:
        """Of what is drawn."""
        heads, keys, width = self.layout
        return float(width * (heads * min(self.queries, PERIOD) + 2 * keys * sum(self.lengths)))

    def __str__(self) -> str:
        heads, keys, width = self.layout
        how = ", causal" if self.causal else ""
        return f"{self.queries} queries, keys {'+'.join(map(str, self.lengths))}, heads {heads}/{keys} of {width}{how}"

    def judged(self) -> list[int]:
        """Queries that are compared with the truth."""
        most = self.queries if self.causal else min(self.queries, PERIOD)
        if not self.causal and sum(self.lengths) <= MANY:
            return list(range(most))
        some = {0, most - 1, *(edge + step for edge in (32, 64, 128, 256, 512, 1024, 2048) for step in (-1, 0))}
        fits = sorted(query for query in some if 0 <= query < most)
        return sorted({*fits, *(most * part // 8 for part in range(8))})[-JUDGED:]

    @lru_cache  # noqa: B019 (one call at a time is judged, in two dtypes)
    def inputs(self, dtype: str) -> tuple[Tensor, list[Segment]]:
        """(q_BSHD, segments) on the host. Keys of one part, values of another of the same tensor."""
        heads, keys, width = self.layout
        q = normal(1, min(self.queries, self.queries if self.causal else PERIOD), heads, width, seed=31)
        segments = []
        for i, length in enumerate(self.lengths):
            kv = normal(1, length, 2 * keys, width, seed=32 + i)
            kv[:, :, :keys] *= 2
            segments.append(Segment(*kv.to(getattr(torch, dtype)).split(keys, dim=2)))
        return q.to(getattr(torch, dtype)), segments

    def expected(self, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        """(exact out, exact lse_BHS, eager out in the dtype) of the queries that are judged."""
        q, segments = self.inputs(dtype)
        judged = self.judged()
        if not self.causal:
            given = q[:, judged], segments
            out, lse = reference.attention(*wider(given, torch.float64), want_lse=True)
            assert lse is not None
            return out, lse, reference.attention(*given)[0]
        found = []
        for query in judged:
            seen = (
                q[:, query : query + 1],
                [Segment(segments[0].k_BTKD[:, : query + 1], segments[0].v_BTKD[:, : query + 1])],
            )
            found.append(
                (*reference.attention(*wider(seen, torch.float64), want_lse=True), reference.attention(*seen)[0])
            )
        outs, lses, eagers = zip(*found, strict=True)
        return torch.cat(outs, dim=1), torch.cat(lses, dim=2), torch.cat(eagers, dim=1)


def judge(op, case: Sized, dtype: str, device: str, allowance: float) -> None:
    """Fail unless every query of the call is right, with its log-sum-exp and without."""
    q, segments = moved(case.inputs(dtype), device=device)
    index = torch.arange(case.queries, device=device) % q.shape[1]
    exact, exact_lse, eager = case.expected(dtype)
    shape, judged = (1, case.queries, *case.layout[::2]), case.judged()
    bound = 2 * (2 * Loss.of(eager, exact).row + 2e-3 + WORST_ROW * allowance)
    for asked in (True, False):
        out, lse = op(q[:, index], segments, causal=case.causal, want_lse=asked)
        assert tuple(out.shape) == shape, f"the shape is {list(out.shape)}, not {list(shape)}"
        check(out[:, judged], exact, eager, dtype, allowance)
        if asked:
            check_lse(lse[:, :, judged], exact_lse, allowance)
        if case.causal or case.queries <= PERIOD:
            continue
        _check_repeats(out, out[:, :PERIOD].float().norm(dim=-1).clamp_min(1e-30), bound, "what")
        if asked:
            lse_BSH1 = lse.transpose(1, 2).unsqueeze(3)
            _check_repeats(
                lse_BSH1, torch.ones_like(lse_BSH1[:, :PERIOD, :, 0]), 2 * worst_lse(allowance), "an lse that"
            )


def _check_repeats(found_BSHX: Tensor, unit_BSH: Tensor, bound: float, what: str) -> None:
    """Fail unless queries after the first PERIOD have what those have, within so many units of theirs."""
    first = found_BSHX[:, :PERIOD].float()
    for start in range(PERIOD, found_BSHX.shape[1], PERIOD):
        part = found_BSHX[:, start : start + PERIOD].float()
        count = part.shape[1]
        away = ((part - first[:, :count]).norm(dim=-1) / unit_BSH[:, :count]).amax(dim=(0, 2))
        worst = int(away.nan_to_num(nan=torch.inf).argmax())
        assert float(away[worst]) <= bound, (
            f"query {start + worst} gives {what} is {float(away[worst]):.1e} from what the equal query {worst} gives; "
            f"bound {bound:.1e}"
        )


def _sweep(pace, op, calls: list[Sized], dtype: str, device: str, allowance: float) -> None:
    for case in pace.worth((str(case), case.work, case.elements, case) for case in dict.fromkeys(calls)):
        try:
            judge(op, case, dtype, device, allowance)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


def _swept(subject, kernel, dtype: str) -> Layout:
    served = layouts(subject, kernel, dtype)
    return SWEPT if SWEPT in served else served[0]


@over("attention")
def test_attention_sizes(subject, kernel, dtype, op, device, allowance, pace):
    """One, two and three segments, with few keys and many; every query is looked at."""
    layout = _swept(subject, kernel, dtype)
    pairs = zip(drawn(pace.depth, 7, MOST_ROWS), drawn(pace.depth, 8, MOST_ROWS), strict=True)
    calls = [*SIZES, *((queries, (1 + keys // 7, keys)) for queries, keys in pairs)]
    _sweep(pace, op, [Sized(layout, *call) for call in calls], dtype, device, allowance)


@over("attention")
def test_causal_attention_sizes(subject, kernel, dtype, op, device, allowance, pace):
    """Prompts of every length, on both sides of every power of two."""
    layout = _swept(subject, kernel, dtype)
    calls = [Sized(layout, tokens, (tokens,), causal=True) for tokens in (*PROMPTS, *drawn(pace.depth, 9, 4096))]
    _sweep(pace, op, calls, dtype, device, allowance)


@over("attention")
def test_attention_layouts(subject, kernel, dtype, op, device, allowance, pace):
    """Every number of query heads, key heads and head width that the row does not refuse."""
    calls = []
    for layout in layouts(subject, kernel, dtype):
        calls += [Sized(layout, 33, (5, 40)), Sized(layout, 1, (7,)), Sized(layout, 41, (41,), causal=True)]
    _sweep(pace, op, calls, dtype, device, allowance)
