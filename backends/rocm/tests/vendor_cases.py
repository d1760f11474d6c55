"""What the tests of cosmos3-rocm's vendor rows share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from cosmos3_rocm.plugin import ROWS
from devices import DEVICES

from cosmos3_core.contract import Ask
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import multiply
from cosmos3_core.testing import cases

RECORDS = Path(__file__).parent / "signatures"
WHEEL = RECORDS / "amd_aiter-0.1.7.post2.dev18.txt"
NEWER, OTHER = RECORDS / "aiter-repository-2026.txt", RECORDS / "aiter-repository-older.txt"
AITERS = {"wheel": [WHEEL], "newer": [WHEEL, NEWER]}
DEVICE = {"gfx942": DEVICES["mi300x"][1], "gfx950": DEVICES["mi350x"][1], "gfx1201": DEVICES["rx9070"][1]}
OUT, WIDTH, COUNT = 256, 384, 33


def row(op: str, name: str):
    (found,) = [row for row in ROWS if (row.op, row.name) == (op, name)]
    return found


def ask(arch: str = "gfx950", **changed) -> Ask:
    """What the plan asks for Nano's layers."""
    nano = {"op": "attention", "heads": 32, "kv_heads": 8, "head_dim": 128, "hidden": 4096, "inner": 12288}
    return Ask(**{"device": DEVICE[arch], "dtype": "bfloat16", **nano} | changed)


def problem(format: str, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16):
    """(activations, packed weight, bias), with an output 50 times larger than the others, a row of zeros, and a weight
    that has -0."""
    weight = cases.normal(OUT, width, seed=1) / width**0.5
    weight[3] *= 50
    weight[5, ::7] = -0.0
    x = cases.normal(COUNT, width, seed=3).to(dtype)
    x[4] = 0
    return x, cases.packed(weight.to(dtype), FORMATS[format]), cases.normal(OUT, seed=2).to(dtype)


def distance(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the results, each output by its own size, as a share."""
    scale = exact.float().norm(dim=0)
    return float(((y.float() - exact.float()) / scale).norm() / (exact.float() / scale).norm())


def bound(format: str) -> float:
    """Of a product of the same packed weight: what bf16 loses, and another rounding of the activations."""
    return 0.006 + (cases.allowed(FORMATS[format]) / 10 if FORMATS[format].activations else 0)


def made(name: str, format: str, arch: str = "gfx950", **device):
    op = row("pack_linear", name).build(replace(DEVICE[arch], **device))
    x, packed, bias = problem(format)
    return op(packed, bias, format=format), x, multiply(x.float(), packed, bias)
