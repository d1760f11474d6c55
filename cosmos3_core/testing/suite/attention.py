"""Attention over one or several segments of keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from ... import contract
from ...contract import Segment
from ...reference import ops as reference
from .. import cases
from ..cases import HEAD_DIM, Here, Loss, OpCase, check, check_lse, moved, normal, wider
from .marks import each, over


@dataclass(frozen=True)
class Call:
    """One call of attention. `values` is how much larger each segment's values are; queries then look at one segment
    each, so that an error in the small one cannot hide behind the large one. `keys` scales the last segment's keys.
    `far` is what every score has on top: of even queries more, of odd ones less."""

    id: str
    heads: int = 32
    kv_heads: int = 8
    queries: int = 130
    lengths: tuple[int, ...] = (1, 77, 300)
    batch: int = 1
    causal: bool = False
    values: tuple[float, ...] = ()
    keys: float = 1.0
    far: float = 0.0

    def inputs(self, dtype: str, device: str = "cpu") -> tuple[Tensor, list[Segment]]:
        """(q_BSHD, segments), not contiguous."""
        q = normal(self.batch, self.queries, self.heads, HEAD_DIM, seed=1)
        segments = []
        for i, length in enumerate(self.lengths):
            # Scores with a standard deviation of 2: a wrong key shows, and no key drowns the others.
            kv = normal(self.batch, length, 2 * self.kv_heads, HEAD_DIM, seed=10 + i)
            kv[:, :, : self.kv_heads] *= 2
            if i == len(self.lengths) - 1:
                kv[:, :, : self.kv_heads] *= self.keys
            if self.far:
                kv[:, :, : self.kv_heads, 0] = (self.far * HEAD_DIM**0.5) ** 0.5
            if self.values:
                kv[:, :, : self.kv_heads] += 1 - 2 * (i % 2)
                kv[:, :, self.kv_heads :] *= self.values[i]
            k, v = kv.to(device, getattr(torch, dtype)).split(self.kv_heads, dim=2)
            segments.append(Segment(k, v))
        if self.far:
            q[:, 0::2, :, 0], q[:, 1::2, :, 0] = ((sign * (self.far * HEAD_DIM**0.5) ** 0.5) for sign in (1, -1))
        if self.values:
            q[:, 0::2] += 1
            q[:, 1::2] -= 1
        padded = torch.cat((q, q[:, :, :1]), dim=2).to(device, getattr(torch, dtype))
        return padded[:, :, : self.heads], segments

    @lru_cache  # noqa: B019 (cases are module constants; every row is compared with the same truth)
    def expected(self, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
        """(exact out in fp64, exact lse_BHS, eager out in the dtype)."""
        q, segments = self.inputs(dtype)
        exact = wider((q, segments), torch.float64)
        out, lse = reference.attention(*exact, causal=self.causal, want_lse=True)
        assert lse is not None
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
    Call("gqa32_8-causal_batch2", queries=300, lengths=(300,), batch=2, causal=True),
    Call("gqa32_8-many_keys", queries=3, lengths=(2600, 70)),
    Call("gqa32_8-scores_far_from_0", queries=33, lengths=(7, 130), far=120.0),
)
PLAIN, CAUSAL = CALLS[4], CALLS[7]
ONE_TOKEN = ((1, (1,)), (130, (1,)), (33, (1, 65)), (1, (65, 1)), (1, (1, 1)))
"""Numbers of queries, and of keys in each segment."""


def _use(op: contract.Attention, here: Here) -> list[Tensor]:
    out, lse = op(*PLAIN.inputs(here.dtype, here.device), want_lse=True)
    assert lse is not None, "there is no log-sum-exp, which was asked for"
    return [out, lse]


ATTENTION = OpCase(op="attention", protocol=contract.Attention, use=_use)


@over("attention")
@each(*CALLS)
def test_attention_parity(kernel, dtype, op, device, allowance, case):
    """softmax(q kᵀ / sqrt(D)) v over all segments."""
    if allowance and (case.keys > 1 or case.far):
        pytest.skip("a softmax this sharp turns on the last bit of a key, which a quantized one does not have")
    exact, _, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal)
    check(out, exact, eager, dtype, allowance)
    assert lse is None, "lse was not asked for"


@over("attention")
@each(*(case for case in CALLS if case.keys == 1))
def test_attention_log_sum_exp(kernel, dtype, op, device, allowance, case):
    """The natural logarithm, fp32, [B, H, S]; asking for it changes nothing else."""
    if allowance and case.far:
        pytest.skip("a share of scores so large is more than the softmax can lose")
    exact, expected, eager = case.expected(dtype)
    out, lse = op(*case.inputs(dtype, device), causal=case.causal, want_lse=True)
    check(out, exact, eager, dtype, allowance)
    assert lse.shape == expected.shape and lse.dtype == torch.float32, f"lse is {lse.dtype} {list(lse.shape)}"
    check_lse(lse, expected, allowance)


@over("attention")
def test_causal_attention_sees_no_later_key(kernel, dtype, op, device, allowance):
    """Other later keys and values leave every earlier output as it was, bit for bit. (Where keys are quantized, later
    ones may share a scale with earlier ones, so there within the format's bound; their negatives keep the scale.)"""
    q, [(k, v)] = CAUSAL.inputs(dtype, device)
    out, _ = op(q.clone(), [Segment(k, v)], causal=True)  # of copies: who overwrites them is told so elsewhere
    for position in (1, 40, 76):
        later_k, later_v = (torch.cat((t[:, :position], -t[:, position:]), dim=1) for t in (k, v))
        changed, _ = op(q.clone(), [Segment(later_k, later_v)], causal=True)
        before, after = (t[:, :position] for t in (out, changed))
        if allowance:
            check(after, before.cpu(), before.cpu(), dtype, allowance)
        else:
            assert torch.equal(before, after), (
                f"keys from {position} on changed outputs before, shape {list(out.shape)}"
            )


@over("attention")
def test_causal_attention_sees_its_own_key(kernel, dtype, op, device):
    q, [(k, v)] = CAUSAL.inputs(dtype, device)
    out, _ = op(q.clone(), [Segment(k, v)], causal=True)
    last = v.clone()
    last[:, -1] += 50
    changed, _ = op(q.clone(), [Segment(k, last)], causal=True)
    moved = (changed - out).abs().amax(dim=-1)[:, -1]
    assert bool((moved > 0).any()), "another value at the last position does not change the last output"


@over("attention")
def test_attention_reads_the_key_head_of_its_group(kernel, dtype, op, device):
    """Key heads hold distinct constants: what comes out of query head j names the key head it read, j * K // H."""
    for heads in (32, 64):
        q, cast = normal(1, 3, heads, 128, seed=1), dict(device=device, dtype=getattr(torch, dtype))
        v = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 16, 8, 128).contiguous().to(**cast)
        out, _ = op(q.to(**cast), [Segment(torch.zeros_like(v), v)])
        read = out[0, 0, :, 0].float().round().int().tolist()
        assert read == [head * 8 // heads for head in range(heads)], f"{heads} query heads read key heads {read}"


@over("attention")
def test_attention_reads_every_segment(kernel, dtype, op, device):
    """One strong key in one segment at a time: its value has to come out."""
    cast = dict(device=device, dtype=getattr(torch, dtype))
    q = torch.ones(1, 4, 32, 128, **cast)
    for strong in range(3):
        segments = [Segment(torch.zeros(1, n, 8, 128, **cast), torch.zeros(1, n, 8, 128, **cast)) for n in (5, 1, 17)]
        segments[strong].k_BTKD[:, -1], segments[strong].v_BTKD[:, -1] = 4.0, 1.0
        out, _ = op(q, segments)
        assert float((out.float() - 1).abs().max()) < 0.1, f"a strong key in segment {strong} of 3 is not seen"


@over("attention")
@each(*(Call("-".join(map(str, lengths)), queries=queries, lengths=lengths) for queries, lengths in ONE_TOKEN))
def test_attention_of_segments_of_one_token(kernel, dtype, op, device, allowance, case):
    """Alone, before the media's and after the text's."""
    exact, _, eager = case.expected(dtype)
    out, _ = op(*case.inputs(dtype, device))
    check(out, exact, eager, dtype, allowance)


@over("attention")
@each(*(case for case in CALLS if not case.causal and case.keys == 1 and not case.far))
def test_attention_with_a_static_segment(kernel, dtype, op, device, allowance, case):
    """The text's segment, prepared where the row prepares, gives what it gives as any other."""
    q, (text, *rest) = case.inputs(dtype, device)
    prepared = op.prepare(*text) if kernel.prepares else None
    exact, _, eager = case.expected(dtype)
    for _ in range(2):
        out, _ = op(q, [replace(text, static=True, prepared=prepared), *rest])
        check(out, exact, eager, dtype, allowance)


@over("attention")
def test_attention_prepares_each_segment_by_itself(kernel, dtype, op, device, allowance):
    """What is made of a static segment follows from its keys and values alone, which stay as they are: another prompt's
    text of the same shape is another one, also at the same address."""
    q, segments = PLAIN.inputs(dtype, device)
    texts = [Segment(scale * segments[0].k_BTKD, scale * segments[0].v_BTKD) for scale in (1, -0.5)]
    before = [t.clone() for text in texts for t in text]
    prepared = [_prepared(kernel, op, text) for text in texts]
    assert cases.same_bits([t for text in texts for t in text], before), "prepare has changed its inputs"
    for text, made in zip(texts, prepared, strict=True):
        _check_static(op, q, [replace(text, static=True, prepared=made), segments[1]], dtype, allowance)
    for there, new in zip(texts[1], texts[0], strict=True):
        there.copy_(0.75 * new)
    again = replace(texts[1], static=True, prepared=_prepared(kernel, op, texts[1]))
    _check_static(op, q, [again, segments[1]], dtype, allowance)


def _prepared(kernel, op, text: Segment):
    return op.prepare(*text) if kernel.prepares else None


def _check_static(op, q: Tensor, segments: list[Segment], dtype: str, allowance: float) -> None:
    out, _ = op(q, segments)
    given = moved((q, [Segment(*segment) for segment in segments]), device="cpu")  # not every device has fp64
    exact, eager = (reference.attention(*one)[0] for one in (wider(given, torch.float64), given))
    check(out, exact, eager, dtype, allowance)


@over("attention")
def test_attention_prepares_for_no_one_else(kernel, dtype, op, device):
    """A row that prepares nothing does not look at what another one has prepared, which hands it smaller calls."""
    if kernel.prepares:
        pytest.skip("the row prepares segments itself")
    q, (text, *rest) = PLAIN.inputs(dtype, device)
    plain, _ = op(q, [text, *rest])
    given, _ = op(q, [replace(text, static=True, prepared=(-text.k_BTKD, -text.v_BTKD)), *rest])
    assert Loss.of(given, plain.cpu()).whole < 0.02, "it reads what was prepared for another row"


@over("attention")
def test_attention_hands_over_smaller_calls(subject, kernel, dtype, op, device, allowance):
    """On both sides of every number of queries below which another row serves."""
    if not kernel.delegates:
        pytest.skip("the row serves every call itself")
    served = subject.ops_with(kernel, dtype)
    for queries in sorted({n for one in kernel.delegates for n in (one.below - 1, one.below)}):
        case = Call("handed_over", queries=queries, lengths=(7, 65))
        q, (text, media) = case.inputs(dtype, device)
        prepared = served.prepare(*text) if served.prepare else None
        exact, _, eager = case.expected(dtype)
        out, _ = served.attention(q, [replace(text, static=True, prepared=prepared), media])
        check(out, exact, eager, dtype, allowance)
