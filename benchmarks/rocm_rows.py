"""cosmos3-rocm's own kernels on an NVIDIA GPU, beside the best row of cosmos3-cuda there: one source, two devices.

    PYTHONPATH=backends/cuda:backends/triton:backends/rocm python -m benchmarks.rocm_rows --out FILE

Attention in bf16 and in FP8 and a layer's four products in FP8, at Cosmos3-Nano's sizes. rocm's rows are built for the
GPU that is here ("rocm"), with the launches that ship for it; and once more as they are launched on an MI300X, with its
tiles and without a copy engine for them ("rocm, as gfx942"). Every contestant is compared with fp32 first. They take
turns; a ratio is the time of cuda's fastest row over ours, and `asked` is how much the project asks of "rocm".

No number here says anything of a GPU of AMD's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cosmos3_cuda import plugin as cuda
from cosmos3_rocm import kernels as rocm
from cosmos3_triton import attention, attention_8bit, linears
from cosmos3_triton.tables import Table

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import Backend, Device, InputError
from cosmos3_core.plan import Want, resolve
from cosmos3_core.quant import FORMATS
from cosmos3_core.testing import cases

from . import attention as attending
from .common import alternate, environment, report, waiting

ASKED = {"attention none": 0.75, "attention fp8": 0.95, "pack_linear fp8": 0.9}
PROJECTIONS = {"qkv": (6144, 4096), "out": (4096, 4096), "up": (24576, 4096), "down": (4096, 12288)}
"""Outputs and inputs of Nano's matrices."""
HEADS, KV_HEADS, HEAD_DIM, TEXT = 32, 8, 128, 512
WORK = 2e13
"""Floating-point operations of a round, in which a contestant is called often enough for the clock."""
OURS = ("rocm", "rocm, as gfx942")
Calls = dict[str, Callable[[], Any]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[9360, 18720, 44160], help="media tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=110, help="after which nothing else is begun")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def as_gfx942(arch: str) -> Table:
    """An MI300X's launches for a GPU of NVIDIA's that has floats of 8 bits, of OCP's, and no copy engine for tiles."""
    return replace(rocm.find_table("gfx942"), arch="sm_89")


def wanted(kernels: dict[str, str] | None = None, formats: dict[str, str] | None = None) -> Want:
    return Want.of(describe("nano").config, "bfloat16", kernels, formats)


def serving(backend: Backend, found: Device, op: str, format: str) -> dict[str, Any]:
    """What cuda's rows that serve build."""
    built = {}
    for row in backend.kernels:
        if row.op == op and format in row.formats and not row.widens:
            try:
                resolve(wanted({op: row.name}, {} if format == "none" else {op: format}), backend, found)
            except InputError:
                continue
            built[f"cuda {row.name}"] = row.build(found)
    return built


def ours(found: Device, op: str, format: str) -> dict[str, Any]:
    """What rocm's row builds of it, for both tables."""
    rows = rocm.rows((found.arch,), (found.arch,))
    name = {"attention none": "triton", "attention fp8": "triton-fp8"}.get(f"{op} {format}", "triton-scaled-mm")
    (row,) = (row for row in (*rows.attention, *rows.linears) if (row.op, row.name) == (op, name))
    table = as_gfx942(found.arch)
    build: dict[str, Callable[[Table], Any]] = {
        "triton": attention.Flash,
        "triton-fp8": partial(attention_8bit.build_fp8, int8=True),
        "triton-scaled-mm": linears.build_scaled_mm,
    }
    return dict(zip(OURS, (row.build(found), build[name](table)), strict=True))


def attended(backend: Backend, found: Device, format: str, rows: int) -> tuple[Calls, dict[str, float], float]:
    """Contestants, their errors, and how many operations a call is."""
    args = argparse.Namespace(dtype="bfloat16", heads=HEADS, kv_heads=KV_HEADS, text=TEXT)
    q, segments = attending.inputs(args, rows, "cuda")
    built = serving(backend, found, "attention", format) | ours(found, "attention", format)
    lost = cases.allowed(FORMATS[format]) if format in FORMATS else 0.0
    errors = attending.errors({name: (op, 4 * lost) for name, op in built.items()}, q, segments, "bfloat16")
    work = 4 * rows * (rows + TEXT) * HEADS * HEAD_DIM
    return {name: partial(op, q, segments) for name, op in built.items()}, errors, work


def multiplied(backend: Backend, found: Device, projection: str, rows: int) -> tuple[Calls, dict[str, float], float]:
    """The same of a projection in FP8; quantizing its activations is part of the call."""
    stream = torch.Generator("cuda").manual_seed(rows)
    out, width = PROJECTIONS[projection]
    x = torch.randn(rows, width, device="cuda", generator=stream).bfloat16()
    weight = torch.randn(out, width, device="cuda", generator=stream).div_(width**0.5).bfloat16()
    built = serving(backend, found, "pack_linear", "fp8") | ours(found, "pack_linear", "fp8")
    products = {name: op(weight.clone(), None, format="fp8") for name, op in built.items()}
    exact, bound = F.linear(x[:512].float(), weight.float()).cpu(), cases.allowed(FORMATS["fp8"]) + 2**-6
    errors = {name: cases.Loss.of(linear(x)[:512], exact).whole for name, linear in products.items()}
    if wrong := {name: error for name, error in errors.items() if not error <= bound}:
        raise SystemExit(f"{projection}: relative errors {wrong}, and {bound:.2e} is allowed; nothing is timed")
    return {name: partial(linear, x) for name, linear in products.items()}, errors, 2 * rows * out * width


def often(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def round() -> None:
        for _ in range(times):
            call()

    return round


def measured(
    name: str,
    rows: int,
    calls: Calls,
    errors: dict[str, float],
    work: float,
    *,
    wait: Callable[[], None],
    repeats: int,
) -> dict[str, Any]:
    """Seconds of a call, TFLOP/s and ratios. Each has a round of its own before the one that counts: what ran before
    decides how warm the GPU is and how fast its clock, and the contestants draw very different power."""
    times = math.ceil(WORK / work)
    turns = {(key, counts): often(call, times) for key, call in calls.items() for counts in (False, True)}
    rounds = alternate(turns, wait, repeats)
    medians = {key: rounds[key, True]["median_s"] / times for key in calls}
    best = min((key for key in medians if key.startswith("cuda ")), key=lambda key: medians[key])
    return {
        "work": name,
        "rows": rows,
        "best_of_cuda": best,
        "ratio": medians[best] / medians[OURS[0]],
        "ratio_as_gfx942": medians[best] / medians[OURS[1]],
        "seconds": medians,
        "tflops": {key: work / median / 1e12 for key, median in medians.items()},
        "relative_error": errors,
    }


def works(backend: Backend, found: Device, sizes: list[int]) -> Iterator[tuple[str, int, str, Callable[[], Any]]]:
    """What is measured, smaller sizes first: name, rows, what is asked of it, and what prepares it."""
    for rows in sorted(sizes):
        for projection in PROJECTIONS:
            prepare = partial(multiplied, backend, found, projection, rows)
            yield f"fp8 {projection}", rows, "pack_linear fp8", prepare
        for format in ("none", "fp8"):
            prepare = partial(attended, backend, found, format, rows)
            yield f"attention {format}", rows, f"attention {format}", prepare


@torch.inference_mode()
def main() -> None:
    args, begin = arguments(), time.monotonic()
    backend = cuda.cosmos3_backend()
    found = backend.probe()
    wait = waiting(resolve(wanted(), backend, found).build_ops().memory, "cuda")
    results: list[dict[str, Any]] = []
    left: list[str] = []
    for name, rows, asked, prepare in works(backend, found, args.rows):
        if time.monotonic() - begin > args.seconds:
            left.append(f"{name}, {rows} rows")
            continue
        one = measured(name, rows, *prepare(), wait=wait, repeats=args.repeats)
        one |= {"asked": ASKED[asked], "met": one["ratio"] >= ASKED[asked]}
        results.append(one)
        print(
            f"{name:16s} {rows:6d} rows: {one['ratio']:.3f} of {one['best_of_cuda']} ({ASKED[asked]} asked), "
            f"{one['ratio_as_gfx942']:.3f} as gfx942",
            flush=True,
        )
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        whole = {"benchmark": "rocm_rows", "settings": settings, "results": results, "left_out": left}
        report(whole | {"environment": environment("cuda", found)}, args.out, quiet=True)
    print(f"{sum(one['met'] for one in results)} of {len(results)} met; left out: {left or 'nothing'}")


if __name__ == "__main__":
    main()
