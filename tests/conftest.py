"""Every test runs without a network: nothing here may ask the hub by accident. And the fake device, installed."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from command import cosmos3
from installed import install

from cosmos3_core.evidence.embedded import measures
from cosmos3_core.evidence.embedded.measures import Depth

os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.append(str(Path(__file__).parents[1] / "scripts"))  # guide.py

collect_ignore = ["slow", "parallel"]  # those run where they are named: `make test-slow`, `make test-parallel`

ACME = Path(__file__).parent / "fake_device"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(ACME, folder)
    return folder


@pytest.fixture
def acme(site, monkeypatch):
    """The fake device is installed, here and for the processes that the kit starts; call it to plant a fault."""
    path = [str(site), str(ACME)]
    monkeypatch.setattr(sys, "path", [*path, *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    def plant(fault: str = "") -> None:
        monkeypatch.setenv("COSMOS3_ACME_FAULT", fault)
        for name in [name for name in sys.modules if name.partition(".")[0] == "cosmos3_acme"]:
            monkeypatch.delitem(sys.modules, name)

    plant()
    return plant


@pytest.fixture
def one_picture(monkeypatch):
    """Of a recipe's evaluation one picture is left, in the processes that it starts too: it takes a second."""
    quick = measures.depths()["quick"]
    bounds = {name: bound for name, bound in quick.bounds.items() if name in ("colour", "t2i.shape", "t2i.count")}
    monkeypatch.setattr(measures, "depths", lambda: {"quick": Depth({"t2i": 1}, bounds)})


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """`cosmos3 run ARGUMENTS` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "run", *arguments)

    return call


@pytest.fixture
def loaded(monkeypatch):
    from alive import Loaded  # torch, which not every test needs

    gc.disable()  # what only a collection frees has leaked: on a device its memory lacks until then
    yield Loaded(monkeypatch)
    gc.enable()
