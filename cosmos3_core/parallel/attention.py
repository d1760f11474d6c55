"""Attention of media tokens that are split among processes: by heads (Ulysses), around a ring, and both.

Process (r, u) of `ring` x `ulysses` holds part r * ulysses + u of the rows. Along ulysses rows are exchanged for heads,
so that each process has the r-th ring's rows of its heads; along the ring those keys and values go around. Every row
of the text's is attended to once, by every query: its keys are where the process's heads are, and beside the ring's
own part. Rows divide nothing; what fills up a message never comes to a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contract import Attention, Segment
from ..model.attending import attend, passes_of, summed
from ..model.packing import Packing
from .ranks import Ranks, parts


def kv_heads_of(count: int, number: int, kv_heads: int) -> slice:
    """The key heads of process `number` of `count`: its share, or the one that its query heads read where there are
    fewer of them than processes."""
    first = number * kv_heads // count
    return slice(first, first + max(1, kv_heads // count))


def text_of(segment: Segment, ranks: Ranks) -> Segment:
    """Of a text's keys and values the heads that are this process's, in memory of their own."""
    circle = ranks.ulysses
    if circle.count == 1:
        return segment
    k, v = segment
    heads = kv_heads_of(circle.count, circle.number, k.shape[2])
    return Segment(k[:, :, heads].contiguous(), v[:, :, heads].contiguous(), static=segment.static)


class Exchanged:
    """`model.attending.Attend` of one process's rows."""

    def __init__(self, attention: Attention, ranks: Ranks):
        self.attention, self.ranks = attention, ranks

    def __call__(self, packing: Packing, text: Segment, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ring, ulysses = self.ranks.ring, self.ranks.ulysses
        lengths = parts(packing.length, ring.count * ulysses.count)
        rows = lengths[ring.number * ulysses.count :][: ulysses.count]
        if ulysses.count > 1:
            q, k, v = self._to_heads(q, k, v, rows)
        if ring.count == 1:
            out = attend(self.attention, packing, text, q, k, v)
        else:
            out = self._around(packing, text, q, k, v, lengths)
        return self._to_rows(out, rows) if ulysses.count > 1 else out

    def _to_heads(self, q: Tensor, k: Tensor, v: Tensor, rows: Sequence[int]) -> Sequence[Tensor]:
        """Of all heads and this process's rows, this process's heads and all rows, in one exchange."""
        circle, sent = self.ranks.ulysses, []
        queries = q.shape[2] // circle.count
        for number in range(circle.count):
            keys = kv_heads_of(circle.count, number, k.shape[2])
            own = slice(number * queries, (number + 1) * queries)
            sent.append(torch.cat((q[0, :, own], k[0, :, keys], v[0, :, keys]), dim=1))
        whole = circle.all_to_all(torch.cat(sent), [q.shape[1]] * circle.count, rows).unsqueeze(0)
        each = (whole.shape[2] - queries) // 2
        return whole.split((queries, each, each), dim=2)

    def _to_rows(self, out: Tensor, rows: Sequence[int]) -> Tensor:
        """The way back, of what the attention gave."""
        circle, mine = self.ranks.ulysses, rows[self.ranks.ulysses.number]
        found = circle.all_to_all(out[0].contiguous(), rows, [mine] * circle.count)
        return found.unflatten(0, (circle.count, mine)).transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def _around(
        self, packing: Packing, text: Segment, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """Keys and values go around, each time beside the attention to those that are here."""
        ring, ulysses = self.ranks.ring, self.ranks.ulysses
        chunks = [sum(lengths[i * ulysses.count :][: ulysses.count]) for i in range(ring.count)]
        starts = [sum(chunks[:i]) for i in range(ring.count)]
        passes = passes_of(packing)
        mine = [_within(rows, starts[ring.number], chunks[ring.number]) for rows in passes]
        queries = [q if len(passes) == 1 else _taken(q, rows) for rows in mine]
        sums: list[Merged | None] = [None] * len(passes)
        here = torch.stack((k[0], v[0]))
        if missing := max(chunks) - chunks[ring.number]:
            here = torch.cat((here, here.new_zeros(2, missing, *here.shape[2:])), dim=1)
        for step in range(ring.count):
            source = (ring.number - step) % ring.count
            arriving = ring.passed_on(here) if step < ring.count - 1 else None
            there = here[:, : chunks[source]]
            for i, rows in enumerate(passes):
                keys = _within(rows, starts[source], chunks[source])
                sums[i] = self._merged(sums[i], queries[i], text if step == 0 else None, there, keys)
            if arriving is not None:
                here = arriving()
        made = mine[0][-1]
        outs = (q.new_empty(queries[i].shape) if one is None else one.out.to(q.dtype) for i, one in enumerate(sums))
        if len(passes) == 1:
            return next(outs)
        return summed(packing, outs, made.stop - made.start)

    def _merged(
        self, before: Merged | None, q: Tensor, text: Segment | None, kv: Tensor, keys: Sequence[slice]
    ) -> Merged | None:
        """With the attention of q to the text, if it is given, and to these rows of a part of the ring."""
        segments = [] if text is None else [text]
        if any(one.stop > one.start for one in keys):
            k, v = (_taken(x.unsqueeze(0), keys) for x in kv)
            segments.append(Segment(k, v))
        if not segments or not q.shape[1]:
            return before
        out, lse = self.attention(q, segments, want_lse=True)
        assert lse is not None, "it was wanted"
        return Merged(out, lse, before)


class Merged:
    """Attention to the keys of several calls: their sum by the log-sum-exp of each, in fp32."""

    def __init__(self, out_BSHD: Tensor, lse_BHS: Tensor, before: Merged | None):
        self.out, self.lse = out_BSHD.float(), lse_BHS
        if before is not None:
            self.lse = torch.logaddexp(before.lse, lse_BHS)
            self.out = before.out * _share(before.lse, self.lse) + self.out * _share(lse_BHS, self.lse)


def _share(part_BHS: Tensor, whole_BHS: Tensor) -> Tensor:
    return (part_BHS - whole_BHS).exp().transpose(1, 2).unsqueeze(-1)


def _within(rows: Sequence[slice], start: int, length: int) -> list[slice]:
    """Of rows of the whole those among so many from `start` on, counted from there."""
    found = []
    for one in rows:
        first = min(max(one.start - start, 0), length)
        found.append(slice(first, min(max(one.stop - start, first), length)))
    return found


def _taken(x: Tensor, rows: Sequence[slice]) -> Tensor:
    one = [x[:, part] for part in rows]
    return one[0] if len(one) == 1 else torch.cat(one, dim=1)
