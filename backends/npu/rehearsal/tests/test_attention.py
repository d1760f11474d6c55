"""Rows of attention against the reference, and faults that others' backends have had, planted: each is seen."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from conftest import CHIP
from cosmos3_npu import attention
from cosmos3_npu.plugin import probe
from mindiesd.layers.flash_attn import attention_forward
from rehearsal.emulated.limits import Limit

from cosmos3_core.contract import Segment, Unavailable
from cosmos3_core.reference import ops as reference

ROWS = ("fusion", "sdpa", *(["infer"] if CHIP != "Ascend950" else []))
each_row = pytest.mark.parametrize("row", ROWS)
HEADS, KV_HEADS, HEAD_DIM, TOKENS = 8, 2, 128, 130
FAR = 0.05
"""A relative error that no rounding makes."""


def inputs(branches: int = 1, text: int = 0, tokens: int = TOKENS) -> tuple[torch.Tensor, list[Segment]]:
    """Of the host. Keys are shared by four heads; q and v are views of a projection."""
    made = torch.Generator().manual_seed(branches + text)
    qkv = torch.randn(branches, tokens, HEADS + 2 * KV_HEADS, HEAD_DIM, generator=made).bfloat16()
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=2)
    segments = [Segment(k.contiguous(), v)]
    if text:
        k, v = torch.randn(2, branches, text, KV_HEADS, HEAD_DIM, generator=made).bfloat16()
        segments.insert(0, Segment(k, v, static=True))
    return q, segments


def on_device(q: torch.Tensor, segments: list[Segment]) -> tuple[torch.Tensor, list[Segment]]:
    qkv = torch.cat([q, segments[-1].v_BTKD], dim=2).to("npu")
    q, v = qkv.split([HEADS, KV_HEADS], dim=2)
    *text, last = ([part.to("npu") for part in segment] for segment in segments)
    return q, [Segment(*parts, static=True) for parts in text] + [Segment(last[0], v)]


def error(row: str, *, branches: int = 1, text: int = 0, tokens: int = TOKENS, **options: bool) -> float:
    """The larger one of the attended values' and the log-sum-exp's."""
    given = inputs(branches, text, tokens)
    found = getattr(attention, row)(*on_device(*given), **options)
    exact = reference.attention(given[0].float(), [Segment(*(x.float() for x in part)) for part in given[1]], **options)
    pairs = [(ours.cpu().float(), theirs) for ours, theirs in zip(found, exact, strict=True) if theirs is not None]
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


@each_row
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("text", [0, 37])
def test_keys_of_all_segments_are_attended_to(row, branches, text):
    assert error(row, branches=branches, text=text) < FAR
    assert error(row, branches=branches, text=text, want_lse=True) < FAR


@each_row
@pytest.mark.parametrize("branches", [1, 2])
def test_causal_is_causal(row, branches):
    assert error(row, branches=branches, causal=True) < FAR
    assert error(row, branches=branches, causal=True, want_lse=True) < FAR


@each_row
def test_a_lost_mask_is_seen(row, monkeypatch):
    monkeypatch.setattr(attention, "masked", lambda q, causal: {})
    assert error(row, causal=True) > FAR


@each_row
@pytest.mark.parametrize("mode", [0, 1, 3, 4])
def test_a_wrong_sparse_mode_is_seen(row, mode, monkeypatch):
    monkeypatch.setattr(attention, "CAUSAL", mode)
    with pytest.raises(Limit, match="mask"):
        error(row, causal=True)


@pytest.mark.parametrize("edge", [1024, 130])
def test_a_triangle_of_another_size_is_seen(edge, monkeypatch):
    monkeypatch.setattr(attention, "causal_mask", lambda device: torch.ones(edge, edge, device=device).triu(1).bool())
    with pytest.raises(Limit, match="triangle of 2048"):
        error("fusion", causal=True)


def test_an_inverted_mask_is_seen(monkeypatch):
    """True leaves out, other than in torch."""
    whole = attention.causal_mask(torch.device("npu"))
    monkeypatch.setattr(attention, "causal_mask", lambda device: ~whole)
    with pytest.raises(Limit, match="triangle of 2048"):
        error("fusion", causal=True)


def vendors(launches) -> dict[str, int]:
    return {name: count for name, count in launches.counts.items() if name.startswith("npu::")}


@each_row
@pytest.mark.parametrize("causal", [False, True])
def test_one_operator_attends_and_no_mask_is_made(row, causal, launches):
    """Nor are keys repeated for the heads that share them: the operator gets them as they are, in one piece."""
    given = on_device(*inputs())
    getattr(attention, row)(*given, causal=causal)  # the triangle is made once for all layers
    launches.clear()
    getattr(attention, row)(*given, causal=causal)
    assert sum(vendors(launches).values()) == 1
    copies = {"aten::clone": 2} if row == "infer" else {}  # of q and v, which lie in a projection
    others = {name: count for name, count in launches.counts.items() if count and not name.startswith("npu::")}
    assert others == copies


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize("branches", [1, 2])
def test_attention_in_mxfp8(branches, launches):
    """An operator attends for each branch, to all segments, and three quantize for it."""
    assert error("mx", branches=branches, text=37) < 2 * FAR  # FP8 loses more than bfloat16: 0.056
    asked = vendors(launches)
    assert asked == {"npu::npu_dynamic_mx_quant": 3 * branches, "npu::npu_fused_infer_attention_score_v2": branches}
    assert error("mx", causal=True) < FAR and error("mx", want_lse=True) < FAR
    assert vendors(launches) == asked | {"npu::npu_fusion_attention": 2}


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize("tokens", [1, 20, 21])
@pytest.mark.parametrize("text", [0, 64])
def test_few_queries_in_mxfp8(tokens, text):
    """Four heads share one of keys: 20 queries are the most whose scales are laid out by heads of keys."""
    assert error("mx", text=text, tokens=tokens) < 2 * FAR


def half(dtype: torch.dtype = torch.bfloat16) -> float:
    """A key of value 0, and 1,808 that weigh e^-7.5 of it each, together as much as it, of value 1.9: exactly 0.95."""
    q, k, v = (torch.zeros(1, tokens, 1, 64) for tokens in (1, 1809, 1809))
    q[..., 0], k[:, 0, :, 0], v[:, 1:] = 8, 7.5, 1.9
    q, k, v = (x.to("npu", dtype) for x in (q, k, v))
    found, _ = attention.mx(q, [Segment(k, v)])
    assert found.dtype == dtype
    return float(found.float().cpu().mean())


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_weights_and_large_numbers_count_in_mxfp8(dtype):
    assert half(dtype) == pytest.approx(0.95, abs=0.03)


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize("fault", [("MOST", 1.0), ("NO_OVERFLOW", 0)])
def test_lost_weights_and_cut_numbers_are_seen(fault, monkeypatch):
    attention.most.cache_clear()
    monkeypatch.setattr(attention, *fault)
    assert abs(half() - 0.95) > 0.05
    attention.most.cache_clear()


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize(("few", "tokens"), [(79, 20), (84, 21)])
def test_few_queries_are_counted_exactly(few, tokens, monkeypatch):
    monkeypatch.setattr(attention, "FEW", few)
    with pytest.raises(Limit, match="scales"):
        error("mx", tokens=tokens)


@pytest.mark.skipif(CHIP != "Ascend950", reason="MX is the 950's")
@pytest.mark.parametrize("mode", ["BY_TOKEN", "BY_CHANNEL"])
def test_a_wrong_mode_of_scales_is_seen(mode, monkeypatch):
    monkeypatch.setattr(attention, mode, 0)
    with pytest.raises(Limit, match="blocks"):
        error("mx")


def test_a_mask_of_each_call_s_own_is_seen(launches, monkeypatch):
    monkeypatch.setattr(attention, "causal_mask", attention.causal_mask.__wrapped__)
    given = on_device(*inputs())
    launches.clear()
    attention.fusion(*given, causal=True)
    assert launches.counts["aten::triu"] == 1


@pytest.mark.skipif(CHIP == "Ascend950", reason="the 950 has no such operator")
@pytest.mark.parametrize("strided", range(3))
def test_a_strided_input_is_seen(strided):
    given = [torch.zeros(1, 4, 4, 16, dtype=torch.bfloat16, device="npu")[:, :, :2] for _ in range(3)]
    given = [x if i == strided else x.contiguous() for i, x in enumerate(given)]
    with pytest.raises(Limit, match="contiguous"):
        torch_npu.npu_fused_infer_attention_score(*given, num_heads=2, num_key_value_heads=2, input_layout="BSND")


@pytest.fixture
def mindiesd(monkeypatch) -> list[dict]:
    """What MindIE-SD's function, for which the rehearsal has a stand-in, is called with."""
    calls, was = [], attention_forward.attention_forward

    def recorded(query, key, value, attn_mask=None, scale=None, fused=True, head_first=False, **kwargs):
        calls.append(kwargs)
        return was(query, key, value, attn_mask, scale, fused, head_first, **kwargs)

    monkeypatch.setattr(attention_forward, "attention_forward", recorded)
    return calls


