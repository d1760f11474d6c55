"""A decoder layer's four projections: every linear row that serves on this device, beside torch's bf16 linear.

    python -m benchmarks.gemm --backend cuda --out benchmarks/results/gemm-nano-h100.json

Weights and activations are normally distributed. A row's error against fp32 is checked against the conformance kit's
bound before anything is timed. Each row takes turns with the peer alone, because every recording keeps what it writes;
both replay, as the engine does, products with different weights, as many as leave no weight in a cache. A row's ratio
is to the peer's time in the row's own turns; the peer's entry has the median of all turns. Quantizing the activations
is part of the time, and so is the gate after the projection that makes [gate | up]: the row's own where it has one,
else the backend's op.

`--rows 1 64 4096 30000 --formats w4a16 mxfp8 fp8 --seconds 150` measures what a machine that is lent for minutes can:
what does not begin in time is listed as left out, and --out has what there is after every size.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import Backend, Device, InputError, Linear, Ops, PackLinear
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.plan import Want, choose_backend, resolve
from cosmos3_core.quant import FORMATS
from cosmos3_core.testing import cases

from .common import alternate, environment, report, seconds, waiting

CACHED = 200_000_000
"""Weights that many elements in all follow one another, so that even in 4 bits none stays in a cache."""
ROUND_SECONDS = 0.01
CHECKED_ROWS = 1024
PEER = ("torch bf16", "none")

Key = tuple[str, str]
"""A row's name and a format."""
Packers = dict[Key, PackLinear]
Product = Callable[[Tensor], Tensor]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 9360, 44160], help="tokens")
    parser.add_argument("--formats", nargs="+", choices=["none", *FORMATS], help="without it all that rows have")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="without it all rows")
    parser.add_argument("--projections", nargs="+", default=["qkv", "out", "up", "down"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="after which no other size is begun")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def projections(c: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's matrices, as `model.weights` stacks them."""
    return {
        "qkv": (c.query_width + 2 * c.kv_width, c.hidden_size),
        "out": (c.hidden_size, c.query_width),
        "up": (c.intermediate_size * (2 if c.gated else 1), c.hidden_size),
        "down": (c.hidden_size, c.intermediate_size),
    }


def rows_of(
    config: TransformerConfig, backend: Backend, found: Device, args: argparse.Namespace
) -> tuple[Packers, dict[str, str]]:
    """What packs a weight, by row and format; and why other rows do not serve."""
    serving, refused = {}, {}
    for row in backend.kernels:
        if row.op != "pack_linear" or (args.kernels and row.name not in args.kernels):
            continue
        for format in row.formats:
            if args.formats and format not in args.formats:
                continue
            want = Want.of(config, "bfloat16", {"pack_linear": row.name}, {"pack_linear": format})
            packed = format in FORMATS and FORMATS[format].static
            try:
                resolve(replace(want, packed=packed), backend, found)
            except InputError as error:
                refused[f"{row.name} {format}"] = error.found
            else:
                serving[row.name, format] = row.build(found)
    return serving, refused


def linears(serving: Packers, out: int, width: int, device: str) -> Iterator[tuple[Tensor, dict[Key, Linear]]]:
    """Weights one after another, each with its packed forms."""
    stream = torch.Generator(device).manual_seed(out + width)
    for _ in range(math.ceil(CACHED / (out * width))):
        weight = torch.randn(out, width, device=device, generator=stream).div_(width**0.5).bfloat16()
        handed = {format: cases.handed(weight, FORMATS.get(format)) for _, format in serving}
        yield weight, {key: pack(handed[key[1]], None, format=key[1]) for key, pack in serving.items()}


def with_gate(linear: Product, ops: Ops) -> Product:
    """The linear and the gate after it."""
    return lambda x: ops.gate(linear(x), activation="silu")


def error_of(linear: Product, x: Tensor, weight: Tensor, format: str, gated: bool) -> float:
    """Relative, of the first rows of the whole product. Fails beyond the kit's bound."""
    exact = F.linear(x[:CHECKED_ROWS].float(), weight.float())
    if gated:
        gate, up = exact.chunk(2, dim=1)
        exact = F.silu(gate) * up
    error = cases.Loss.of(linear(x)[:CHECKED_ROWS], exact.cpu()).whole
    bound = cases.allowed(FORMATS.get(format)) + cases.MULTIPLE * 2**-8
    if not error <= bound:
        raise SystemExit(f"{format}: the relative error is {error:.2e}, and {bound:.2e} is allowed; nothing is timed")
    return error


def replayed(
    capture: Callable, products: list[Product], x: Tensor, wait: Callable[[], None]
) -> tuple[Callable[[], None], int]:
    """What calls the products one after another, and how often: as often as makes a round long enough to time."""

    def each(_: Tensor) -> list[Tensor]:
        for product in products:
            y = product(x)
        return [y]

    replay, small = capture(each), x[:1, :1]  # a replay copies its arguments, and x stays as it is
    replay(small), replay(small)
    times = math.ceil(ROUND_SECONDS / seconds(lambda: replay(small), wait))

    def all_of_them() -> None:
        for _ in range(times):
            replay(small)

    return all_of_them, times * len(products)


def measure(
    name: str,
    shape: tuple[int, int],
    config: TransformerConfig,
    serving: Packers,
    ops: Ops,
    args: argparse.Namespace,
    device: str,
) -> Iterator[list[dict[str, Any]]]:
    """For each number of rows, what all contestants take."""
    (out, width), gated = shape, name == "up" and config.gated
    wait = waiting(ops.memory, device)

    def finished(linear: Product) -> Product:
        return with_gate(linear, ops) if gated else linear

    packed = [
        (
            weight,
            {key: finished(linear) for key, linear in forms.items()}
            | {PEER: finished(partial(F.linear, weight=weight))},
        )
        for weight, forms in linears(serving, out, width, device)
    ]
    for rows in args.rows:
        x = torch.randn(rows, width, device=device, generator=torch.Generator(device).manual_seed(rows)).bfloat16()
        weight, first = packed[0]
        errors = {key: error_of(linear, x, weight, key[1], gated) for key, linear in first.items()}
        products = {key: [forms[key] for _, forms in packed] for key in first}
        peer, peers = replayed(ops.capture, products[PEER], x, wait)
        medians, ratios, of_peer = {}, {PEER: 1.0}, []
        for key, some in products.items():
            if key == PEER:  # it has a turn beside each row
                continue
            row, calls = replayed(ops.capture, some, x, wait)
            times = alternate({PEER: peer, key: row}, wait, args.repeats)
            medians[key], beside = times[key]["median_s"] / calls, times[PEER]["median_s"] / peers
            ratios[key] = beside / medians[key]
            of_peer += [one / peers for one in times[PEER]["rounds_s"]]
        medians[PEER] = statistics.median(of_peer)
        yield [
            {
                "projection": name,
                "rows": rows,
                "outputs": out,
                "inputs": width,
                "kernel": key[0],
                "format": key[1],
                "relative_error": errors[key],
                "median_s": median,
                "tflops": 2 * rows * out * width / median / 1e12,
                "times_peer": ratios[key],
            }
            for key, median in medians.items()
        ]


@torch.inference_mode()
def main() -> None:
    args, begin = arguments(), time.monotonic()
    config = describe(args.model).config
    backend, found, _ = choose_backend(args.backend)
    serving, refused = rows_of(config, backend, found, args)
    ops, device = resolve(Want.of(config, "bfloat16"), backend, found).build_ops(), backend.torch_device
    results: list[dict[str, Any]] = []
    shapes = {name: shape for name, shape in projections(config).items() if name in args.projections}
    left = [f"{name}, {rows} rows" for name in shapes for rows in args.rows]
    for name, shape in shapes.items():
        for measured in measure(name, shape, config, serving, ops, args, device):
            results += measured
            left.remove(f"{name}, {measured[0]['rows']} rows")
            late = args.seconds is not None and time.monotonic() - begin > args.seconds
            report(
                {
                    "benchmark": "gemm",
                    "settings": {k: v for k, v in vars(args).items() if k != "out"},
                    "results": results,
                    "refused": refused,
                    "left_out": left,
                    "environment": environment(device, found),
                },
                args.out,
                quiet=bool(left) and not late,
            )
            if late:
                return


if __name__ == "__main__":
    main()
