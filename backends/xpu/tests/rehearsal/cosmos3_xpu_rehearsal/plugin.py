from __future__ import annotations

from dataclasses import replace

from cosmos3_xpu import plugin

from cosmos3_core.contract import Backend, Device, Kernel, hookimpl

UNREHEARSED = {
    "triton": "it is interpreted in backends/triton/tests, never compiled for a device",
    "xpu": "torch's allocator and copies of XPU are not in a build for processors; backends/xpu/tests has a stand-in",
    "xpu-graph": "a build of torch for processors records nothing; backends/xpu/tests has a stand-in",
}
"""Rows that do not run here, by name or by what they need, and why."""


def probe() -> Device:
    from .operators import register

    register()
    arc = replace(plugin_device(), versions={"rehearsed": "on the host's processor"})
    return arc


def plugin_device() -> Device:
    """What the real probe says of one Arc B580."""
    name = "Intel(R) Arc(TM) B580 Graphics"
    return Device(arch="bmg-g21", name=name, count=1, memory=12 * 2**30, unified=False)


def rehearsed(row: Kernel) -> Kernel:
    """The row, or one that says why it does not run here."""
    reason = next((UNREHEARSED[name] for name in (row.name, *row.needs) if name in UNREHEARSED), None)
    if reason is None or (row.op, row.name) == ("memory", "torch"):
        return row
    return replace(row, needs=(), refuse=lambda ask: f"unrehearsed: {reason}")


@hookimpl
def cosmos3_backend() -> Backend:
    found = plugin.cosmos3_backend()
    rows = tuple(rehearsed(row) for row in found.kernels)
    return replace(found, torch_device="cpu", collectives="gloo", probe=probe, kernels=rows)
