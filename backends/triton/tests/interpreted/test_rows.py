"""The rows that rocm and xpu build of our kernels, on the CPU in Triton's interpreter: under the conformance kit's own
tests of their ops, attention's with an eighth of the heads. Each row is built for a device that is not here, with the
launches that its backend ships for that one."""
# ruff: noqa: F403

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cosmos3_rocm import plugin as rocm
from cosmos3_xpu import plugin as xpu
from test_attention import BY_ID
from test_attention import check as check_attention

from cosmos3_core.contract import Device, Kernel
from cosmos3_core.testing.suite.gate import *
from cosmos3_core.testing.suite.norm_silu import *
from cosmos3_core.testing.suite.norms import *
from cosmos3_core.testing.suite.patches import *

ROWS = [row for plugin in (rocm, xpu) for row in plugin.ROWS if "triton" in row.needs]
DEVICES = {"gfx942": ROWS, "gfx1100": [row for row in ROWS if row.op == "patch_embed"], "bmg-g21": ROWS}
"""By architecture, one for each size of tile: warps and stages are nothing to the interpreter."""
DTYPE = "bfloat16"
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


def row_of(op: str, arch: str) -> Kernel:
    (row,) = (row for row in ROWS if row.op == op and arch in row.arch)
    return row


def device_of(arch: str) -> Device:
    return Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False)


@pytest.mark.parametrize("case", ["ragged", "one_key", "batch2", "values50x", "causal"])
@pytest.mark.parametrize("arch", ["gfx942", "gfx1100", "bmg-g21"])
def test_attention(arch, case):
    check_attention(row_of("attention", arch).build(device_of(arch)), BY_ID[case], DTYPE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """As the kit's plugin, for rows of two backends on devices that it cannot find."""
    if "kernel" not in metafunc.fixturenames:
        return
    pairs = [(arch, row) for arch, rows in DEVICES.items() for row in rows if arch in row.arch]
    values = [
        pytest.param(arch, row, DTYPE, id=f"{row.op}-{arch}") for arch, row in pairs if row.op in metafunc.function.ops
    ]
    metafunc.parametrize(("arch", "kernel", "dtype"), values)


@pytest.fixture
def device() -> str:
    return "cpu"


@pytest.fixture
def op(kernel: Kernel, arch: str) -> Iterator[Any]:
    with torch.inference_mode():
        yield kernel.build(device_of(arch))
