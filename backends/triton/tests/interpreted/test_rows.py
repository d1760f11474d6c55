"""The rows that xpu builds of our kernels, on the CPU in Triton's interpreter: under the conformance kit's own tests of
their ops, attention's with an eighth of the heads. Rows are built for a device that is not here, with the launches that
their backend ships for that one. Those of rocm have `make rehearse-rocm`."""
# ruff: noqa: F403

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cosmos3_xpu import plugin as xpu
from test_attention import BY_ID
from test_attention import check as check_attention

from cosmos3_core.contract import Device, Kernel
from cosmos3_core.testing.suite.gate import *
from cosmos3_core.testing.suite.norm_silu import *
from cosmos3_core.testing.suite.norms import *
from cosmos3_core.testing.suite.patches import *

ROWS = [row for row in xpu.ROWS if "triton" in row.needs]
ARCH = "bmg-g21"
"""The device rows are built for. All others have its tiles; warps and stages are nothing to the interpreter."""
DTYPE = "bfloat16"
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def row_of(op: str, arch: str) -> Kernel:
    (row,) = (row for row in ROWS if row.op == op and arch in row.arch)
    return row


def device_of(arch: str) -> Device:
    return Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False)


@pytest.mark.parametrize("row", [row for row in ROWS if row.op != "pack_linear"], ids=lambda row: row.op)
def test_every_device_has_the_tiles_of_the_one_that_is_interpreted(row):
    """Products have their tests in test_packed_linears."""
    kernel = {"attention": "flash"}.get(row.op, row.op)
    tiles = [
        [replace(one, warps=1, stages=1) for one in xpu.find_table(arch).launches[kernel]] for arch in (ARCH, *row.arch)
    ]
    assert all(one == tiles[0] for one in tiles), "interpret one of each"


@pytest.mark.parametrize("case", ["ragged", "one_key", "batch2", "values50x", "causal"])
def test_attention(case):
    check_attention(row_of("attention", ARCH).build(device_of(ARCH)), BY_ID[case], DTYPE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As the kit's plugin, for rows on a device that it cannot find."""
    if "kernel" not in metafunc.fixturenames:
        return
    rows = [row for row in ROWS if ARCH in row.arch and row.op in metafunc.function.ops]
    metafunc.parametrize(("kernel", "dtype"), [pytest.param(row, DTYPE, id=row.op) for row in rows])


@pytest.fixture
def device() -> str:
    return "cpu"


@pytest.fixture
def op(kernel: Kernel) -> Iterator[Any]:
    with torch.inference_mode():
        yield kernel.build(device_of(ARCH))
