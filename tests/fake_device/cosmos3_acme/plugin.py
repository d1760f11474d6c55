from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

from cosmos3_core.contract import API, OPS, Ask, Backend, Delegate, Device, Kernel, hookimpl

FAULT = os.environ.get("COSMOS3_ACME_FAULT", "")

if FAULT == "import_takes_5_s":
    time.sleep(5)
if FAULT == "imports_torch":
    import torch  # noqa: F401
if FAULT == "prints":
    print("ACME kernels, all rights reserved")


def probe() -> Device:
    if FAULT == "probe_raises":
        raise OSError("libacme.so.3 not found")
    if FAULT == "probe_takes_5_s":
        time.sleep(5)
    if FAULT == "probe_hangs_forks":
        os.register_at_fork(after_in_child=lambda: time.sleep(600))
    elif FAULT.startswith("probe_") and FAULT not in ("probe_seeds", "probe_takes_5_s"):
        from .kinds import CHANGES

        CHANGES[FAULT.removeprefix("probe_")]()
    if FAULT == "probe_seeds":
        import torch

        torch.manual_seed(0)
    return Device(arch="acme1", name="ACME One", count=1, memory=8 * 2**30, unified=True, versions={"driver": "3.1"})


def needs_head_dim_128(ask: Ask) -> str | None:
    if ask.head_dim in (0, 128) or FAULT == f"claims_head_dim_{ask.head_dim}":
        return None
    if FAULT == "refuses_without_reason":
        return ""
    if FAULT == "refuse_raises":
        raise ValueError(ask.head_dim)
    return f"written for heads of 128, and these are {ask.head_dim} wide"


COLLECTIVES = (
    "maximum_is_a_sum",
    "processes_of_all",
    "parts_are_equal",
    "one_buffer_to_gather",
    "swapped_ring",
    "part_of_all",
)


def faulty_collectives(device: Device):
    from . import collectives

    return getattr(collectives, FAULT)()


def row(op: str, name: str, **options) -> Kernel:
    def build(device: Device):
        from . import faults, kernels

        return faults.plant(FAULT, op, getattr(kernels, name))

    return Kernel(op=op, name=name, build=build, arch=("acme1",), **options)


MLP = ("rms_norm", "pack_linear", "gate")
QUANTIZED = {"formats": ("none", "int8")}


def refuses_after(asks: int, row: Kernel) -> Callable[[Ask], str | None]:
    left = [asks]

    def refuse(ask: Ask) -> str | None:
        left[0] -= 1
        return row.refuse(ask) if left[0] > 0 else "not so often"

    return refuse


def refused(rows: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """With a fault by which rows do not run."""
    refusing = {
        "refuses_everything": lambda row: lambda ask: "not on a weekday",
        "refuses_gates": lambda row: (lambda ask: "not on a weekday") if row.op == "gate" else row.refuse,
        "refuses_a_dtype": lambda row: lambda ask: "not in 16 bits" if ask.dtype == "bfloat16" else row.refuse(ask),
        "refuses_a_format": lambda row: lambda ask: "not in 8 bits" if ask.format == "int8" else row.refuse(ask),
        "refuses_published_models": lambda row: lambda ask: "not of 128" if ask.head_dim == 128 else None,
        "refuses_after_a_while": lambda row: refuses_after(40, row),
    }
    if FAULT in refusing:
        return tuple(replace(row, refuse=refusing[FAULT](row)) for row in rows)
    if FAULT in ("arch_misspelt", "arch_of_one_misspelt"):
        some = ("gate",) if FAULT == "arch_of_one_misspelt" else OPS
        return tuple(replace(row, arch=("acme_1",)) if row.op in some else row for row in rows)
    if FAULT == "needs_what_nobody_has":
        return tuple(replace(row, needs=("libacme_kernels",)) if row.op == "gate" else row for row in rows)
    return rows


@hookimpl
def cosmos3_backend() -> Backend:
    dtypes = ("float32", "float64") if FAULT == "unknown_dtype" else ("float32", "bfloat16")
    few = Delegate("few_queries", below=0 if FAULT == "delegates_nothing" else 48)
    attention = {"refuse": needs_head_dim_128, "dtypes": dtypes}
    rows = (
        row("attention", "online_softmax", delegates=(few,), **attention),
        row("attention", "few_queries", **attention),
        row("attention", "int8_kv", formats=("int8",), prepares=True, **attention | {"dtypes": ("bfloat16",)}),
        row("pack_linear", "transposed", dtypes=dtypes, **QUANTIZED),
        row("rms_norm", "fused_norm", dtypes=dtypes),
        row("norm_rope", "complex_rope", dtypes=dtypes),
        row("gate", "exp_gate", dtypes=dtypes),
        row("patch_embed", "strided_convolution", dtypes=dtypes),
        row("norm_silu", "fused_norm_silu", dtypes=dtypes),
        row("project", "normed_heads", dtypes=dtypes, fuses=("rms_norm", "norm_rope"), **QUANTIZED),
        row("finish", "whole_half", dtypes=dtypes, fuses=MLP, **QUANTIZED),
        row("capture", "replayed", dtypes=dtypes, fresh=False),
        row("memory", "host", dtypes=dtypes),
    )
    if FAULT in COLLECTIVES:
        rows += (Kernel(op="comm", name="gloo", build=faulty_collectives),)
    rows = refused(rows)
    return Backend(name="acme", torch_device="cpu", collectives="gloo", probe=probe, kernels=rows, api=API)
