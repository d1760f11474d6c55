"""FlashAttention-3's rows with a stand-in for the library: what is handed to it, and what is made of its results."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from cosmos3_cuda import fa3
from cosmos3_triton.tables import table
from torch import Tensor

from cosmos3_core.contract import Segment
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases
from cosmos3_core.testing.suite.attention import CALLS

TABLE = table("sm_90")


@pytest.fixture
def calls(monkeypatch) -> list[torch.dtype]:
    """The dtype of the keys of every call."""
    seen: list[torch.dtype] = []

    def flash_attn_func(  # fmt: skip
        q, k, v, causal=False, q_descale=None, k_descale=None, v_descale=None, return_attn_probs=False, pack_gqa=None
    ):  # fmt: skip
        seen.append(k.dtype)
        q, k, v = (_plain(x, scale, k.shape[2]) for x, scale in ((q, q_descale), (k, k_descale), (v, v_descale)))
        out, lse = reference.attention(q, [Segment(k, v)], causal=causal, want_lse=True)
        out = out.bfloat16().contiguous()
        return (out, lse.float().contiguous()) if return_attn_probs else out

    module = ModuleType("fa3_fwd_interface")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", module)
    return seen


def _plain(x: Tensor, scale_BK: Tensor | None, kv_heads: int) -> Tensor:
    """As the library undoes a scale: one for each group of query heads, one for each key head."""
    if scale_BK is None:
        return x.double()
    assert scale_BK.shape == (len(x), kv_heads) and scale_BK.dtype == torch.float32
    return x.double() * scale_BK.repeat_interleave(x.shape[2] // kv_heads, 1)[:, None, :, None].double()


def inputs(case) -> tuple[Tensor, list[Segment]]:
    q, segments = case.inputs("bfloat16")
    return q, [Segment(k, v) for k, v in segments]


CASES = [replace(case, heads=case.heads // 8, kv_heads=2, queries=min(case.queries, 70)) for case in CALLS]
CASES = [replace(case, lengths=(case.queries,) if case.causal else case.lengths) for case in CASES if case.keys == 1]
PREPARED = ("gqa32_8-one_query", "gqa32_8-values50x")
"""Calls with a text and media: two suffice, for each takes a quarter of a minute."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_it_is_the_reference_s(calls, case, fp8):
    q, segments = inputs(case)
    attention = fa3.FlashAttention3InFP8(TABLE) if fp8 else fa3.FlashAttention3()
    out, lse = attention(q, segments, causal=case.causal, want_lse=True)
    exact, exact_lse, eager = case.expected("bfloat16")
    cases.check(out, exact, eager, "bfloat16", 0.24 if fp8 else 0.0)
    torch.testing.assert_close(lse, exact_lse.float(), atol=0.2 if fp8 else 2e-3, rtol=0)
    assert calls == [torch.float8_e4m3fn if fp8 and not case.causal else torch.bfloat16]
    assert attention(q, segments, causal=case.causal)[1] is None


@pytest.mark.parametrize("case", [case for case in CASES if case.id in PREPARED], ids=lambda case: case.id)
def test_a_text_that_was_prepared_gives_the_same_bits(calls, case):
    """Its keys are in e4m3 then, once for all calls, and not read again."""
    attention = fa3.FlashAttention3InFP8(TABLE)
    q, (text, media) = inputs(case)
    expected = attention(q, [text, media], want_lse=True)
    prepared = attention.prepare(*text)
    text = Segment(torch.full_like(text.k_BTKD, torch.nan), text.v_BTKD, static=True, prepared=prepared)
    for _ in range(2):
        found = attention(q, [text, media], want_lse=True)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_an_offset_of_all_keys_costs_nothing(calls):
    """As trained models have it: the same large vector in every key. Scores do not see it; FP8 would."""
    q, segments = inputs(CASES[0])
    shifted = [Segment((k.float() + 30).bfloat16(), v) for k, v in segments]
    exact, _ = reference.attention(q.double(), [(k.double(), v.double()) for k, v in shifted])
    out, _ = fa3.FlashAttention3InFP8(TABLE)(q, shifted)
    assert cases.Loss.of(out, exact).whole < 0.08


def test_spread_attention_is_the_mean_value_first(calls):
    """Where every key counts alike the result is the mean of the values, far smaller than they are: what their rounding
    loses must not be added up to more than that."""
    q, k = cases.normal(1, 4, 4, 64, seed=1) * 1e-3, cases.normal(1, 900, 2, 64, seed=2)
    v = cases.normal(1, 900, 2, 64, seed=3) + 0.3
    q, k, v = (x.bfloat16() for x in (q, k, v))
    exact, _ = reference.attention(q.double(), [(k.double(), v.double())])
    for segments in ([Segment(k, v)], [Segment(k[:, :20], v[:, :20]), Segment(k[:, 20:], v[:, 20:])]):
        out, _ = fa3.FlashAttention3InFP8(TABLE)(q, segments)
        assert cases.Loss.of(out, exact).whole < 0.01


def test_the_queries_rounding_does_not_shift_weight_between_segments(calls):
    """Keys of the text all have a vector in common that the media's do not have, with which a query's product is small
    but consists of large parts."""
    q, ((text_k, text_v), media) = inputs(next(case for case in CASES if len(case.lengths) == 2))
    q, text_k = q.clone(), text_k.clone()
    q[..., 5], q[..., 6] = 1.0625, 0.75
    text_k[..., 5] += 240
    text_k[..., 6] -= 340
    segments = [Segment(text_k, text_v), media]
    exact, exact_lse = reference.attention(q.double(), [(k.double(), v.double()) for k, v in segments], want_lse=True)
    out, lse = fa3.FlashAttention3InFP8(TABLE)(q, segments, want_lse=True)
    assert cases.Loss.of(out, exact).whole < 0.08
    torch.testing.assert_close(lse, exact_lse.float(), atol=0.1, rtol=0)
