"""cosmos3-rocm with the helpers of the core's tests, and the stand-in for AITER where a test asks for it."""

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2] / "tests"), str(HERE.parents[2] / "scripts")]
import devices  # noqa: E402, F401 (puts the backends on the path)
import emulated  # noqa: E402


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
    emulated.pack_by_torch(monkeypatch.setattr)
