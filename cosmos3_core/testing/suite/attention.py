"""Attention over one or several segments of keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from ... import contract
from ...reference import ops as reference
from .. import cases
from ..cases import HEAD_DIM, OpCase, check, normal
from .marks import each, over


@dataclass(frozen=True)
class Call:
    """One call of attention. `values` is how much larger each segment's values are; queries then look at one segment
    each, so that an error in the small one cannot hide behind the large one. `keys` scales the last segment's keys."""

    id: str
    heads: int = 32
    kv_heads: int = 8
    queries: int = 130
    lengths: tuple[int, ...] = (1, 77, 300)
    batch: int = 1
    causal: bool = False
    values: tuple[float, ...] = ()
    keys: float = 1.0

    def inputs(self, dtype: str, device: str = "cpu") -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(q_BSHD, segments), not contiguous."""
        q = normal(self.batch, self.queries, self.heads, HEAD_DIM, seed=1)
        segments = []
        for i, length in enumerate(self.lengths):
            # Scores with a standard deviation of 2: a wrong key shows, and no key drowns the others.
            kv = normal(self.batch, length, 2 * self.kv_heads, HEAD_DIM, seed=10 + i)
            kv[:, :, : self.kv_heads] *= 2
            if i == len(self.lengths) - 1:
                kv[:, :, : self.kv_heads] *= self.keys
            if self.values:
                kv[:, :, : self.kv_heads] += 1 - 2 * (i % 2)
                kv[:, :, self.kv_heads :] *= self.values[i]
            segments.append(kv.to(device, getattr(torch, dtype)).split(self.kv_heads, dim=2))
        if self.values:
            q[:, 0::2] += 1
            q[:, 1::2] -= 1
        padded = torch.cat((q, q[:, :, :1]), dim=2).to(device, getattr(torch, dtype))
        return padded[:, :, : self.heads], [(k, v) for k, v in segments]

    @lru_cache  # noqa: B019 (cases are module constants; every row is compared with the same truth)
    def expected(self, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        """(exact out in fp64, exact lse_BHS, eager out in the dtype)."""
        q, segments = self.inputs(dtype)
        exact = [(k.double(), v.double()) for k, v in segments]
        out, lse = reference.attention(q.double(), exact, causal=self.causal, want_lse=True)
        return out, lse, reference.attention(q, segments, causal=self.causal)[0]


CALLS = (
    Call("gqa32_8-ragged"),
    Call("gqa64_8-ragged", heads=64),
    Call("gqa32_8-one_query", queries=1, lengths=(3, 130)),
    Call("gqa32_8-one_key", queries=5, lengths=(1,)),
    Call("gqa32_8-batch2", queries=33, lengths=(7, 65), batch=2),
    Call("gqa32_8-values50x", lengths=(77, 130), values=(1.0, 50.0)),
    Call("gqa32_8-keys50x", lengths=(77, 130), keys=50.0),
    Call("gqa32_8-causal", queries=77, lengths=(77,), causal=True),
    Call("gqa64_8-causal", heads=64, queries=130, lengths=(130,), causal=True),
)
PLAIN, CAUSAL = CALLS[4], CALLS[7]


def _use(op: contract.Attention, formats: tuple[str, ...], dtype: str, device: str) -> list[Tensor]:
    q, segments = PLAIN.inputs(dtype, device)
    return list(op(q, segments, want_lse=True))


ATTENTION = OpCase("attention", contract.Attention, _use)


@over("attention")
@each(*CALLS)
def test_attention_parity(kernel, dtype, op, device, case):
    """softmax(q kᵀ / sqrt(D)) v over all segments."""
    allowed = cases.allowance(kernel)
    if allowed and case.keys > 1:
        pytest.skip("a softmax this sharp turns on the last bit of a key, which a quantized one does not have")
    exact, _, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal)
    check(out, exact, eager, dtype, allowed)
    assert lse is None, "lse was not asked for"


@over("attention")
@each(*(case for case in CALLS if case.keys == 1))
def test_attention_log_sum_exp(kernel, dtype, op, device, case):
    """The natural logarithm, fp32, [B, H, S]; asking for it changes nothing else."""
    exact, expected, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal, want_lse=True)
    check(out, exact, eager, dtype, cases.allowance(kernel))
    assert lse.shape == expected.shape and lse.dtype == torch.float32, f"lse is {lse.dtype} {list(lse.shape)}"
    worst = float((lse.cpu().double() - expected).abs().max())
    bound = cases.LSE_ABSOLUTE + cases.WORST_ROW * cases.allowance(kernel)
    assert worst <= bound, f"lse is {worst:.1e} away, bound {bound:.1e}"


@over("attention")
def test_causal_attention_sees_no_later_key(kernel, dtype, op, device):
    """Other later keys and values leave every earlier output as it was, bit for bit. (Where keys are quantized, later
    ones may share a scale with earlier ones, so there within the format's bound; their negatives keep the scale.)"""
    q, [(k, v)] = CAUSAL.inputs(dtype, device)
    out, _ = op(q, [(k, v)], causal=True)
    for position in (1, 40, 76):
        later_k, later_v = (torch.cat((t[:, :position], -t[:, position:]), dim=1) for t in (k, v))
        changed, _ = op(q, [(later_k, later_v)], causal=True)
        before, after = (t[:, :position] for t in (out, changed))
        if allowed := cases.allowance(kernel):
            check(after, before.cpu(), before.cpu(), dtype, allowed)
        else:
            assert torch.equal(before, after), f"keys from {position} on changed outputs before {position}"


@over("attention")
def test_causal_attention_sees_its_own_key(kernel, dtype, op, device):
    q, [(k, v)] = CAUSAL.inputs(dtype, device)
    out, _ = op(q, [(k, v)], causal=True)
    last = v.clone()
    last[:, -1] += 50
    changed, _ = op(q, [(k, last)], causal=True)
    moved = (changed - out).abs().amax(dim=-1)[:, -1]
    assert bool((moved > 0).any()), "another value at the last position does not change the last output"


@over("attention")
def test_attention_reads_the_key_head_of_its_group(kernel, dtype, op, device):
    """Key heads hold distinct constants: what comes out of query head j names the key head it read, j * K // H."""
    for heads in (32, 64):
        q, cast = normal(1, 3, heads, 128, seed=1), dict(device=device, dtype=getattr(torch, dtype))
        v = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 16, 8, 128).contiguous().to(**cast)
        out, _ = op(q.to(**cast), [(torch.zeros_like(v), v)])
        read = out[0, 0, :, 0].float().round().int().tolist()
        assert read == [head * 8 // heads for head in range(heads)], f"{heads} query heads read key heads {read}"


@over("attention")
def test_attention_reads_every_segment(kernel, dtype, op, device):
    """One strong key in one segment at a time: its value has to come out."""
    cast = dict(device=device, dtype=getattr(torch, dtype))
    q = torch.ones(1, 4, 32, 128, **cast)
    for strong in range(3):
        segments = [[torch.zeros(1, n, 8, 128, **cast), torch.zeros(1, n, 8, 128, **cast)] for n in (5, 1, 17)]
        segments[strong][0][:, -1], segments[strong][1][:, -1] = 4.0, 1.0
        out, _ = op(q, [tuple(segment) for segment in segments])
        assert float((out.float() - 1).abs().max()) < 0.1, f"a strong key in segment {strong} of 3 is not seen"
