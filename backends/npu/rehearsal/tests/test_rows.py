"""Rows: norms of inputs with gaps between their rows, and the limits of the gate that makes rows in int8. A fault of
each is planted, and seen."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from conftest import CHIP
from cosmos3_npu import layers, quantized, rows
from cosmos3_npu.plugin import probe
from rehearsal.emulated.limits import Limit

from cosmos3_core.reference import ops as reference

HEADS, KV_HEADS, HEAD_DIM, TOKENS = 4, 2, 64, 5
FAR = 0.05
"""A relative error that no rounding makes."""


def projection(dtype: torch.dtype) -> torch.Tensor:
    """[1, S, H + 2K, D], of which queries, keys and values are views."""
    made = torch.Generator().manual_seed(3)
    scale = torch.arange(1, TOKENS + 1).view(1, -1, 1, 1)
    return (torch.randn(1, TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM, generator=made) * scale).to(dtype)


def far(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(float((ours.cpu().float() - theirs).norm() / theirs.norm()) for ours, theirs in pairs)


def of_heads(dtype: torch.dtype, once: bool = False) -> float:
    """The error of norm_rope on views of a projection; `once` is that of the 950's composite."""
    qkv, weights = (
        projection(dtype),
        (torch.linspace(0.5, 2, HEAD_DIM).to(dtype), torch.linspace(2, 1, HEAD_DIM).to(dtype)),
    )
    angles = torch.linspace(0, 3, TOKENS * HEAD_DIM).view(1, TOKENS, HEAD_DIM)
    table = angles.cos().to(dtype), angles.sin().to(dtype)

    def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split([HEADS, KV_HEADS, KV_HEADS], dim=2)[:2]

    heads = zip(split(qkv.float()), (weight.float() for weight in weights), strict=True)
    exact = reference.norm_rope([*heads], *(x.float() for x in table), eps=1e-6)
    given = [*zip(split(qkv.to("npu")), (weight.to("npu") for weight in weights), strict=True)]
    if once:
        by_head = [weight.expand(count, -1) for weight, count in zip(weights, (HEADS, KV_HEADS), strict=True)]
        row = layers.HeadNorms(torch.cat(by_head).to("npu"))
    else:
        row = rows.build_norm_rope(probe())
    return far(row(given, *(x.to("npu") for x in table), eps=1e-6), exact)


def of_rows(dtype: torch.dtype, residual: bool) -> float:
    """The error of rms_norm on rows with gaps between them."""
    x = projection(dtype)[0].flatten(1)
    width = HEADS * HEAD_DIM
    weight = torch.linspace(0.5, 2, width).to(dtype)
    added = x[:, -width:] if residual else None
    exact = reference.rms_norm(
        x[:, :width].float(), weight.float(), eps=1e-6, residual_MI=None if added is None else added.float()
    )
    on_device = x.to("npu")
    found = rows.build_rms_norm(probe())(
        on_device[:, :width], weight.to("npu"), eps=1e-6, residual_MI=on_device[:, -width:] if residual else None
    )
    return far([*found], [*exact])


def of_silu(dtype: torch.dtype) -> float:
    x, width = projection(dtype)[0].flatten(1), HEADS * HEAD_DIM
    weight = torch.linspace(0.5, 2, width)
    exact = reference.norm_silu(x[:, :width].float(), weight)
    return far([rows.norm_silu(x.to("npu")[:, :width], weight.to("npu", dtype))], [exact])


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STRIDED = {f"heads {dtype}": (of_heads, dtype) for dtype in DTYPES}
STRIDED |= {f"rows {dtype} {residual}": (of_rows, dtype, residual) for dtype in DTYPES for residual in (False, True)}
STRIDED |= {f"silu {dtype}": (of_silu, dtype) for dtype in DTYPES}
if CHIP == "Ascend950":
    STRIDED |= {f"heads once {dtype}": (of_heads, dtype, True) for dtype in DTYPES[1:]}
OWN = {f"silu {dtype}" for dtype in DTYPES[1:]}
"""Where what is normed is of the row's own making, and has no gaps: numbers in fp32, and sums that come rounded."""
if CHIP == "Ascend950":
    OWN |= {f"rows {dtype} True" for dtype in DTYPES[1:]}


@pytest.mark.parametrize("case", STRIDED)
def test_gaps_between_rows_are_no_rows(case):
    error, *options = STRIDED[case]
    assert error(*options) < FAR


def without_gaps(operator):
    """An operator that reads its inputs as if their rows lay one behind the other."""

    def read(x: object) -> object:
        if not isinstance(x, torch.Tensor) or x.is_contiguous():
            return x
        return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), x.storage_offset())

    return lambda *arguments, **options: operator(*map(read, arguments), **options)


@pytest.mark.parametrize("case", STRIDED)
def test_a_norm_that_takes_gaps_for_rows_is_seen(case, monkeypatch):
    error, *options = STRIDED[case]
    for name in ("npu_rms_norm", "npu_add_rms_norm"):
        monkeypatch.setattr(torch_npu, name, without_gaps(getattr(torch_npu, name)))
    assert (error(*options) > FAR) is (case not in OWN)


def gated(width: int, launches) -> bool:
    """Whether one operator makes the gate and its rows. They are right."""
    made = torch.Generator().manual_seed(width)
    x = torch.randn(3, 2 * width, generator=made).bfloat16()
    launches.clear()
    found = quantized.Int8(grouped=CHIP != "Ascend950").gate(x.to("npu"))
    asked = {name for name, count in launches.counts.items() if count and name.startswith("npu::")}
    exact = reference.gate(x.float(), activation="silu")
    assert far([found.values_MI.cpu().float() * found.scales.cpu().unsqueeze(1)], [exact]) < FAR
    assert asked in ({"npu::npu_dequant_swiglu_quant"}, {"npu::npu_swiglu", "npu::npu_dynamic_quant"})
    return "npu::npu_swiglu" not in asked


WIDTHS = {10432: True, 10496: True, 10560: False, 10464: False, 64: True, 96: False, 12288: False}
"""Numbers of a gate, and whether the 910s make it and its rows at once: up to 10,496 of them, a multiple of 64."""


@pytest.mark.parametrize("width", WIDTHS)
def test_gates_that_are_quantized_at_once(width, launches):
    assert gated(width, launches) is (WIDTHS[width] or CHIP == "Ascend950")


@pytest.mark.skipif(CHIP == "Ascend950", reason="the 950 has no such limits")
@pytest.mark.parametrize(
    "fault", [("WIDEST_GATE", 10495), ("WIDEST_GATE", 10560), ("GATE_STEP", 128), ("GATE_STEP", 32)]
)
def test_another_limit_is_seen(fault, launches, monkeypatch):
    monkeypatch.setattr(quantized, *fault)
    with pytest.raises((AssertionError, Limit)):
        for width in WIDTHS:
            test_gates_that_are_quantized_at_once(width, launches)