@pytest.mark.skipif(CHIP == "Ascend950", reason="MindIE-SD has none for the 950")
def test_mindiesd_s_laser(mindiesd):
    """Named, with nothing left to MindIE-SD's choice; what it does not have is another operator's."""
    row = attention.build_laser(probe())
    given = inputs(2, 37)
    ours, _ = row(*on_device(*given))
    exact, _ = reference.attention(given[0].float(), [Segment(*(x.float() for x in part)) for part in given[1]])
    assert float((ours.cpu().float() - exact).norm() / exact.norm()) < FAR
    assert mindiesd == [{"opt_mode": "manual", "op_type": "ascend_laser_attention", "layout": "BNSD"}]
    assert row(*on_device(*given), want_lse=True)[1] is not None and len(mindiesd) == 1


def test_another_signature_of_mindiesd_is_told(mindiesd, monkeypatch):
    monkeypatch.setattr(attention_forward, "attention_forward", lambda q, k, v, scale: None)
    with pytest.raises(Unavailable, match=r"takes q, k, v, scale; install mindiesd 3.1"):
        attention.build_laser(probe())


@each_row
def test_heads_in_another_order_are_seen(row, monkeypatch):
    """Neighbouring heads share keys; others have let every second one share."""
    joined = attention.joined
    monkeypatch.setattr(
        attention, "joined", lambda q, segments, causal: tuple(x.flip(2) for x in joined(q, segments, causal))
    )
    assert error(row) > FAR
