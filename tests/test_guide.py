"""The package of docs/writing-a-backend.md, copied from the page into files and installed: its commands do what the
page says. The whole kit over it is in tests/slow, its validation in test_packaged_recipes."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

import guide
import numpy as np
import pytest
from command import cosmos3
from guide import BLOCKS, FILES, PAGE, ROOT
from installed import forget, install
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.cli import cli

ROWS = "    rows = (ATTENTION,)\n"
NO_ROW = "    from .format import W3A16\n\n    rows = ()\n"
ONLY_FINISH = "    from .finish import FINISH\n\n    rows = (FINISH,)\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes and installs the page's package, with these rows, here and for the processes that the kit starts."""

    def write(rows: str = ROWS, chapters: int = 2) -> None:
        guide.write(tmp_path, chapters)
        plugin = tmp_path / guide.PLUGIN
        plugin.write_text(plugin.read_text().replace(ROWS, rows))
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


def test_the_page_is_three_chapters_and_the_first_a_whole_package_of_sixty_lines():
    assert [name for name, _ in BLOCKS] == FILES and sum(ROWS in code for _, code in BLOCKS) == 1
    lines = [line for _, code in BLOCKS[:3] for line in code.splitlines() if line.strip()]
    assert len(lines) <= 60, f"{len(lines)} lines of code"
    chapters = re.findall(r"^## (.*)$", PAGE.read_text("utf-8"), re.M)
    assert chapters == ["1. A complete backend", "2. Kernels of your own", "3. Recipes and publishing"]


def test_the_first_chapters_package_runs_as_the_page_says(package, run, tmp_path):
    package(chapters=1)
    (typed,) = (line for line in guide.commands() if line.startswith("cosmos3 run"))
    assert "--backend acme" in typed and run("backends")[1].count("acme  cosmos3-acme 0.1  available") == 1
    code, out, err = run(*shlex.split(typed)[1:])
    assert (code, out) == (0, "squares.png\n"), err
    assert re.search(r"attention\W+by_segment", run("show", "squares.png")[1])
    assert Image.open(tmp_path / "squares.png").size == (64, 64)


@pytest.mark.parametrize(
    ("rows", "only", "test"),
    [
        (ROWS, "by_segment-bfloat16 and parity", "test_attention_parity[by_segment-bfloat16-gqa64_8-ragged]"),
        (ONLY_FINISH, "whole-bfloat16 and parity", "test_finish_parity[whole-bfloat16"),
    ],
    ids=["attention", "finish"],
)
def test_its_rows_pass_the_kit(package, run, tmp_path, rows, only, test):
    package(rows)
    code, out, err = run("check", "--backend", "acme", "--record", "acme.json", "-k", only)
    assert code == 0, out + err
    record = json.loads((tmp_path / "acme.json").read_text())
    assert record["exit_status"] == 0
    assert any(name.startswith(test) and outcome["outcome"] == "passed" for name, outcome in record["tests"].items())


def test_the_third_chapters_recipe_runs_and_its_device_is_known(package, run):
    package(chapters=3)
    rows = {row["name"]: row for row in json.loads(run("recipes", "list", "--json")[1])}
    assert rows[guide.RECIPE]["package"] == "cosmos3-acme" and rows[guide.RECIPE]["state"] == "help wanted"
    code, out, err = run("recipes", "run", guide.RECIPE)
    assert (code, out) == (0, f"{guide.RECIPE}.png\n"), err
    code, out, _ = run("plan", "--device", "ACME One", "--model", "embedded", "--task", "t2v")
    assert code == 0 and "forecast" in out and "attention by_segment" in out


def test_the_commands_for_ci_parse():
    (snippet,) = re.findall(r"^```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.S | re.M)
    steps = [shlex.split(line.partition("- run: ")[2]) for line in snippet.splitlines() if "- run: cosmos3" in line]
    assert [step[1] for step in steps] == ["check", "run", "recipes"]
    for _, name, *arguments in steps:
        cli.commands[name].make_context(name, arguments)  # raises on what does not exist
    assert steps[-1][2:] == ["run", guide.RECIPE]


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
