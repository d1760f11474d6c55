"""The backend rocm where there is no GPU of AMD's: the rows of our own kernels, in Triton's interpreter on the host for
the architecture that REHEARSED_ARCH names, or compiled for the NVIDIA GPU that is here, with the launches that ship for
that one. Rows that need a library or a driver of AMD's say that they are not rehearsed.
"""

from __future__ import annotations

import os
from dataclasses import replace

from cosmos3_rocm import kernels, plugin

from cosmos3_core.contract import Backend, Device, Kernel, hookimpl

ARCH = "REHEARSED_ARCH"
"""The environment variable with an architecture of AMD's, for the interpreter."""
PLACES = ("attention", "row_wise", "linears", "layers")


def on_nvidia() -> bool:
    import torch

    return torch.version.cuda is not None and torch.cuda.is_available()


def probe() -> Device:
    if on_nvidia():
        from cosmos3_cuda import plugin as cuda

        return cuda.probe()
    from interpreter import repair

    repair()
    arch = os.environ.get(ARCH, "gfx942")
    known = next((device for device in plugin.KNOWN if device.arch == arch), plugin.KNOWN[0])
    return replace(known, arch=arch, versions={"rehearsed": "on the host's processor"})


def nvidia_arch() -> tuple[str]:
    import torch

    return ("sm_{}{}".format(*torch.cuda.get_device_capability()),)


def rehearsed(row: Kernel, ours: dict[tuple[str, str], Kernel]) -> Kernel:
    """The row, or one that says why it is not rehearsed."""
    if found := ours.get((row.op, row.name)):
        return found
    reason = "unrehearsed: only our own kernels run where there is no GPU of AMD's"
    return replace(row, needs=(), refuse=lambda ask: reason)


@hookimpl
def cosmos3_backend() -> Backend:
    found, nvidia = plugin.cosmos3_backend(), on_nvidia()
    rows = kernels.rows(nvidia_arch(), nvidia_arch()) if nvidia else kernels.OURS
    ours = {(row.op, row.name): row for place in PLACES for row in getattr(rows, place)}
    return replace(
        found,
        torch_device="cuda" if nvidia else "cpu",
        collectives="gloo",
        probe=probe,
        kernels=tuple(rehearsed(row, ours) for row in found.kernels),
    )
