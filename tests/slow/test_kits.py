"""The whole conformance kit over the guide's package and the frozen plugins of contract 1. `make test` runs the part on
the rows they bring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import guide
import pytest
from installed import install

ROOT = Path(__file__).parents[2]


def test_the_guides_package_passes_the_kit(tmp_path):
    guide.write(tmp_path / "acme")
    passes(tmp_path / "acme", tmp_path)


@pytest.mark.parametrize("name", ["guide", "device"])
def test_a_plugin_of_contract_1_passes_the_kit(tmp_path, name):
    passes(ROOT / "tests" / "contract1" / name, tmp_path)


def passes(package: Path, tmp_path: Path) -> None:
    install(package, tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "site", package, ROOT)))}
    command = [sys.executable, "-m", "cosmos3", "check", "--backend", "acme", "--record", "acme.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "acme.json").read_text())
    assert record["exit_status"] == 0 and record["selected"] is None
