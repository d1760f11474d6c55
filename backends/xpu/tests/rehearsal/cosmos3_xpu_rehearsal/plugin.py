from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cosmos3_xpu import plugin

from cosmos3_core.contract import Ask, Attention, Backend, Device, Kernel, Segment, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

HERE_ALONE = "torch has it for XPU alone, and a build for processors does not; backends/xpu/tests has a stand-in for it"
UNREHEARSED = {("memory", "xpu"): HERE_ALONE, ("capture", "xpu-graph"): HERE_ALONE} | {
    (row.op, row.name): "our own kernels are interpreted in backends/triton/tests, never compiled for the device"
    for row in plugin.ROWS
    if "triton" in row.needs
}
"""Rows that do not run here, by op and name, and why."""


def probe() -> Device:
    from .operators import register, widen

    register()
    widen()
    arc = replace(plugin_device(), versions={"rehearsed": "on the host's processor"})
    return arc


def plugin_device() -> Device:
    """What the real probe says of one Arc B580."""
    name = "Intel(R) Arc(TM) B580 Graphics"
    return Device(arch="bmg-g21", name=name, count=1, memory=12 * 2**30, unified=False)


def refused(reason: str) -> Callable[[Ask], str | None]:
    return lambda ask: f"unrehearsed: {reason}"


def ark_attention(device: Device) -> Attention:
    """auto-round-lib's attention, which gives a log-sum-exp on XPU alone: here one is made beside it."""
    from cosmos3_xpu.attention import build_ark

    from cosmos3_core.contract.attention import joined, log_sum_exp

    attention = build_ark()

    def ark(
        q_BSHD: Tensor, segments: Sequence[Segment], *, causal: bool = False, want_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        k_BTKD, _ = joined(q_BSHD, segments, causal)
        out_BSHD, _ = attention(q_BSHD, segments, causal=causal)
        return out_BSHD, log_sum_exp(q_BSHD, k_BTKD, causal) if want_lse else None

    return ark


def rehearsed(row: Kernel) -> Kernel:
    """The row, or one that says why it does not run here."""
    if reason := UNREHEARSED.get((row.op, row.name)):
        return replace(row, needs=(), refuse=refused(reason))
    return replace(row, build=ark_attention) if (row.op, row.name) == ("attention", "ark") else row


@hookimpl
def cosmos3_backend() -> Backend:
    found = plugin.cosmos3_backend()
    rows = tuple(rehearsed(row) for row in found.kernels)
    return replace(found, torch_device="cpu", collectives="gloo", probe=probe, kernels=rows)
