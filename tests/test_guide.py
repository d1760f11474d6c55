"""The packages of docs/writing-a-backend.md, copied from the page into files and installed: they run, and the command
that the page names passes them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command import cosmos3
from installed import forget, install
from PIL import Image
from tiny_model import TINY_MODEL

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "writing-a-backend.md"
FILES = [
    "pyproject.toml",
    "cosmos3_acme/plugin.py",
    "cosmos3_acme/attention.py",
    "cosmos3_acme/format.py",
    "cosmos3_acme/finish.py",
]
BLOCKS = re.findall(r"^`([\w./]+)`[^\n]*:.*?\n\n```(?:toml|python)\n(.*?)```", GUIDE.read_text(), re.S | re.M)
ROWS = "    rows = (ATTENTION,)\n"
NO_ROW = "    from .format import W3A16\n\n    rows = ()\n"
ONLY_FINISH = "    from .finish import FINISH\n\n    rows = (FINISH,)\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes and installs the page's package, with these rows, here and for the processes that the kit starts."""

    def write(rows: str = ROWS) -> None:
        for name, code in BLOCKS:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code.replace(ROWS, rows))
        install(tmp_path, tmp_path / "site")
        path = [str(tmp_path / "site"), str(tmp_path)]
        monkeypatch.setattr(sys, "path", [*path, *sys.path])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*path, str(ROOT)]))

    forget("cosmos3_acme")
    yield write
    forget("cosmos3_acme")


@pytest.fixture
def run(package, capsys, monkeypatch, tmp_path):
    """`cosmos3 ARGUMENTS`, in the folder of the page's package: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cosmos3(capsys, monkeypatch, *arguments)


def test_the_page_is_short():
    assert [name for name, _ in BLOCKS] == FILES and sum(ROWS in code for _, code in BLOCKS) == 1
    lines = [line for _, code in BLOCKS[:3] for line in code.splitlines() if line.strip()]
    assert len(lines) <= 60, f"{len(lines)} lines of code"


@pytest.mark.parametrize(
    ("rows", "only", "test"),
    [
        (ROWS, (), "test_attention_parity[by_segment-bfloat16-gqa64_8-ragged]"),
        (ONLY_FINISH, ("-k", "whole or composites or rows"), "test_finish_parity[whole-bfloat16"),
    ],
    ids=["attention", "finish"],
)
def test_its_package_passes_the_kit(package, run, tmp_path, rows, only, test):
    package(rows)
    code, out, err = run("check", "--backend", "acme", "--record", "acme.json", *only)
    assert code == 0, out + err
    record = json.loads((tmp_path / "acme.json").read_text())
    assert record["exit_status"] == 0
    assert any(name.startswith(test) and outcome["outcome"] == "passed" for name, outcome in record["tests"].items())


JOB = ("a cup", "--model", TINY_MODEL, "--size", "64x64", "--steps", 4, "--seed", 1)


def test_a_backend_may_bring_one_composite_and_nothing_else(package, run, tmp_path):
    package(ONLY_FINISH)
    for name in ("reference", "acme"):
        code, _, err = run("run", *JOB, "--backend", name, "-o", f"{name}.png")
        assert code == 0, err
    found, expected = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("acme", "reference"))
    plan = json.loads((tmp_path / "acme.png.json").read_text())["plan"]
    assert plan["kernels"]["finish"] == "whole" and plan["kernels"]["attention"] == "eager"
    assert plan["fused"] == {"gate": "finish=whole"} and "gate" not in plan["kernels"]
    assert np.abs(found - expected).mean() < 1, "in 16 bits another order of roundings moves less than a level of 256"


def test_a_backend_may_bring_a_format_and_no_row_for_it(package, run, tmp_path):
    package(NO_ROW)
    plugin = tmp_path / "cosmos3_acme" / "plugin.py"
    plugin.write_text(plugin.read_text().replace("api=2", "formats=(W3A16,), api=2"))
    code, out, err = run(
        "plan", "--model", "edge", "--backend", "acme", "--format", "acme_w3a16", "--json", "--size", "256p"
    )
    told = json.loads(out)
    assert (
        told["plan"]["formats"] == {"pack_linear": "acme_w3a16"} and told["plan"]["kernels"]["pack_linear"] == "eager"
    )
    code, out, err = run("check", "--backend", "acme", "-k", "own_formats")
    assert code == 0 and "1 passed" in out, out + err


def test_what_a_composite_does_itself_cannot_be_required_apart(package, run):
    package(ONLY_FINISH)
    dry = ("run", *JOB, "--backend", "acme", "--dry-run", "--json", "--require", "gate=eager")
    code, _, err = run(*dry)
    assert code == 2 and "no row of gate runs: it is done inside finish=whole" in err
    code, out, err = run(*dry, "--kernel", "gate=eager")
    assert code == 0, err
    refused = {(one["op"], one["name"]): one["reason"] for one in json.loads(out)["plan"]["refused"]}
    assert refused["finish", "whole"] == "does gate itself, and gate=eager was named"
