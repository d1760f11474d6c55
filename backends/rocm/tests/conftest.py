"""cosmos3-rocm with the helpers of the core's tests, and the stand-in for AITER where a test asks for it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "tests"), str(HERE.parents[2] / "scripts")]
import devices  # noqa: E402, F401 (puts the backends on the path)
import emulated  # noqa: E402

from cosmos3_core.quant import FORMATS  # noqa: E402
from cosmos3_core.quant.numerics import pack  # noqa: E402


@pytest.fixture
def aiter(monkeypatch, tmp_path):
    """Installs the stand-in, once a test has said of which records, and with which functions changed."""

    def install(records, arch="gfx950", **changed):
        emulated.install(records, tmp_path, changed)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(emulated.DEVICE, "arch", arch)
        importlib.invalidate_caches()
        emulated.CALLS.clear()

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiter"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def packed_by_torch(monkeypatch):
    """Activations, by `cosmos3_core.quant` in the place of our kernels, which have tests of their own."""
    from cosmos3_rocm import linears
    from cosmos3_triton import linears as shared
    from cosmos3_triton.activations import Rows

    def rows(x_MI, format, given=None, fp8=torch.float8_e4m3fn):
        """In gfx942's e4m3 scales are twice the format's."""
        own = fp8 == torch.float8_e4m3fnuz and FORMATS[format].element == "e4m3"
        given = given / 2 if own and given is not None else given
        packed = pack(x_MI, FORMATS[format].of_inputs, input_scale=given)
        scales = packed.scales.float().expand(len(x_MI), 1).contiguous()
        return Rows(shared.to_fnuz(packed.values) if own else packed.values, scales * (2 if own else 1), x_MI.dtype)

    def tiles(x_MI, format):
        packed = pack(x_MI, format.of_inputs)
        return packed.values, packed.scales.t().contiguous().t(), None

    monkeypatch.setattr(shared, "quantize_rows", rows)
    monkeypatch.setattr(linears, "quantize_tiles", tiles)
