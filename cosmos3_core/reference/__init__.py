"""The reference backend: every op in eager torch, on the host's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..contract import (
    API,
    COMPOSITES,
    OPS,
    RECIPES,
    Ask,
    Backend,
    Comm,
    Device,
    Kernel,
    Memory,
    Ops,
    PackLinear,
    Tuning,
)
from ..quant import FORMATS, Format


def probe() -> Device:
    """The host: its processor's name and its memory in bytes."""
    import os
    import platform

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(arch=platform.machine(), name="CPU", count=1, memory=memory, unified=True)


EAGER_ROW, COMPOSED_ROW = "eager", "composed"
"""The name of the rows in eager torch."""


def _eager(op: str) -> Kernel:
    def build(device: Device) -> Any:
        from . import ops

        return getattr(ops, op)

    return Kernel(op=op, name=EAGER_ROW, build=build, notes="torch operations; correct on every device, fast on none")


def _linear(formats: Mapping[str, Format]) -> Kernel:
    """In every format, so that whatever a checkpoint holds runs on every device."""

    def build(device: Device) -> PackLinear:
        from .ops import LinearPacker

        return LinearPacker(formats)

    def refuse(ask: Ask) -> str | None:
        known = formats.get(ask.format)
        if known and known.static and not ask.packed:
            return f"{ask.format} takes the activations' scales from a quantized checkpoint, and this is none"
        return None

    notes = "torch operations; in a format it unpacks the weight in every call"
    return replace(_eager("pack_linear"), build=build, formats=("*",), packed=True, refuse=refuse, notes=notes)


def _composed(op: str) -> Kernel:
    def build(device: Device) -> Any:
        from . import layers

        return getattr(layers, op)

    notes = "of the rows chosen for the ops in it"
    return Kernel(op=op, name=COMPOSED_ROW, build=build, formats=("*",), packed=True, notes=notes)


def _memory(device: Device) -> Memory:
    from .memory import TorchMemory

    return TorchMemory()


def _comm(device: Device) -> Comm:
    from .comm import TorchComm

    return TorchComm()


SYSTEM = (
    Kernel(op="memory", name="torch", build=_memory, notes="torch's device-neutral interface to allocator and copies"),
    Kernel(op="comm", name="torch", build=_comm, notes="torch.distributed, on the backend's collectives"),
)
EAGER = tuple(op for op in OPS if op not in (*COMPOSITES, "memory", "comm"))


def with_defaults(ops: Ops) -> Ops:
    """The ops as a composite's row gets them: see contract.ops.PackProject."""
    from . import layers

    return replace(ops, project=layers.project, finish=layers.finish)


def build_ops() -> Ops:
    """Every op of the reference, built: what the other rows are judged against."""
    device = probe()
    return Ops(**{row.op: row.build(device) for row in BACKEND.kernels})


BACKEND = Backend(
    name="reference",
    torch_device="cpu",
    collectives="gloo",
    probe=probe,
    kernels=(
        *(_linear(FORMATS) if op == "pack_linear" else _eager(op) for op in EAGER),
        *map(_composed, COMPOSITES),
        *SYSTEM,
    ),
    # On a processor without bfloat16 arithmetic of its own, a convolution in it takes 37 to 130 times as long.
    tuning={"*": Tuning(codec_dtype="float32")},
    recipes=Path(__file__).parents[1] / RECIPES,
    api=API,
)


def kernels(formats: Sequence[Format] = ()) -> tuple[Kernel, ...]:
    """The rows of the reference, which know these formats beside the built-in ones."""
    if not formats:
        return BACKEND.kernels
    known = FORMATS | {format.name: format for format in formats}
    return tuple(_linear(known) if row.op == "pack_linear" else row for row in BACKEND.kernels)
